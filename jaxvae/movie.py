"""A movie of a run's training: ``python -m jaxvae.movie RUN_DIR``."""

import dataclasses
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from jaxvae import cli, config_file, data
from jaxvae.errors import InputError
from jaxvae.plane import plane_of
from jaxvae.run import directory as run_dirs

DESCRIPTION = """Make a GIF of the pictures that a run wrote while it trained: samples, reconstructions, and a map of
the latents of held-out images, with a frame for each time that it drew. A run that is still training will do."""

MOST_FRAMES = 200  # Of a movie; of more pictures, as many are taken, evenly spread.
MAP_SIDE = 240  # Of the map of latents, in pixels.
GAP = 8  # Pixels between the parts of a frame.
BACKGROUND = 24  # A dark grey, on which all colours are seen.
LAST_SECONDS = 2.0  # The last frame stays.


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to show."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    out: Path | None = None
    """GIF file to write. Default: the name of the run directory, with .gif."""
    seconds: float = 8.0
    """How long the movie takes."""


def epochs_of(run_dir: Path) -> dict[int, dict[str, Path]]:
    """The files in a run's `images`, by epoch and kind ("samples", "reconstructions", "latents")."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted((run_dir / "images").glob("*_epoch_*")):
        if match := re.fullmatch(r"(samples|reconstructions|latents)_epoch_(\d+)\.(png|npz)", path.name):
            found.setdefault(int(match[2]), {})[match[1]] = path
    return dict(sorted(found.items()))


def frames_of(run_dir: Path) -> list[NDArray[np.uint8]]:
    """The frames of a movie, [H, W, 3] each: the run's pictures as they are, side by side, and the map of latents.

    Raises:
      InputError: the run drew nothing yet, or a file cannot be read.
    """
    epochs = epochs_of(run_dir)
    if not epochs:
        raise InputError(f"{run_dir}: there are no pictures of epochs in {run_dir / 'images'}")
    chosen = [
        list(epochs)[i] for i in np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_FRAMES)).round().astype(int)
    ]
    try:
        files = {epoch: epochs[epoch]["latents"] for epoch in chosen if "latents" in epochs[epoch]}
        maps = latent_maps(files, held_out_labels(run_dir) if files else None)
        frames = []
        for epoch in chosen:
            pictures = [
                _picture(epochs[epoch][kind]) for kind in ("samples", "reconstructions") if kind in epochs[epoch]
            ]
            frames.append(_beside([*pictures, *([maps[epoch]] if epoch in maps else [])]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{run_dir / 'images'}: a picture cannot be read: {error}") from None
    height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
    return [_padded(frame, height, width) for frame in frames]


def held_out_labels(run_dir: Path) -> NDArray[Any] | None:
    """The labels of the images that a run evaluates while it trains, of a dataset with a name.

    Such a dataset has them in files of its own, which a run need not read; with other images, labels are in the run's
    own files. None if they cannot be read: the colours of a map are not worth an error.
    """
    config = config_file.load(run_dir / "config.json", to_use=True)
    if config.dataset not in data.DATASETS:
        return None
    try:
        images = data.load(config.dataset, config.data_dir, data.reading_of(config), labels=True)
        images = data.prepared(images, dataclasses.replace(config, inputs="grey"))
    except InputError:
        return None
    return images.split("validation" if len(images.validation) else "test").get("label")


def latent_maps(files: Mapping[int, Path], labels: NDArray[Any] | None = None) -> dict[int, NDArray[np.uint8]]:
    """Maps of latents [MAP_SIDE, MAP_SIDE, 3], on the same axes for all epochs, coloured by label if there are labels.

    Two latents are the axes themselves. Of more, the axes are the first two principal components of the latents of all
    epochs together.

    Args:
      files: what a run saved of its latents, by epoch.
      labels: of the images in order, where the files have none; there may be more.
    """
    if not files:
        return {}
    saved = {}
    for epoch, path in files.items():
        with np.load(path) as file:
            saved[epoch] = dict(file)
    latents = {epoch: np.asarray(arrays["latent"], np.float64) for epoch, arrays in saved.items()}
    together = np.concatenate(list(latents.values()))
    plane = plane_of(together)
    points = {epoch: plane.places(values) for epoch, values in latents.items()}
    reach = max(np.quantile(np.abs(np.concatenate(list(points.values()))), 0.995), 1e-6)
    unknown = np.zeros(len(together), int) if labels is None else labels
    return {epoch: _map(values / reach, saved[epoch].get("label", unknown)) for epoch, values in points.items()}


def _map(points: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Points [N, 2] within +-1 as squares of 3 x 3 pixels; those beyond are at the edge."""
    from matplotlib import colormaps

    colours = np.round(255 * np.array(colormaps["tab10"].colors)).astype(np.uint8)  # type: ignore[attr-defined]
    picture = np.full((MAP_SIDE, MAP_SIDE, 3), BACKGROUND, np.uint8)
    places = np.round((np.clip(points, -1, 1) * 0.98 + 1) / 2 * (MAP_SIDE - 3)).astype(int)
    for (x, y), label in zip(places, labels, strict=False):
        top = MAP_SIDE - 3 - y
        picture[top : top + 3, x : x + 3] = colours[int(label) % len(colours)]
    return picture


def _picture(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))[::2, ::2]  # It was drawn with each pixel twice as large.


def _beside(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    height = max(part.shape[0] for part in parts)
    padded = [_padded(part, height, part.shape[1] + GAP * (place < len(parts) - 1)) for place, part in enumerate(parts)]
    return np.concatenate(padded, axis=1)


def _padded(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    below, right = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=BACKGROUND)


def save_gif(path: Path, frames: Sequence[NDArray[np.uint8]], seconds: float) -> None:
    """Write frames [H, W, 3] as a GIF that is shown again and again, `seconds` long."""
    from PIL import Image

    # One palette for all frames, from the last one, which has the most to show.
    # Pillow's usual choice, the median cut, gives rare colours away, such as those of the points of a map.
    palette = Image.fromarray(frames[-1]).quantize(256, Image.Quantize.MAXCOVERAGE, 2, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    each = max(20, round(1000 * seconds / len(frames)))  # Browsers slow down what is faster.
    durations = [each] * (len(frames) - 1) + [round(1000 * LAST_SECONDS)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    given = cli.parse(Arguments, args, prog="python -m jaxvae.movie", description=DESCRIPTION)
    out = given.out or Path(f"{given.run_dir.absolute().name}.gif")
    if out.suffix.lower() != ".gif":
        raise InputError(f"--out {out}: must end in .gif")
    if not 0 < given.seconds <= 600:
        raise InputError(f"--seconds must be above 0, and 600 at most, not {given.seconds:g}")
    run_dirs.require(given.run_dir)
    frames = frames_of(given.run_dir)
    cli.check_writable("--out", out)
    save_gif(out, frames, given.seconds)
    print(f"{len(frames)} frames -> {out}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
