"""What the pieces of the campaign train, and how."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

# What is trained where any model serves: a preset with flags of `jaxvae.train`.
MODELS: Mapping[str, Sequence[str]] = {
    "notes-ae": ("--preset", "notes-ae", "--batch-size", "32"),
    "notes-vae": ("--preset", "notes-vae", "--batch-size", "32"),
    "vae": ("--preset", "vae", "--batch-size", "128"),
    "iwae": ("--preset", "iwae", "--batch-size", "20"),
    "conv": ("--preset", "vae", "--architecture", "conv", "--batch-size", "128"),
    "resnet": ("--preset", "vae", "--architecture", "resnet", "--batch-size", "128"),
}
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
