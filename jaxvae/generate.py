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
from jaxvae.errors import InputError, suggestion
from jaxvae.models.build import can_sample
from jaxvae.run import plots

N = 64  # Images, if it is not said how many.
MOST = 10_000  # Images in one picture.

DESCRIPTION = "Draw images from the prior of a run's newest VAE, as a PNG grid with 8 images per row."


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Images to draw. Default: 64; of a conditional model without --label, 8 of each class, a row each."""
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS")] = None
    """Draw images of this class, a number or a name, from a conditional model."""
    out: Path = Path("samples.png")
    """PNG file to write."""
    seed: int = 0
    """Seed of the draws: another seed gives other images."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def generate(
    run_dir: Path, n: int | None = None, seed: int = 0, best: bool = False, label: str | None = None
) -> NDArray[np.float32]:
    """`n` images [n, H, W, C], intensities in [0, 1], from a run's newest checkpoint (or its best).

    Args:
      run_dir: of the run.
      n: how many. None: 64; or, of a conditional model without `label`, 8 of each class, in their order.
      seed: of the draws.
      best: the best checkpoint by the validation images.
      label: the class to draw, a number or a name. Only for a conditional model.

    Raises:
      InputError: no run, an unreadable checkpoint, no such class, or an autoencoder, which has no prior.
    """
    run = trained.load_run(run_dir, best)
    if not can_sample(run.model):
        why = "no method sample(count)" if run.config.model else "no prior to draw from: it is an autoencoder"
        raise InputError(f"{run_dir}: the model has {why}")
    if label is not None and not run.config.reads_labels:
        raise InputError(f"--label {label}: {run_dir} was trained without --condition label and --prior label")
    if label is None:
        most = min(8 * run.config.classes, MOST) if run.config.reads_labels else N
        return run.sample(most if n is None else n, seed)
    n = N if n is None else n
    return run.sample(n, seed, label=np.full(n, number_of(label, run)))


def number_of(label: str, run: trained.TrainedRun) -> int:
    """The number of a class, by its name, or by that number if no name is one. Raises `InputError`."""
    names: list[str] = run.record.get("classes", [])
    if label in names:
        return names.index(label)
    number = int(label) if label.isascii() and label.isdigit() and len(label) < 9 else -1
    if 0 <= number < run.config.classes and not any(name.isdigit() for name in names):
        return number
    known = ", ".join(names[:20]) if names else f"0 to {run.config.classes - 1}"
    raise InputError(f"--label {label}: the classes are {known}{suggestion(label, names)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.generate", description=DESCRIPTION)
    if arguments.n is not None and not 1 <= arguments.n <= MOST:
        raise InputError(f"-n must be from 1 to {MOST}, not {arguments.n}")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed must be in [0, 2^32), not {arguments.seed}")
    if arguments.out.suffix.lower() != ".png":
        raise InputError(f"--out {arguments.out}: must end in .png")
    cli.check_writable("--out", arguments.out)
    compilation_cache.use(not arguments.no_compilation_cache)
    images = generate(arguments.run_dir, arguments.n, arguments.seed, arguments.best, arguments.label)
    plots.save_png(arguments.out, plots.image_grid(images), scale=2)
    print(f"{len(images)} images -> {arguments.out}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
