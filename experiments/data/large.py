"""Train on a .npy file that is larger than memory should be: seconds to the first step, speed, and memory over time.

    python experiments/data/large.py FILE.npy --seconds 240 -- --preset vae --architecture conv

What follows `--` is for ``jaxvae.train``. It is stopped after some seconds. Writes large.json beside this file, and
docs/images/streamed.png. Linux only: memory is read from /proc.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from jaxvae import machine

HERE = Path(__file__).parent
PLOT = HERE.parents[1] / "docs" / "images" / "streamed.png"
EVERY = 1.0  # Seconds between two looks at the memory.


def resident(pid: int) -> dict[str, int]:
    """Bytes of a process that are in memory: its own, and pages of files that it maps."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return {"own": sizes["RssAnon"] + sizes["RssShmem"], "files": sizes["RssFile"]}


def watch(command: Sequence[str], run_dir: Path, seconds: float) -> dict[str, Any]:
    """Run the command for some seconds from its first step on; its memory and speed, by seconds since its start."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    memory: list[dict[str, float]] = []
    first = None
    while process.poll() is None and (first is None or time.perf_counter() - start < first + seconds):
        memory.append({"seconds": time.perf_counter() - start, **resident(process.pid)})
        if first is None and (run_dir / "timing.jsonl").exists():
            lines = (run_dir / "timing.jsonl").read_text().splitlines()
            if any(json.loads(line)["event"] == "steps" for line in lines):
                first = time.perf_counter() - start
        time.sleep(EVERY)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()
    timings = [json.loads(line) for line in (run_dir / "timing.jsonl").read_text().splitlines()]
    return {
        "exit_code": process.returncode,
        "first_steps_seconds": first,
        "memory": memory,
        "speeds": [line for line in timings if line["event"] == "steps"],
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Memory over time beside the size of the file; speed over steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    seconds = [each["seconds"] for each in found["memory"]]
    whole = [(each["own"] + each["files"]) / 2**30 for each in found["memory"]]
    left.plot(seconds, whole, label="in memory, all")
    left.plot(seconds, [each["own"] / 2**30 for each in found["memory"]], label="in memory, without mapped files")
    left.axhline(found["file_bytes"] / 2**30, color="0.4", linestyle="--", label="the file")
    left.set(xlabel="seconds from pressing return", ylabel="GiB", ylim=(0, None))
    left.legend(fontsize=8)
    right.plot([each["step"] for each in found["speeds"]], [each["steps_per_second"] for each in found["speeds"]])
    right.set(xlabel="step", ylabel="steps per second", ylim=(0, None))
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog="-- FLAGS: of jaxvae.train")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0, help="from the first steps on")
    parser.add_argument("--out", type=Path, default=HERE / "large.json")
    parser.add_argument("--plot", type=Path, default=PLOT)
    own, flags = sys.argv[1:], list[str]()
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = [sys.executable, "-m", "jaxvae.train", "--dataset", str(args.file), *flags]
        found = watch([*command, "--run-dir", str(run_dir)], run_dir, args.seconds)
    found |= {
        "date": datetime.date.today().isoformat(),
        "machine": machine.processor(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "jax": version("jax"),
        "flags": flags,
        "file_bytes": args.file.stat().st_size,
    }
    args.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    plot(found, args.plot)
    most = max(each["own"] + each["files"] for each in found["memory"])
    print(f"first steps after {found['first_steps_seconds']:.0f} s; at most {most / 2**30:.2f} GiB in memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
