"""Steps per second with streamed images against images on the device, in turn.

    python experiments/data/streamed.py FILE.npy --rounds 5 --preset vae --architecture conv

What it does not know are flags of ``jaxvae.train``. FILE.npy holds uint8 images [N, H, W, C] that fit in memory. Prints
each round, and the median of the ratios.
"""

import argparse
import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np

from jaxvae import data
from jaxvae.config import Config
from jaxvae.train.__main__ import parse
from jaxvae.train.computer import advance
from jaxvae.train.trainer import Trainer

ROUND_SECONDS = 10.0


class Contender:
    """A run of `config` that has begun."""

    def __init__(self, config: Config):
        self.trainer = Trainer(config, data.prepared(data.load_for(config), config))
        self.state, self.step = self.trainer.start(None), 0
        self.trainer.compile(self.state)

    def steps_per_second(self, count: int) -> float:
        """Take `count` steps."""
        start = time.perf_counter()
        self.state, calls = advance(self.trainer, self.state, self.step, count)
        jax.block_until_ready((self.state, calls))
        self.step += count
        return count / (time.perf_counter() - start)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=5)
    args, flags = parser.parse_known_args()
    config = parse(["--dataset", args.file, *flags]).config
    ways: dict[str, Any] = {"never": "resident", "always": "streamed"}
    contenders = {name: Contender(dataclasses.replace(config, stream=way)) for way, name in ways.items()}
    for each in contenders.values():
        each.steps_per_second(2)
    count = max(2, round(ROUND_SECONDS * contenders["resident"].steps_per_second(10)))
    ratios = []
    for _ in range(args.rounds):
        speeds = {name: each.steps_per_second(count) for name, each in contenders.items()}
        ratios.append(speeds["streamed"] / speeds["resident"])
        print(", ".join(f"{name} {speed:.4g}" for name, speed in speeds.items()), f"steps/s, ratio {ratios[-1]:.3f}")
    print(f"median ratio {np.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
