"""Steps per second: jaxvae against four other ways to train the notes' models, in turn on one machine.

    python experiments/speed/compare.py --data-dir DIR        # DIR: MNIST's IDX files; needs torch and a C++ compiler

Every contender (see contenders.py) is a process that waits for its turn. In a round each trains one epoch of real
MNIST, A B C D E, A B C D E ..., so drift of the machine hits all alike. A ratio is taken within a round, and medians
over rounds are reported. Before that, each trains three epochs in turn on one core and on all (cores: null), and keeps
what is faster for it. Then the time to quality: seconds from the start of the process until the loss of the test images
is down to `QUALITY`, tests apart, at batch size 32 over three seeds.

Writes comparison.json beside this file and docs/images/comparison.png, and prints Markdown tables.

    python experiments/speed/compare.py --data-dir DIR --names "best PyTorch" jaxvae --presets notes-vae --seeds 0 \\
        --out FILE.json --plot FILE.png                       # some contenders, and no time to quality
"""

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from contenders import CONTENDERS
from turns import Process, best_cores

from jaxvae import machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PLOT = Path(__file__).parents[2] / "docs" / "images" / "comparison.png"
PRESETS = ("notes-vae", "notes-ae")
BATCH_SIZES = (32, 128, 512, 4096)
IMAGES = 60_000
QUALITY = {"notes-vae": 0.0575, "notes-ae": 0.0225}  # Test loss, per pixel: what takes a few epochs.
MOST_EPOCHS = 15


def command(name: str, preset: str, batch_size: int, data_dir: Path, seed: int = 0) -> list[str]:
    """The command that starts a contender."""
    given = [sys.executable, str(HERE / "contenders.py"), name, "--preset", preset, "--seed", str(seed)]
    return [*given, "--batch-size", str(batch_size), "--data-dir", str(data_dir)]


def race(
    preset: str, batch_size: int, data_dir: Path, rounds: int, names: Sequence[str], known: dict[str, int | None] | None
) -> dict[str, Any]:
    """Steps per second of the contenders in every round, and the cores each took: those `known`, or the better."""
    processes = {}
    for name in names:
        start = command(name, preset, batch_size, data_dir)
        if known is None:
            processes[name] = best_cores(start)
        else:
            processes[name] = Process(start, known[name])
            processes[name].ask("epoch")
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, process in processes.items():
            speeds[name].append(IMAGES // batch_size / process.epoch())
    cores = {name: process.cores for name, process in processes.items()}
    for process in processes.values():
        process.end()
    return {"preset": preset, "batch_size": batch_size, "steps_per_second": speeds, "cores": cores}


def time_to_quality(preset: str, name: str, data_dir: Path, cores: int | None, seed: int) -> dict[str, Any]:
    """Seconds from the process's start to a test loss of `QUALITY`, and the test loss after every epoch."""
    process = Process(command(name, preset, 32, data_dir, seed), cores)
    losses: list[float] = []
    testing = 0.0
    while len(losses) < MOST_EPOCHS and (not losses or losses[-1] > QUALITY[preset]):
        process.ask("epoch")
        start = time.perf_counter()
        losses.append(process.ask("test")["loss"])
        testing += time.perf_counter() - start
    seconds = time.perf_counter() - process.started - testing
    process.end()
    reached = losses[-1] <= QUALITY[preset]
    return {
        "preset": preset,
        "name": name,
        "seed": seed,
        "seconds": seconds if reached else None,
        "test_losses": losses,
    }


def ratios(speeds: dict[str, list[float]], name: str) -> list[float]:
    """How many times faster than `name` jaxvae was, round by round."""
    return [a / b for a, b in zip(speeds["jaxvae"], speeds[name], strict=True)]


def table(races: Sequence[dict[str, Any]]) -> str:
    """Median steps per second of all, and in brackets how many times faster jaxvae was (median, least to most)."""
    names = list(races[0]["steps_per_second"])
    lines = ["| model | batch | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for r in races:
        speeds, cells = r["steps_per_second"], []
        for name in names:
            ratio = ratios(speeds, name)
            times = f" ({np.median(ratio):.2f}x, {min(ratio):.2f}-{max(ratio):.2f})" if name != "jaxvae" else ""
            median = float(np.median(speeds[name]))
            cells.append(f"{median:,.0f}{times}" if median >= 100 else f"{median:.3g}{times}")
        lines.append(f"| {r['preset']} | {r['batch_size']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quality_table(runs: Sequence[dict[str, Any]]) -> str:
    """Median seconds to quality, and the test losses after the first epoch, which show that all learn alike."""
    lines = ["| model | way | seconds (each seed) | test loss after 1 epoch (each seed) |", "| --- | --- | --- | --- |"]
    cases = dict.fromkeys((r["preset"], r["name"]) for r in runs)
    for preset in dict.fromkeys(preset for preset, _ in cases):
        for name in dict.fromkeys(name for _, name in cases):
            mine = [r for r in runs if (r["preset"], r["name"]) == (preset, name)]
            seconds = [r["seconds"] for r in mine]
            known = [s for s in seconds if s is not None]
            each = ", ".join("not reached" if s is None else f"{s:.1f}" for s in seconds)
            first = ", ".join(f"{r['test_losses'][0]:.4f}" for r in mine)
            median = f"{np.median(known):.1f}" if known else "-"
            lines.append(f"| {preset} | {name} | {median} ({each}) | {first} |")
    return "\n".join(lines)


def plot(races: Sequence[dict[str, Any]], path: Path) -> None:
    """Images per second over the batch size, a panel a model."""
    presets = list(dict.fromkeys(r["preset"] for r in races))
    figure, axes = plt.subplots(1, len(presets), figsize=(10, 4), sharey=True, layout="constrained", squeeze=False)
    for axis, preset in zip(axes[0], presets, strict=True):
        mine = [r for r in races if r["preset"] == preset]
        sizes = [r["batch_size"] for r in mine]
        for name in races[0]["steps_per_second"]:
            rounds = [np.array(r["steps_per_second"][name]) * r["batch_size"] for r in mine]
            median = np.array([np.median(r) for r in rounds])
            spread = [median - [r.min() for r in rounds], [r.max() for r in rounds] - median]
            axis.errorbar(sizes, median, spread, marker="o", markersize=4, capsize=2, label=name)
        axis.set(title=preset, xlabel="batch size", xscale="log", yscale="log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("images per second")
    axes[0, -1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--names", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "comparison.json", help="file to write")
    parser.add_argument("--plot", type=Path, default=PLOT, help="picture to write")
    args = parser.parse_args()
    races: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    names = [name for name in CONTENDERS if name in {*args.names, "jaxvae"}]
    for preset in args.presets:
        for batch_size in args.batch_sizes:
            # The layers of both models are the same.
            known = next((r["cores"] for r in races if r["batch_size"] == batch_size), None)
            races.append(race(preset, batch_size, args.data_dir, args.rounds, names, known))
            print(json.dumps(races[-1]), file=sys.stderr, flush=True)
        small = races[0]["cores"]
        for seed in range(args.seeds):
            for name in names:
                runs.append(time_to_quality(preset, name, args.data_dir, small[name], seed))
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("torch", "jax", "flax", "optax")}
    here = {"machine": machine.processor(), "cores": machine.cores(), "python": platform.python_version(), **versions}
    result = {"date": datetime.date.today().isoformat(), **here, "races": races, "quality": QUALITY, "runs": runs}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(races, args.plot)
    print(table(races), quality_table(runs), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
