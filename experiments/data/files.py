"""Seconds of a whole training from a folder of pictures, beside the same images in an array and beside decoding alone.

    python experiments/data/files.py [--pictures 6000] [--epochs 2] [--rounds 3]

The pictures are blurred noise of 128 x 128, half of them JPEG and half PNG, made in a temporary directory and cropped
to 64 x 64 by jaxvae. Programs are compiled in a warm-up, so the seconds are those of a second start. The ways take
turns. Writes files.json beside this file.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from jaxvae import data, machine

HERE = Path(__file__).parent
SIDE, SIZE = 128, 64
MODELS = {
    "vae": ["--preset", "vae", "--likelihood", "logistic"],
    "conv": ["--preset", "vae", "--likelihood", "logistic", "--architecture", "conv", "--hidden", "32", "64", "128"],
}
RESIZED = ["--image-size", str(SIZE), "--resize", "crop"]


def make(folder: Path, count: int) -> None:
    """Write the pictures."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        picture = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06}.{'jpg' if number % 2 else 'png'}", quality=90)


def command(dataset: Path, model: str, epochs: int, run: Path, cache: Path, more: list[str]) -> float:
    """Train; the seconds from start to end."""
    seldom = ["--image-every", "0", "--checkpoint-every", "0", "--validation", "0.05"]
    flags = ["--dataset", str(dataset), *MODELS[model], "--epochs", str(epochs), *seldom, "--run-dir", str(run), *more]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jaxvae.train", *flags], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        pictures, cache, array = place / "pictures", place / "cache", place / "array.npz"
        pictures.mkdir()
        make(pictures, args.pictures)
        reading = data.Reading((SIZE, SIZE), "crop")

        def decode() -> data.ImageData:
            return data.load(str(pictures), None, reading)

        images = decode()
        np.savez(array, train=images.train, test=images.test)
        ways: dict[str, tuple[Path, list[str]]] = {
            "array": (array, []),
            "folder, in memory": (pictures, [*RESIZED, "--stream", "never"]),
            "folder, decoded into a file": (pictures, [*RESIZED, "--stream", "always"]),
            "the same, again": (pictures, [*RESIZED, "--stream", "always"]),
        }
        for number in range(-1, args.rounds):
            start = time.perf_counter()
            decode()
            found = {"decoding alone": time.perf_counter() - start}
            for model in MODELS:
                for way, (dataset, more) in ways.items():
                    if way.endswith("file"):
                        shutil.rmtree(cache / "jaxvae-pictures", ignore_errors=True)
                    run = place / f"{model}-{number}-{way}"
                    epochs = args.epochs if number >= 0 else 1  # The first round compiles.
                    found[f"{model}: {way}"] = command(dataset, model, epochs, run, cache, more)
            if number >= 0:
                for name, value in found.items():
                    seconds.setdefault(name, []).append(value)
            print({name: round(value, 1) for name, value in found.items()}, flush=True)
    about: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "machine": machine.processor(),
        "jax": version("jax"),
        "pictures": args.pictures,
        "epochs": args.epochs,
    }
    (HERE / "files.json").write_text(json.dumps({**about, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    for model in MODELS:
        for way in [*ways][1:]:
            each = zip(seconds[f"{model}: {way}"], seconds[f"{model}: array"], seconds["decoding alone"], strict=True)
            ratios = [mine / max(array, args.epochs * decoding) for mine, array, decoding in each]
            spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"{model}: {way}: {spread} of the larger of training and decoding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
