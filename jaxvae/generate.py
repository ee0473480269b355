"""Draw images from a trained model: new ones, or from latents: ``python -m jaxvae.generate RUN_DIR``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from jaxvae import cli, compilation_cache, trained, walks
from jaxvae.data.formats import blaming
from jaxvae.data.images import ImageData, with_validation
from jaxvae.errors import InputError, suggestion
from jaxvae.models.build import can_sample
from jaxvae.models.priors import StandardNormal
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.models.vae import VAE
from jaxvae.options import flag
from jaxvae.run import plots
from jaxvae.run.plots import COLUMNS
from jaxvae.run_images import images_of

N = 64  # Images, if it is not said how many.
MOST = {".png": 10_000, ".npy": 1_000_000}  # Images in one file.

FITTED = 50_000  # Most training images that a mixture is fitted to.

DESCRIPTION = """Draw images by a run's newest model, as a PNG grid with 8 images per row, or as an array (--out x.npy).

They are drawn from a VAE's prior, or from a mixture of Gaussians fitted to the latents (--fit-mixture), by which
autoencoders draw images, too; or they are decoded from --latents of a file, on lines between test images
(--interpolate), or from one latent after the other (--traverse)."""


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
    nearest: bool = False
    """Draw the nearest training image below each sample, by the squared error of the pixels."""
    latents: Path | None = None
    """Decode the first -n latents of this file of jaxvae.encode: its array mean [N, L], or its only array."""
    interpolate: bool = False
    """A row for each of -n / 8 random pairs of test images: decoded on the straight line between their latents."""
    traverse: bool = False
    """A row for each of the -n / 8 latents that change most: it goes from -3 to 3, and the others are 0."""
    dataset: str | None = None
    """The dataset of --nearest, --interpolate or --fit-mixture, if its path is not that of training; it must be the
    same images."""
    data_dir: str | None = None
    """Directory of its files, if it is not that of training."""
    out: Path = Path("samples.png")
    """File to write: .png, a grid; or .npy, an array of uint8 [N, H, W, C], which --dataset reads as well."""
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
        raise InputError(f"--label {label}: {run_dir} was trained with neither --condition label nor --prior label")
    mixture = fitted(run, run_dir, fit_mixture, dataset, data_dir) if fit_mixture else None
    if label is None:
        most = min(8 * run.config.classes, MOST[".png"]) if run.config.reads_labels else N
        return run.sample(most if n is None else n, seed, mixture)
    n = N if n is None else n
    return run.sample(n, seed, mixture, label=np.full(n, number_of(label, run)))


def fitted(run: trained.TrainedRun, run_dir: Path, components: int, dataset: str | None, data_dir: str | None) -> Any:
    """`TrainedRun.fit_mixture` to a run's training images, `FITTED` at most. Raises `InputError`."""
    for method in ("encode", "decode"):
        if not hasattr(run.model, method):
            raise InputError(f"--fit-mixture: the model {type(run.model).__name__} has no method {method}")
    if isinstance(run.model, QuantizedVAE):
        raise InputError(f"--fit-mixture: {run_dir} has discrete latents, and a prior of its own for them")
    if run.config.reads_labels and run.config.condition != "label":
        raise InputError("--fit-mixture with --prior label needs --condition label: it fits all classes at once")
    found = images_of(run, run_dir, dataset, data_dir)
    split = with_validation(found, run.config.validation, run.config.validation_seed).split("train")
    some = np.sort(np.random.default_rng(0).permutation(len(split["image"]))[:FITTED])
    examples: dict[str, Any] = {
        name: values[some] for name, values in split.items() if name == "image" or run.config.reads_labels
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


def decode_file(run: trained.TrainedRun, path: Path, n: int) -> NDArray[np.float32]:
    """The images of the first `n` latents in a file. Raises `InputError` if it holds none that fit the model."""
    with blaming(path), path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        arrays = {"mean": found} if isinstance(found, np.ndarray) else dict(found)
    if "mean" not in arrays and len(arrays) != 1:
        raise InputError(f"--latents {path}: holds no array mean: {', '.join(arrays)}")
    latents = np.asarray(arrays.get("mean", next(iter(arrays.values()))))[:n]
    if latents.ndim != 2 or not len(latents) or latents.dtype.kind != "f" or not np.isfinite(latents).all():
        raise InputError(
            f"--latents {path}: must hold finite latents [N, L], not {latents.dtype} {list(latents.shape)}"
        )
    told = {}
    if run.config.reads_labels:
        if "label" not in arrays:
            raise InputError(f"--latents {path}: holds no array label, which the model needs")
        told = {"label": arrays["label"][:n]}
    try:
        return run.decode(latents, **told)
    except ValueError as error:
        raise InputError(f"--latents {path}: {error}") from None


def traversal(run: trained.TrainedRun, n: int, label: str | None) -> NDArray[np.float32]:
    """Rows of 8 images for the latents that change most. Raises `InputError` for a model without a N(0, I) prior."""
    if run.config.model is not None:
        raise InputError(f"--traverse takes built-in VAEs, not {run.config.model}")
    if not isinstance(run.model, VAE) or not isinstance(run.model.prior, StandardNormal):
        raise InputError("--traverse needs a VAE with one layer of latents and --prior normal")
    if label is not None and not run.config.reads_labels:
        raise InputError(f"--label {label}: the model was trained without --condition label")
    told = None
    if run.config.reads_labels:
        told = 0 if label is None else number_of(label, run)
    return walks.traverse(run, max(1, n // COLUMNS), COLUMNS, told)


def between(run: trained.TrainedRun, images: ImageData, n: int, seed: int) -> NDArray[np.float32]:
    """Rows of 8 images between random pairs of test images."""
    split = images.split("test")
    count = 2 * max(1, min(n // COLUMNS, len(images.test) // 2))
    chosen = np.random.default_rng(seed).permutation(len(images.test))[:count]
    labels = split["label"][chosen] if run.config.reads_labels else None
    return walks.interpolations(run, split["image"][chosen], COLUMNS, labels)


def with_nearest(samples: NDArray[np.float32], images: ImageData) -> NDArray[np.uint8]:
    """A picture of samples, each above the nearest training image."""
    return plots.reconstruction_grid(samples, images.train[walks.nearest(samples, images.train)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.generate", description=DESCRIPTION)
    _check(arguments)
    compilation_cache.use(not arguments.no_compilation_cache)
    n, where = N if arguments.n is None else arguments.n, (arguments.dataset, arguments.data_dir)
    if arguments.latents or arguments.traverse or arguments.interpolate:
        run = trained.load_run(arguments.run_dir, arguments.best)
        for method in ("encode", "decode") if arguments.interpolate else ("decode",):
            if not hasattr(run.model, method):
                raise InputError(f"the model {type(run.model).__name__} has no method {method}")
        if arguments.latents is not None:
            images = decode_file(run, arguments.latents, n)
        elif arguments.traverse:
            images = traversal(run, n, arguments.label)
        else:
            images = between(run, images_of(run, arguments.run_dir, *where), n, arguments.seed)
    else:
        images = generate(
            *(arguments.run_dir, arguments.n, arguments.seed, arguments.best, arguments.label),
            *(arguments.fit_mixture, *where),
        )
    if arguments.nearest:
        run = trained.load_run(arguments.run_dir, arguments.best)
        found = images_of(run, arguments.run_dir, *where)
        found = with_validation(found, run.config.validation, run.config.validation_seed)
        picture = with_nearest(images, found)
    with cli.saving("--out", arguments.out):
        if arguments.out.suffix.lower() == ".npy":
            with arguments.out.open("wb") as file:
                np.save(file, plots.as_uint8(images))
        else:
            plots.save_png(arguments.out, picture if arguments.nearest else plots.image_grid(images), scale=2)
    print(f"{len(images)} images -> {arguments.out}")
    return cli.EXIT_OK


def _check(arguments: Arguments) -> None:
    """Raise `InputError` for values out of range, and for flags that have no effect together."""
    kind = arguments.out.suffix.lower()
    if kind not in MOST:
        raise InputError(f"--out {arguments.out}: must end in .png or .npy")
    if arguments.n is not None and not 1 <= arguments.n <= MOST[kind]:
        raise InputError(f"-n must be from 1 to {MOST[kind]:,} for a {kind} file, not {arguments.n}")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed must be in [0, 2^32), not {arguments.seed}")
    if arguments.fit_mixture < 0:
        raise InputError(f"--fit-mixture must be at least 1, not {arguments.fit_mixture}")
    ways = [f"--{name}" for name in ("nearest", "latents", "interpolate", "traverse") if getattr(arguments, name)]
    if len(ways) > 1:
        raise InputError(f"{ways[0]} and {ways[1]} are two pictures: ask for one")
    way = ways[0] if ways else "samples"
    if arguments.label is not None and way in ("--latents", "--interpolate"):
        raise InputError(f"--label has no effect with {way}: its labels are those of the images")
    if arguments.seed and way in ("--latents", "--traverse"):
        raise InputError(f"--seed has no effect with {way}: nothing is drawn")
    if arguments.nearest and kind != ".png":
        raise InputError(f"--nearest draws a picture: --out {arguments.out} must end in .png")
    if arguments.fit_mixture and way not in ("samples", "--nearest"):
        raise InputError(f"--fit-mixture has no effect with {way}: nothing is drawn from it")
    reads_images = way in ("--nearest", "--interpolate") or arguments.fit_mixture
    for name in ("dataset", "data_dir"):
        if getattr(arguments, name) is not None and not reads_images:
            raise InputError(f"{flag(name)} has no effect without --nearest, --interpolate or --fit-mixture")
    cli.check_writable("--out", arguments.out)


if __name__ == "__main__":
    sys.exit(cli.run(main))
