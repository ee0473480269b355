"""Measure everything there is to measure on an accelerator, in one command.

    python experiments/accelerator/run.py --data-dir DIR --out DIR            # DIR: MNIST's IDX files; needs torch
    python experiments/accelerator/run.py --data-dir DIR --out DIR kernels sweep

Each piece (see pieces.py) is a process of its own, ended after `LIMIT` seconds. It leaves PIECE.json in the out folder,
or PIECE.log if it failed. A piece whose JSON is there already is not measured again, so a campaign that was stopped
goes on where it stopped. With --small every piece takes seconds, on any machine; its figures mean nothing.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from pieces import PIECES

HERE = Path(__file__).parent
LIMIT = 480  # Seconds of a piece: machines are lent for minutes.


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
    failed = []
    for name in args.pieces or PIECES:
        result, log = args.out / f"{name}.json", args.out / f"{name}.log"
        if result.exists():
            print(f"{name}: measured before", flush=True)
            continue
        command = [sys.executable, str(HERE / "pieces.py"), name]
        command += ["--data-dir", str(args.data_dir), "--out", str(result)]
        start = time.perf_counter()
        try:
            with log.open("w") as said:
                done = subprocess.run(
                    command + ["--small"] * args.small, stdout=said, stderr=subprocess.STDOUT, timeout=LIMIT
                )
            how = "failed" if done.returncode else "done"
        except subprocess.TimeoutExpired:
            how = f"stopped: {LIMIT} s are over"
        if how == "done":
            log.unlink()
        else:
            failed.append(name)
        print(f"{name}: {how}, {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
