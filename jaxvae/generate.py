"""Draw new images from a trained VAE: ``python -m jaxvae.generate RUN_DIR``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from jaxvae import cli, compilation_cache, data, trained
from jaxvae.errors import InputError, suggestion
from jaxvae.models.build import can_sample
from jaxvae.options import flag
from jaxvae.run import plots

N = 64  # Images, if it is not said how many.
MOST = 10_000  # Images in one picture.

FITTED = 50_000  # Most training images that a mixture is fitted to.

DESCRIPTION = (
    "Draw images from a run's newest VAE, as a PNG grid with 8 images per row; with --fit-mixture, from an "
    "autoencoder, too."
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Images to draw. Default: 64; of a conditional model without --label, 8 of each class, a row each."""
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS")] = None
    """Draw images of this class, a number or a name, from a conditional model."""
    fit_mixture: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Draw latents from a mixture of N Gaussians, fitted to those of the training images, not from the prior."""
    dataset: str | None = None
    """The dataset for --fit-mixture, if its path is not that of training."""
    data_dir: str | None = None
    """Directory of its files, if it is not that of training."""
    out: Path = Path("samples.png")
    """PNG file to write."""
    seed: int = 0
    """Seed of the draws: another seed gives other images."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def generate(
    run_dir: Path,
    n: int | None = None,
    seed: int = 0,
    best: bool = False,
    label: str | None = None,
    fit_mixture: int = 0,
    dataset: str | None = None,
    data_dir: str | None = None,
) -> NDArray[np.float32]:
    """`n` images [n, H, W, C], intensities in [0, 1], from a run's newest checkpoint (or its best).

    Args:
      run_dir: of the run.
      n: how many. None: 64; or, of a conditional model without `label`, 8 of each class, in their order.
      seed: of the draws.
      best: the best checkpoint by the validation images.
      label: the class to draw, a number or a name. Only for a conditional model.
      fit_mixture: Gaussians of a mixture that latents are drawn from (`TrainedRun.fit_mixture`); 0: from the prior.
      dataset, data_dir: where the images for that are, if not where they were in training.

    Raises:
      InputError: no run, an unreadable checkpoint, no such class, or an autoencoder without `fit_mixture`.
    """
    run = trained.load_run(run_dir, best)
    if not fit_mixture and not can_sample(run.model):
        none = "no prior to draw from: it is an autoencoder; --fit-mixture 10 fits one to its codes"
        raise InputError(f"{run_dir}: the model has {'no method sample(count)' if run.config.model else none}")
    if label is not None and not run.config.reads_labels:
        raise InputError(f"--label {label}: {run_dir} was trained without --condition label and --prior label")
    mixture = fitted(run, run_dir, fit_mixture, dataset, data_dir) if fit_mixture else None
    if label is None:
        most = min(8 * run.config.classes, MOST) if run.config.reads_labels else N
        return run.sample(most if n is None else n, seed, mixture)
    n = N if n is None else n
    return run.sample(n, seed, mixture, label=np.full(n, number_of(label, run)))


def fitted(run: trained.TrainedRun, run_dir: Path, components: int, dataset: str | None, data_dir: str | None) -> Any:
    """`TrainedRun.fit_mixture` to a run's training images, `FITTED` at most. Raises `InputError`."""
    named, folder = dataset or run.config.dataset, data_dir or run.config.data_dir
    if named == data.GIVEN:
        raise InputError(
            f"--fit-mixture: {run_dir} was trained on data given in Python: name a --dataset with the same images, or "
            "use run.fit_mixture(images) and run.sample(mixture=...)"
        )
    for method in ("encode", "decode"):
        if not hasattr(run.model, method):
            raise InputError(f"--fit-mixture: the model {type(run.model).__name__} has no method {method}")
    found = data.load(named, folder, data.reading_of(run.config), labels=run.config.reads_labels)
    split = data.prepared(found, run.config).split("train")
    if list(split["image"].shape[1:]) != list(run.image_shape):
        raise InputError(f"--fit-mixture: {found.source}: not the images of {run_dir}")
    examples: dict[str, Any] = {
        name: values[:FITTED] for name, values in split.items() if name == "image" or run.config.reads_labels
    }
    images = examples.pop("image")
    if components > len(images):
        raise InputError(f"--fit-mixture {components} is more than the {len(images):,} training images")
    return run.fit_mixture(images, components, **examples)


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
    if arguments.fit_mixture < 0:
        raise InputError(f"--fit-mixture must be at least 1, not {arguments.fit_mixture}")
    for name in ("dataset", "data_dir"):
        if getattr(arguments, name) is not None and not arguments.fit_mixture:
            raise InputError(f"{flag(name)} has no effect: it needs --fit-mixture")
    if arguments.out.suffix.lower() != ".png":
        raise InputError(f"--out {arguments.out}: must end in .png")
    cli.check_writable("--out", arguments.out)
    compilation_cache.use(not arguments.no_compilation_cache)
    given = {name: value for name, value in vars(arguments).items() if name not in ("out", "no_compilation_cache")}
    images = generate(**given)
    plots.save_png(arguments.out, plots.image_grid(images), scale=2)
    print(f"{len(images)} images -> {arguments.out}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
