"""Measure everything there is to measure on an accelerator, in one command.

    python experiments/accelerator/run.py --data-dir DIR --out DIR            # DIR: MNIST's IDX files; needs torch
    python experiments/accelerator/run.py --data-dir DIR --out DIR kernels sweep

Each piece (see pieces.py) is a process of its own, ended after `LIMIT` seconds. It leaves PIECE.json in the out folder,
or PIECE.log if it failed. A piece whose JSON is there already is not measured again, so a campaign that was stopped
goes on where it stopped. With --small every piece takes seconds, on any machine; its figures mean nothing.

First, what the pieces will run is compiled side by side, and kept in OUT/programs: compiling is most of the time.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pieces import COMPILED, PIECES
from trainers import COMPILERS, SHARED

HERE = Path(__file__).parent
LIMIT = 480  # Seconds of a piece: machines are lent for minutes.


def start(name: str, args: argparse.Namespace, result: Path, log: Path, *more: str) -> str:
    """Run a piece until it ends, or its time does. What became of it: "done", or what failed, and the seconds."""
    command = [sys.executable, str(HERE / "pieces.py"), name, "--data-dir", str(args.data_dir), "--out", str(result)]
    programs = {"JAX_COMPILATION_CACHE_DIR": str(args.out / "programs")}
    programs |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}
    begun = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, *["--small"] * args.small, *more],
            env={**os.environ, **SHARED, **programs},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        how = "failed" if process.wait(LIMIT) else "done"
    except subprocess.TimeoutExpired:
        how = f"stopped: {LIMIT} s are over"
        os.killpg(process.pid, signal.SIGKILL)  # With the processes that it started.
        process.wait()
    return f"{how}, {time.perf_counter() - begun:.0f} s"


def main() -> int:
    """Run the command line; the exit code: 1 if a piece failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"some of {' '.join(PIECES)}; default: all")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--small", action="store_true", help="only try whether everything runs")
    args = parser.parse_args()
    if unknown := [name for name in args.pieces if name not in PIECES]:
        parser.error(f"no piece is called {unknown[0]!r}; there are {' '.join(PIECES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    todo = [name for name in args.pieces or PIECES if not (args.out / f"{name}.json").exists()]
    if not args.small:
        with ThreadPoolExecutor(COMPILERS) as pool:
            for name in set(todo) & set(COMPILED):
                log = args.out / f"{name}.compiled.log"
                pool.submit(start, name, args, Path(os.devnull), log, "--only-compile")
    failed = []
    for name in args.pieces or PIECES:
        if name not in todo:
            print(f"{name}: measured before", flush=True)
            continue
        log = args.out / f"{name}.log"
        how = start(name, args, args.out / f"{name}.json", log)
        if how.startswith("done"):
            log.unlink()
        else:
            failed.append(name)
        print(f"{name}: {how}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
