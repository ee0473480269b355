"""Small runs of many kinds to explore, and a page of them in a process of its own."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from runs import environment, train

Runs = Callable[[str], Path]
SMALL = ["--batch-size", "16", "--learning-rate", "0.01"]
RUNS = {
    "vae": ["--preset", "vae", "--hidden", "8", "--latent-size", "8"],
    "label": ["--preset", "vae", "--hidden", "8", "--latent-size", "2", "--condition", "label"],
    "prior": ["--preset", "vae", "--hidden", "8", "--latent-size", "3", "--prior", "label"],
    "ae": ["--preset", "notes-ae"],
    "two-layer": ["--preset", "iwae", "--architecture", "two-layer", "--samples", "2", "--hidden", "8", "4",
                  "--latent-size", "2", "--inputs", "grey"],
    "conv": ["--preset", "vae", "--architecture", "conv", "--hidden", "4", "--inputs", "static"],
    "colour": ["--preset", "vae", "--hidden", "8", "--latent-size", "3", "--channels", "3"],
    "fsq": ["--preset", "fsq", "--hidden", "8", "--levels", "4", "3", "--code-prior-layers", "1",
            "--code-prior-width", "8"],
    "vamp": ["--preset", "vamp", "--hidden", "8", "--latent-size", "3", "--pseudo-inputs", "5"],
}  # fmt: skip


def runs_in(folder: Path, images: NDArray[np.uint8]) -> Runs:
    """Gives the run of `RUNS` with a name: of 64 training and 32 test images of 6 x 5 in three classes."""
    data = {"x_train": images[:64], "x_test": images[64:], "y_train": np.arange(64) % 3, "y_test": np.arange(32) % 3}
    np.savez(folder / "images.npz", **data)

    def run(name: str) -> Path:
        if not (folder / name).exists():
            flags = [*RUNS[name], *SMALL, "--dataset", str(folder / "images.npz"), "--epochs", "3"]
            assert train(*flags, "--run-dir", str(folder / name)) == 0
        return folder / name

    return run


@contextlib.contextmanager
def served(*words: str | Path) -> Iterator[str]:
    """The address of a page, in a process of its own.

    Args:
      words: run directories and flags of `jaxvae.explore`.
    """
    command = [sys.executable, "-m", "jaxvae.explore", *map(str, words)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    assert found is not None
    try:
        yield found[0]
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
