"""Draw new images from a trained VAE: ``python -m jaxvae.generate RUN_DIR``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from jaxvae import cli, compilation_cache, trained
from jaxvae.errors import InputError
from jaxvae.models.build import can_sample
from jaxvae.run import plots

MOST = 10_000  # Images in one picture.

DESCRIPTION = "Draw images from the prior of a run's newest VAE, as a PNG grid with 8 images per row."


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Images to draw."""
    out: Path = Path("samples.png")
    """PNG file to write."""
    seed: int = 0
    """Seed of the draws: another seed gives other images."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def generate(run_dir: Path, n: int, seed: int = 0, best: bool = False) -> NDArray[np.float32]:
    """`n` images [n, H, W, C], intensities in [0, 1], from a run's newest checkpoint (or its best).

    Raises:
      InputError: no run, an unreadable checkpoint, or an autoencoder, which has no prior.
    """
    run = trained.load_run(run_dir, best)
    if not can_sample(run.model):
        why = "no method sample(count)" if run.config.model else "no prior to draw from: it is an autoencoder"
        raise InputError(f"{run_dir}: the model has {why}")
    return run.sample(n, seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.generate", description=DESCRIPTION)
    if not 1 <= arguments.n <= MOST:
        raise InputError(f"-n must be from 1 to {MOST}, not {arguments.n}")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed must be in [0, 2^32), not {arguments.seed}")
    if arguments.out.suffix.lower() != ".png":
        raise InputError(f"--out {arguments.out}: must end in .png")
    cli.check_writable("--out", arguments.out)
    compilation_cache.use(not arguments.no_compilation_cache)
    images = generate(arguments.run_dir, arguments.n, arguments.seed, arguments.best)
    plots.save_png(arguments.out, plots.image_grid(images), scale=2)
    print(f"{arguments.n} images -> {arguments.out}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
