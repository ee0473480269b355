"""Seconds to 90 nats: how long does the best recipe that was found train, and how good is its model?

    python experiments/speed/recipe.py --data-dir DIR    # DIR: MNIST's IDX files

The recipe is a command line of jaxvae (`FLAGS`), on MNIST binarised anew each time an image is seen. It was chosen by
images held out of the training set. Each seed is a process of its own: the clock runs from its start to its end, with
importing, compiling and saving, and nothing compiled is kept from earlier. Then `jaxvae.evaluate` estimates the
negative log-likelihood of the 10,000 test images by importance sampling. With `SAMPLES` latents an image the estimate
is a little above that with 5,000, which papers take.

100 of the 60,000 training images are held out, so that the test images are not evaluated after every epoch.

Writes recipe.json beside this file.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from jaxvae import machine

HERE = Path(__file__).parent
SAMPLES = 500
FLAGS: Mapping[str, str] = {
    "preset": "vae",
    "hidden": "512 256",
    "latent-size": "40",
    "activation": "silu",
    "head": "exp",
    "init": "glorot",
    "inputs": "dynamic",
    "schedule": "cosine",
    "learning-rate": "2e-3",
    "batch-size": "100",
    "epochs": "26",
    "validation": "100",
    "image-every": "0",
    "checkpoint-every": "0",
    "dataset": "mnist",
}


def train(data_dir: Path, seed: int, run: Path) -> float:
    """Train with one seed; the seconds it took. Raises `subprocess.CalledProcessError`."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        flags = [word for name, value in FLAGS.items() for word in (f"--{name}", *value.split())]
        flags += ["--data-dir", str(data_dir), "--seed", str(seed), "--run-dir", str(run)]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "jaxvae.train", *flags], env=environment, check=True, capture_output=True)
        return time.perf_counter() - start


def evaluate(run: Path) -> dict[str, Any]:
    """The figures of a trained run. Raises `subprocess.CalledProcessError`."""
    figures = run.with_suffix(".json")
    command = [sys.executable, "-m", "jaxvae.evaluate", str(run), "--samples", str(SAMPLES), "--json", str(figures)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(figures.read_text())
    names = ("log_likelihood", "log_likelihood_standard_error", "elbo", "active_units")
    return {name: found[name] for name in names}


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    about = {
        "machine": machine.processor(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "date": str(datetime.date.today()),
    }
    runs: list[dict[str, Any]] = []

    def write() -> None:
        result = {**about, "flags": dict(FLAGS), "samples": SAMPLES, "runs": runs}
        (HERE / "recipe.json").write_text(json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as directory:
        places = [Path(directory) / str(seed) for seed in range(args.seeds)]
        # All of training first: only that needs a machine that does nothing else.
        for seed, run in enumerate(places):
            runs.append({"seed": seed, "seconds": train(args.data_dir, seed, run)})
            print(json.dumps(runs[-1]), flush=True)
            write()
        for found, run in zip(runs, places, strict=True):
            found.update(evaluate(run))
            print(json.dumps(found), flush=True)
            write()
    for name, values in (
        ("seconds", [run["seconds"] for run in runs]),
        ("nats", [-run["log_likelihood"] for run in runs]),
    ):
        print(f"{name}: {median(values):.2f} ({min(values):.2f}-{max(values):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
