"""Say what a dataset holds, before anyone trains on it: ``python -m jaxvae.data PATH_OR_NAME``."""

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxvae import cli, memory
from jaxvae.config import Config
from jaxvae.data.images import ImageData, in_words, prepared, reading_of, usual_batch_size
from jaxvae.data.pictures import checked, headers
from jaxvae.data.reading import Reading, shape_words
from jaxvae.data.rows import Rows
from jaxvae.data.sources import is_named, is_picture_folder, load_for
from jaxvae.errors import InputError, one_line
from jaxvae.fields import Resize, Stream
from jaxvae.options import flag
from jaxvae.run import plots

DESCRIPTION = """Say what a dataset holds: images, sizes, values, files that cannot be read, and how to train on it.

The flags are those of jaxvae.train."""

BINS = 8  # Of the histogram of values.
BAR = 40  # Its longest line.
LISTED = 10  # Files that were left out.
SMALL_SIDE = 28  # Up to this size, dense layers do well.
PHOTO_LATENTS = 64  # Larger images need more latents.
PICTURES = 50  # Epochs after which the proposed command writes pictures, if there are many.
LEAST_STEPS = 3000  # Of the command that it proposes: an epoch of a small set has few.


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which images."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A name, such as mnist, a .npy/.npz file, or a folder of pictures or arrays."""
    data_dir: str | None = None
    """Directory of the files of a dataset with a name."""
    image_size: tuple[int, ...] = ()
    """Height and width of all images, or one number for squares."""
    resize: Resize = "crop"
    """How --image-size is reached."""
    channels: int | None = None
    """1: grey, 3: colour."""
    skip_bad: bool = False
    """Leave out picture files that cannot be read."""
    stream: Stream = "auto"
    """Whether training brings images to the device block by block: always, never, or auto: if they do not fit."""
    out: Path | None = None
    """PNG file to write: some images, as training sees them."""


def lines(images: ImageData, config: Config) -> Iterator[str]:
    """What there is to say about the images of a run of `config`."""
    yield f"{images.name} ({images.source})"
    yield in_words(prepared(images, config))
    yield place(images, config)
    if not is_named(images.name) and is_picture_folder(Path(images.name)):
        yield from kinds(Path(images.name), reading_of(config))
    yield from classes(images)
    for reason in images.skipped[:LISTED]:
        yield f"left out: {reason}"
    if len(images.skipped) > LISTED:
        yield f"left out: {len(images.skipped) - LISTED} more"
    yield "values of the training images:"
    # Image by image: counting makes a copy of eight times the size.
    counts = sum((np.bincount(image.reshape(-1), minlength=256) for image in images.train), np.zeros(256, np.int64))
    width = 256 // BINS
    for start, part in zip(range(0, 256, width), counts.reshape(BINS, width).sum(1) / counts.sum(), strict=True):
        yield f"  {start:3}-{start + width - 1:3} {part:6.1%} {'#' * round(BAR * part)}".rstrip()
    binary = set(np.flatnonzero(counts)) <= {0, 255}
    if binary:
        inputs = _binary_inputs(images)
        yield f"all are 0 or 255: with --inputs {inputs}, --preset vae gives the probability of an image"
    else:
        yield "they have values besides 0 and 255: --likelihood logistic gives the probability of an image"
    yield f"to train: {shlex.join(command(images, config, binary))}"


def place(images: ImageData, config: Config) -> str:
    """The memory that the images take while a run of `config` trains, and where."""
    size = memory.in_words(images.nbytes)
    if isinstance(images.train, Rows):
        return f"{size} on the disk; training streams them from there"
    if config.stream == "always":
        return f"{size} in main memory; training streams them from there"
    return f"{size} on every device while it trains" + (
        "; if that does not fit, they are streamed from main memory" if config.stream == "auto" else ""
    )


def kinds(folder: Path, reading: Reading) -> Iterator[str]:
    """How many picture files of a folder have which mode and size, by their headers."""
    modes, sizes = Counter[str](), Counter[str]()
    with checked(reading):
        for header in headers(folder):
            modes[header.mode] += 1
            sizes[shape_words(header.size)] += 1
    yield f"modes of the files (Pillow's): {_most_common(modes)}"
    yield f"sizes of the files, height x width: {_most_common(sizes)}"


def _most_common(counts: Counter[str]) -> str:
    named = [f"{name} ({count:,})" for name, count in counts.most_common(LISTED)]
    return ", ".join(named) + (f", ... ({len(counts):,} in all)" if len(counts) > LISTED else "")


def classes(images: ImageData) -> Iterator[str]:
    """How many training and test images each class has."""
    splits = [images.split(name).get("label") for name in ("train", "validation", "test")]
    found = [labels for labels in splits if labels is not None and labels.ndim == 1 and labels.dtype.kind in "biu"]
    if not found:
        return
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    named = [
        f"{images.classes[value] if images.classes else value} {count:,}"
        for value, count in zip(values[:LISTED], counts, strict=False)
    ]
    yield f"{len(values)} classes: {', '.join(named)}{', ...' if len(values) > LISTED else ''}"
    yield "--condition label trains a model that draws the class you ask for"


def command(images: ImageData, config: Config, binary: bool) -> list[str]:
    """A command that trains on the images, to begin with."""
    words = ["python", "-m", "jaxvae.train", "--preset", "vae", "--dataset", images.name]
    for name in ("data_dir", "image_size", "resize", "channels", "stream"):
        value = getattr(config, name)
        if value != getattr(Config("vae"), name):
            words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    words += ["--skip-bad"] if config.skip_bad else []
    words += ["--inputs", _binary_inputs(images)] if binary else []
    height, width, channels = images.image_shape
    if max(height, width) > SMALL_SIDE or channels > 1:
        words += ["--architecture", "conv", "--latent-size", str(PHOTO_LATENTS)]
    words += [] if binary else ["--likelihood", "logistic"]
    words += [] if config.validation else ["--validation", "0"]
    count = len(images.train) - round(config.validation * len(images.train))
    batch_size = min(config.batch_size, usual_batch_size(count))
    if batch_size != config.batch_size:
        words += ["--batch-size", str(batch_size)]
    epochs = -(-LEAST_STEPS // (count // batch_size))
    if epochs > config.epochs:
        words += ["--epochs", str(epochs)]
    if epochs > 2 * PICTURES:
        words += ["--image-every", str(epochs // PICTURES)]
    return words


def _binary_inputs(images: ImageData) -> str:
    """The value of ``--inputs`` that says that pixels are 0 or 1. Static ones are drawn in memory."""
    return "dynamic" if isinstance(images.train, Rows) else "static"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    given = cli.parse(Arguments, args, prog="python -m jaxvae.data", description=DESCRIPTION)
    if given.out is not None:
        if given.out.suffix.lower() != ".png":
            raise InputError(f"--out {given.out}: must end in .png")
        cli.check_writable("--out", given.out)
    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given) if field.name != "out"}
    config = Config("vae", **values)
    images = load_for(config)
    if not round(config.validation * len(images.train)):  # Too few to hold one out.
        config = dataclasses.replace(config, validation=0.0)
    for line in lines(images, config):
        print(one_line(line))
    if given.out is not None:
        plots.save_png(given.out, plots.overview(images.train))
        print(one_line(f"some training images -> {given.out}"))
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
