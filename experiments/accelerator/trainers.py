"""What the pieces of the campaign train, and how."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

# What is trained where any model serves: a preset with flags of `jaxvae.train`.
MODELS: Mapping[str, Sequence[str]] = {
    "notes-ae": ("--preset", "notes-ae", "--batch-size", "32"),
    "notes-vae": ("--preset", "notes-vae", "--batch-size", "32"),
    "vae": ("--preset", "vae", "--batch-size", "128"),
    "iwae": ("--preset", "iwae", "--batch-size", "20"),
    "conv": ("--preset", "vae", "--architecture", "conv", "--batch-size", "128"),
    "resnet": ("--preset", "vae", "--architecture", "resnet", "--batch-size", "128"),
    "ladder": ("--preset", "ladder", "--batch-size", "128"),
    "vq-vae": ("--preset", "vq-vae", "--batch-size", "128"),
    "fsq": ("--preset", "fsq", "--batch-size", "128"),
    "vamp": ("--preset", "vamp", "--batch-size", "100"),
    "realnvp": ("--preset", "vae", "--prior", "realnvp", "--batch-size", "128"),
}
COMPILERS = 6  # Processes that compile side by side. More would disturb the trials by which XLA chooses kernels.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # Several processes on one GPU.


def python(*arguments: str, flags: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with XLA's `flags` and environment `variables`; what it printed. Raises `CalledProcessError`."""
    environment = {**os.environ, **SHARED, "XLA_FLAGS": flags, **variables}
    done = subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", flush=True)
    done.check_returncode()
    return done


def data_flags(args: argparse.Namespace) -> list[str]:
    """The flags that name the images."""
    return ["--dataset", "mnist", "--data-dir", str(args.data_dir)]


def trainer_of(args: argparse.Namespace, given: Sequence[str], block: int | None = None) -> Any:
    """The trainer that ``python -m jaxvae.train`` with the flags `given` would use."""
    from jaxvae import benchmark, data
    from jaxvae.train.trainer import Trainer

    _, [config], _ = benchmark.parse(given)
    return Trainer(config, data.prepared(data.load("mnist", args.data_dir), config), block=block)


def timed(trainer: Any, state: Any, count: int) -> tuple[Any, float]:
    """Take `count` steps in one call; the state and the seconds. Past an epoch's end, its last batch is repeated."""
    import jax

    start = time.perf_counter()
    state, values = trainer.run_steps(state, 0, count)
    jax.block_until_ready((state, values))
    return state, time.perf_counter() - start


def small(args: argparse.Namespace) -> list[str]:
    """The flag for a worker."""
    return ["--small"] * args.small


def started(commands: Mapping[Any, Sequence[str]]) -> dict[Any, Any]:
    """Contenders that are ready: each a `turns.Process` of experiments/speed that took its first epoch.

    One that fails is left out.
    """
    from turns import Process

    os.environ.update(SHARED)
    processes: dict[Any, Process] = {}

    def start(case: Any) -> None:
        processes[case] = Process(commands[case], None)
        try:
            processes[case].ask("epoch")  # It compiles.
        except (ValueError, BrokenPipeError):  # It ended without an answer.
            processes.pop(case).end()

    with ThreadPoolExecutor(COMPILERS) as pool:
        list(pool.map(start, commands))
    return {case: processes[case] for case in commands if case in processes}


def in_turn(commands: Mapping[Any, Sequence[str]], steps: int, quick: bool) -> dict[Any, list[float]]:
    """Steps per second of contenders, round by round. One that fails is left out.

    Args:
      commands: each starts a contender, see `started`. It takes `steps` steps when told to.
      steps: see `commands`.
      quick: one round is enough.
    """
    processes = started(commands)
    found = rounds(processes, steps, quick)
    for process in processes.values():
        process.end()
    return found


def rounds(processes: Mapping[Any, Any], steps: int, quick: bool) -> dict[Any, list[float]]:
    """Steps per second of processes that take turns, round by round."""
    found: dict[Any, list[float]] = {case: [] for case in processes}
    for _ in range(1 if quick else 3):
        for case, speeds in found.items():
            speeds.append(steps / processes[case].epoch())
    return found
