"""Write the latents of images: ``python -m jaxvae.encode RUN_DIR DATA --out latents.npz``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from jaxvae import cli, compilation_cache, data
from jaxvae.config import describe
from jaxvae.data.images import SPLITS, ImageData, as_seen, reading_of
from jaxvae.data.pictures import pictures_of
from jaxvae.data.reading import shape_words
from jaxvae.data.sources import is_picture_folder
from jaxvae.errors import InputError
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.plane import plane_of
from jaxvae.run import plots
from jaxvae.trained import TrainedRun, load_run

DESCRIPTION = """Encode images by a run's newest model. The file holds these arrays, as far as there are any:

mean [N, L], the posterior's means, or an autoencoder's codes; std [N, L]; codes [N, rows, columns] of discrete
latents; label [N]; classes, the names of the labels;
split [N], "train", "validation" or "test", of a dataset with splits; name [N], the paths of pictures in a folder."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which images, and where to."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A name, such as mnist, a .npy or .npz file, or a folder of pictures or arrays."""
    data_dir: str | None = None
    """Directory of the files of a dataset with a name. Default: that of training, if it is the same dataset."""
    out: Path | None = None
    """.npz file to write the latents to."""
    map: Path | None = None
    """PNG file to draw the latents to, coloured by label: the two latents, or the first two principal components."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def encode(run: TrainedRun, dataset: str, data_dir: str | None = None) -> dict[str, NDArray[Any]]:
    """The latents of all images of a dataset, and what is known of the images: see `DESCRIPTION`.

    The rows are in the order of the file or of the paths; of a dataset with splits, the training images come first.

    Raises:
      InputError: the images cannot be read, or have no labels, or others, for a model that takes labels.
    """
    if run.config.parts.model is not None and not hasattr(run.model, "encode"):
        raise InputError(f"the model {type(run.model).__name__} has no method encode")
    images, files = _read(run, dataset, data_dir)
    if images.image_shape != run.image_shape:
        sizes = f"{shape_words(images.image_shape)}, not {shape_words(run.image_shape)}"
        raise InputError(f"{images.source}: the images are {sizes} as those of the run")
    if run.config.reads_labels:
        images = _labelled_as_trained(run, images)
        data.for_run(run.config, images)  # It checks the labels.
    splits = {name: images.split(name) for name in SPLITS if len(getattr(images, name))}
    parts = {name: _encoded(run, split) for name, split in splits.items()}
    if not images.whole:
        parts = {name: {**part, "split": np.full(len(part["mean"]), name)} for name, part in parts.items()}
    found = {name: np.concatenate([part[name] for part in parts.values()]) for name in next(iter(parts.values()))}
    if images.whole and len(parts) > 1:
        found = {name: _in_order(values) for name, values in found.items()}
    if images.classes:
        found["classes"] = np.array(images.classes)
    return found | ({"name": np.array(files)} if files else {})


def _read(run: TrainedRun, dataset: str, data_dir: str | None) -> tuple[ImageData, list[str]]:
    """The images, as the model sees them, and the paths of pictures."""
    height, width, channels = run.image_shape
    pictures = dataset not in data.DATASETS and is_picture_folder(Path(dataset))
    reading = dataclasses.replace(
        reading_of(run.config),
        image_size=(height, width),
        channels=channels if channels in (1, 3) else None,
        skip_bad=run.config.skip_bad and pictures,
    )
    if pictures:
        found = pictures_of(Path(dataset), reading)
        others = {} if found.labels is None else {"train": {"label": found.labels}}
        images = ImageData(
            dataset, found.source, found.images, found.images[:0], others=others, classes=found.classes, whole=True
        )
        return as_seen(images, run.config), found.files
    if data_dir is None and dataset == run.config.dataset:
        data_dir = run.config.data_dir
    try:
        images = data.load(dataset, data_dir, reading, labels=True)
    except InputError:
        if run.config.reads_labels:
            raise
        images = data.load(dataset, data_dir, reading)  # There may be no files of labels.
    return as_seen(images, run.config), []


def _labelled_as_trained(run: TrainedRun, images: ImageData) -> ImageData:
    """The images, with the labels that the classes of these names had in training.

    A source numbers its own classes, and may not have all of them. Raises `InputError` for others.
    """
    known, names = run.record.get("classes", []), list(images.classes)
    if not names or names == known:
        return images
    numbers = {name: number for number, name in enumerate(known)}
    if not known:  # It was trained with numbers.
        numbers = {name: int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 9}
    if unknown := [name for name in names if name not in numbers]:
        of = ", ".join(known[:20]) or f"0 to {run.config.classes - 1}"
        raise InputError(f"{images.source}: the run knows no class {unknown[0]}: its classes are {of}")
    table = np.array([numbers[name] for name in names])
    others = {
        split: {**arrays, "label": table[arrays["label"]]} if "label" in arrays else arrays
        for split, arrays in images.others.items()
    }
    return dataclasses.replace(images, others=others, classes=tuple(known))


def _encoded(run: TrainedRun, split: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    label = {"label": split["label"]} if "label" in split else {}
    told = label if run.config.reads_labels else {}
    if isinstance(run.model, QuantizedVAE):
        return {"mean": run.encode(split["image"], **told), "codes": run.codes(split["image"], **told), **label}
    if run.has_deviation:
        mean, std = run.posterior(split["image"], **told)
        return {"mean": mean, "std": std, **label}
    return {"mean": run.encode(split["image"], **told), **label}


def _in_order(values: NDArray[Any]) -> NDArray[Any]:
    """Rows of training images, then of test images, in the order of the set that every tenth was held out of."""
    places = np.arange(len(values))
    test = places % 10 == 9
    ordered = np.empty_like(values)
    ordered[~test], ordered[test] = values[: (~test).sum()], values[(~test).sum() :]
    return ordered


def draw_map(path: Path, found: dict[str, NDArray[Any]], title: str) -> None:
    """Draw latents as points of a plane, as PNG. Raises `InputError` if there are fewer than two latents."""
    mean = found["mean"].reshape(len(found["mean"]), -1)
    if mean.shape[1] < 2 or len(mean) < 3:
        raise InputError(f"--map needs at least 2 latents and 3 images, not {mean.shape[1]} and {len(mean)}")
    plane, classes = plane_of(mean), found.get("classes", np.array([])).tolist()
    plots.save_map(path, plane.places(mean), found.get("label"), classes, plane.names, title)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.encode", description=DESCRIPTION)
    if arguments.out is None and arguments.map is None:
        raise InputError("name a file to write: --out latents.npz, or --map map.png")
    for flag, path, suffix in (("--out", arguments.out, ".npz"), ("--map", arguments.map, ".png")):
        if path is not None:
            if path.suffix.lower() != suffix:
                raise InputError(f"{flag} {path}: must end in {suffix}")
            cli.check_writable(flag, path)
    compilation_cache.use(not arguments.no_compilation_cache)
    run = load_run(arguments.run_dir, arguments.best)
    if arguments.map is not None and getattr(run.model, "latent_size", 2) < 2:
        raise InputError("--map needs at least 2 latents, and the model has one")
    found = encode(run, arguments.dataset, arguments.data_dir)
    count = f"{len(found['mean']):,} images"
    if arguments.out is not None:
        arrays: dict[str, Any] = found
        with cli.saving("--out", arguments.out), arguments.out.open("wb") as file:
            np.savez(file, **arrays)
        held = ", ".join(f"{name} {list(values.shape)}" for name, values in found.items())
        print(f"{count}: {held} -> {arguments.out}")
    if arguments.map is not None:
        title = f"{describe(run.config)}: latents of {count} of {Path(arguments.dataset).name}"
        with cli.saving("--map", arguments.map):
            draw_map(arguments.map, found, title)
        print(f"map of {count} -> {arguments.map}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
