"""Nats in seconds: how long from pressing return until a VAE's test loss is down to a target?

    python experiments/speed/nats.py --data-dir DIR    # DIR: MNIST's IDX files; needs torch, numpyro, a C++ compiler

The model is that of Flax's example (784-500-20, Adam at 1e-3, batches of 128), on 50,000 images of MNIST whose pixels
are drawn once as 0 or 1. Each contender is a process of its own, one after the other, over several seeds: jaxvae is its
command line, the others are in nats_contenders.py. Each evaluates all 10,000 test images after every epoch. The clock
runs from the start of the process until it prints a loss that is at most the target: importing, compiling and
evaluating count. The time to the first step is shown apart (jaxvae's is that at which steps begin). Nothing compiled is
kept from earlier, except for those that are called "again". Each runs on one core and on all with the first seed, and
keeps the faster.

Writes nats.json beside this file and docs/images/nats-in-seconds.png, and prints a Markdown table.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from contenders import read_images
from nats_contenders import BATCH_SIZE, CONTENDERS, HIDDEN, LATENTS, LEARNING_RATE

from jaxvae import machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullFormatter

HERE = Path(__file__).parent
PLOT = Path(__file__).parents[2] / "docs" / "images" / "nats-in-seconds.png"
TARGETS = (105.0, 101.0)  # Nats per image.
TRAIN = 50_000  # As many images as in the example.
EPOCHS = 40  # The most.
AGAIN = ", again"  # What it compiled before is still there.
NAMES = (*CONTENDERS, "PyTorch compiled" + AGAIN, "jaxvae", "jaxvae" + AGAIN)

Event = dict[str, Any]


def jaxvae_command(images: Path, seed: int, run_dir: Path) -> list[str]:
    """The command line that trains the model."""
    given = {"preset": "vae", "hidden": HIDDEN, "latent-size": LATENTS, "head": "logvar", "batch-size": BATCH_SIZE}
    given |= {"learning-rate": LEARNING_RATE, "validation": 0, "epochs": EPOCHS, "dataset": images}
    given |= {"seed": seed, "run-dir": run_dir}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "jaxvae.train", *flags]


def lines(process: subprocess.Popen[str], run_dir: Path | None) -> Iterator[str]:
    """The lines that a contender prints; or those that jaxvae writes to its logs, as soon as they are there."""
    if run_dir is None:
        assert process.stdout is not None
        yield from process.stdout
        return
    seen = {"timing.jsonl": 0, "metrics.jsonl": 0}
    ended = False
    while not ended:
        ended = process.poll() is not None  # Before the last look.
        for name in seen:
            path = run_dir / name
            text = path.read_text() if path.exists() else ""
            whole = text[seen[name] : text.rfind("\n") + 1]
            seen[name] += len(whole)
            yield from whole.splitlines()
        time.sleep(0.01)


def event_of(line: str) -> Event | None:
    """What a line tells: that steps begin, or an epoch's test loss; None: something else."""
    found = json.loads(line)
    if found.get("event") == "compile":
        return {"event": "first step"}
    if found.get("split") == "test":
        return {"event": "epoch", "loss": found["loss"]}
    return found if found.get("event") in ("first step", "epoch") else None


def train(name: str, images: Path, seed: int, cores: int | None, caches: Path) -> dict[str, Any]:
    """Train one contender until the lowest target. The events, each with the seconds since the start.

    Raises:
      RuntimeError: it failed.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(caches), "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cores:
        environment["OMP_NUM_THREADS"] = str(cores)
    way, events = name.removesuffix(AGAIN), list[Event]()
    mine = sorted(os.sched_getaffinity(0))[:cores]
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as said:
        run_dir = Path(directory) / "run" if way == "jaxvae" else None
        command = [sys.executable, str(HERE / "nats_contenders.py"), way, "--images", str(images)]
        command += ["--seed", str(seed), "--epochs", str(EPOCHS)]
        if run_dir:
            command = jaxvae_command(images, seed, run_dir)
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL if run_dir else subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, mine),
        )
        for line in lines(process, run_dir):
            if event := event_of(line):
                events.append({**event, "seconds": time.perf_counter() - start})
                if event.get("loss", np.inf) <= min(TARGETS):
                    break
        else:
            if process.wait():
                said.seek(0)
                raise RuntimeError(f"{shlex.join(command)} failed: {said.read()[-2000:]}")
        if process.poll() is None:  # With the processes that compile for it.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"name": name, "seed": seed, "cores": cores, "events": events}


def seconds_to(run: Mapping[str, Any], target: float) -> float:
    """Seconds until the test loss was at most `target`; infinite if it never was."""
    found = (e["seconds"] for e in run["events"] if e["event"] == "epoch" and e["loss"] <= target)
    return float(next(found, np.inf))


def first_step(run: Mapping[str, Any]) -> float:
    """Seconds until the first step."""
    return float(next(e["seconds"] for e in run["events"] if e["event"] == "first step"))


def measure(images: Path, seeds: int, names: Sequence[str], all_cores: bool) -> Iterator[dict[str, Any]]:
    """Every contender with every seed, in turn. The better of the first seed's trials is its run."""
    with tempfile.TemporaryDirectory() as directory:
        kept = Path(directory)

        def run(name: str, seed: int, cores: int | None) -> dict[str, Any]:
            caches = kept / f"{NAMES.index(name)}-{cores}" if AGAIN in name else Path(tempfile.mkdtemp(dir=kept))
            if AGAIN in name and not caches.exists():
                train(name, images, seed, cores, caches)
            return train(name, images, seed, cores, caches)

        cores: dict[str, int | None] = {}
        for name in names:
            trials = [run(name, 0, number) for number in ((None,) if all_cores else (1, None))]
            best = min(trials, key=lambda trial: seconds_to(trial, min(TARGETS)))
            cores[name] = best["cores"]
            yield best
        for seed in range(1, seeds):
            for name in names:
                yield run(name, seed, cores[name])


def spread(values: Sequence[float]) -> str:
    """The median, and the range."""
    if not np.isfinite(np.median(values)):
        return "not reached"
    return f"{np.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of every contender: median over seeds, least to most."""
    head = ["", *(f"to {target:g} nats" for target in TARGETS), "to the first step"]
    rows = [head, ["---"] * len(head)]
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        times = [[seconds_to(run, target) for run in mine] for target in TARGETS]
        rows.append([name, *map(spread, times), spread([first_step(run) for run in mine])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The test loss over the seconds since the start: of each contender, the seed of median time."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = sorted((run for run in runs if run["name"] == name), key=lambda run: seconds_to(run, min(TARGETS)))
        epochs = [e for e in mine[len(mine) // 2]["events"] if e["event"] == "epoch"]
        bold: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if name.startswith("jaxvae") else {"linewidth": 1.2}
        style = "--" if AGAIN in name else "-"
        axis.plot([e["seconds"] for e in epochs], [e["loss"] for e in epochs], style, label=name, **bold)
    for target in TARGETS:
        axis.axhline(target, color="0.6", linewidth=0.8)
        axis.annotate(f"{target:g}", (1, target), (3, 0), ("axes fraction", "data"), "offset points", va="center")
    axis.set(xlabel="seconds from pressing return", ylabel="test loss, nats per image", xscale="log")
    axis.xaxis.set_major_locator(FixedLocator([5, 10, 20, 30, 50, 100, 200, 500]))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(min(TARGETS) - 2, 135)
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES, help="some of the contenders; default: all")
    parser.add_argument("--all-cores", action="store_true", help="do not try one core")
    parser.add_argument("--out", type=Path, default=HERE / "nats.json", help="file to write")
    parser.add_argument("--plot", type=Path, default=PLOT, help="picture to write")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    sets = {"train": read_images(args.data_dir, "train")[:TRAIN], "test": read_images(args.data_dir, "t10k")}
    drawn = {name: np.where(rng.random(x.shape) * 255 < x, 255, 0).astype(np.uint8) for name, x in sets.items()}
    versions = {name: version(name) for name in ("torch", "numpyro", "jax", "flax", "optax")}
    here = {"machine": machine.processor(), "cores": machine.cores(), "python": platform.python_version(), **versions}
    runs: list[dict[str, Any]] = []
    result = {"date": datetime.date.today().isoformat(), **here, "targets": TARGETS, "runs": runs}
    with tempfile.TemporaryDirectory() as directory:
        images = Path(directory) / "binarised.npz"
        np.savez(images, train=drawn["train"], test=drawn["test"])
        for run in measure(images, args.seeds, args.names, args.all_cores):
            runs.append(run)
            print(json.dumps(run), file=sys.stderr, flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(runs, args.plot)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
