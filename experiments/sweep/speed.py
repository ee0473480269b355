"""How long a sweep takes, against its members one after the other.

    python experiments/sweep/speed.py --data-dir DIR      # notes-vae, 16 members; some 5 minutes

A round is a quarter as many epochs of a single run as there are members, and one epoch of all the members, in turn,
so that whatever else the machine does falls on both. Each side has a process of its own, which keeps its program
compiled and waits for the word: the single run on one device with all cores, as ``python -m jaxvae.train``; the
members as ``python -m jaxvae.sweep`` trains them, or in the other ways named with --ways. The figure is
time of the members / (members x time of the single run).

Ways: ``sweep`` (a device a core, a member at a time); ``one-device`` (a member at a time); ``vmap`` (all together, on
one device); ``vmap-devices`` (all of a device's share together, a device a core).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = {"single": (1, None), "sweep": (0, 1), "one-device": (1, 1), "vmap": (1, 10**6), "vmap-devices": (0, 10**6)}


def worker(way: str, arguments: argparse.Namespace) -> None:
    """One side: compile, then as many epochs as each line on stdin says, the seconds of one on stdout."""
    import jax

    devices, at_once = WAYS[way]
    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", devices or cores)
    from jaxvae import data
    from jaxvae.config import PRESETS, TRACED
    from jaxvae.sweep.trainer import MembersTrainer
    from jaxvae.train.computer import advance
    from jaxvae.train.trainer import Trainer

    config = PRESETS[arguments.preset]
    images = data.load("mnist", arguments.data_dir)
    count = arguments.members
    trainer: Any
    if way == "single":
        trainer = Trainer(config, images)
    else:
        numbers = {name: [getattr(config, name)] * count for name in TRACED}
        trainer = MembersTrainer(config, images, range(count), numbers, jax.devices(), at_once)
    state, step, steps = trainer.start(None), 0, trainer.steps_per_epoch
    trainer.compile(state)
    print("ready", flush=True)
    for epochs in map(int, sys.stdin):
        start = time.perf_counter()
        state, calls = advance(trainer, state, step, epochs * steps)
        jax.block_until_ready((state, calls))
        step += epochs * steps
        print(json.dumps([(time.perf_counter() - start) / epochs, steps]), flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="directory of MNIST's IDX files")
    parser.add_argument("--preset", default="notes-vae")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--ways", nargs="+", default=["sweep"], choices=[way for way in WAYS if way != "single"])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("speed.json"))
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments)
        return
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    common = ["--preset", arguments.preset, "--members", str(arguments.members)]
    common += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    sides = {
        way: subprocess.Popen(
            [sys.executable, __file__, "--worker", way, *common],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for way in ("single", *arguments.ways)
    }
    seconds: dict[str, list[float]] = {way: [] for way in sides}
    steps = 0
    for side in sides.values():
        assert side.stdout is not None and side.stdout.readline() == "ready\n"
    for number in range(arguments.rounds + 1):
        for way, side in sides.items():
            assert side.stdin is not None and side.stdout is not None
            side.stdin.write(f"{max(1, arguments.members // 4) if way == 'single' else 1}\n")
            side.stdin.flush()
            taken, steps = json.loads(side.stdout.readline())
            if number:
                seconds[way].append(taken)
    for side in sides.values():
        side.communicate()
    single = seconds["single"]
    result: dict[str, Any] = {
        "preset": arguments.preset,
        "members": arguments.members,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "steps_per_epoch": steps,
        "load_at_the_end": os.getloadavg()[0],
        "single_steps_per_second": _spread([steps / s for s in single]),
        "ways": {},
    }
    rate = result["single_steps_per_second"]
    print(f"single run: {rate['median']:,.0f} steps/s ({rate['least']:,.0f} to {rate['most']:,.0f})")
    for way in arguments.ways:
        speeds = _spread([arguments.members * steps / s for s in seconds[way]])
        ratios = _spread([s / (arguments.members * one) for s, one in zip(seconds[way], single, strict=True)])
        result["ways"][way] = {"steps_per_second": speeds, "time_ratio": ratios}
        print(
            f"{way}: {speeds['median']:,.0f} steps/s ({speeds['least']:,.0f} to {speeds['most']:,.0f}), "
            f"{ratios['median']:.3f} of the time ({ratios['least']:.3f} to {ratios['most']:.3f})"
        )
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _spread(values: list[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {what: float(f"{value:.4g}") for what, value in found.items()}


if __name__ == "__main__":
    main()
