"""Host arrays to pictures: grids of images as PNG, curves of metrics with matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxvae.metrics import TERMS

COLUMNS = 8  # Images to a row, as in the notes.
_GAP = 2  # Pixels between images.
_BACKGROUND = 96  # A dark grey that neither black nor white images vanish into.


def _as_uint8(images: NDArray[Any]) -> NDArray[np.uint8]:
    scaled = images if images.dtype == np.uint8 else np.round(np.clip(images, 0, 1) * 255)
    return scaled.astype(np.uint8, copy=False)


def image_grid(images: NDArray[Any], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Images side by side, `columns` to a row, row by row.

    Args:
      images: [N, H, W, C], uint8 or intensities in [0, 1].
      columns: images in a row.

    Returns:
      One uint8 picture [rows, cols, C], with a gap around each image.
    """
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tall, wide = height + _GAP, width + _GAP
    grid = np.full((rows * tall + _GAP, columns * wide + _GAP, channels), _BACKGROUND, np.uint8)
    for i, image in enumerate(_as_uint8(images)):
        top, left = _GAP + i // columns * tall, _GAP + i % columns * wide
        grid[top : top + height, left : left + width] = image
    return grid


def reconstruction_grid(x: NDArray[Any], x_hat: NDArray[Any], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Rows of images `x` [N, H, W, C], each over the row of their reconstructions `x_hat` [N, H, W, C]."""
    rows = [_as_uint8(a[i : i + columns]) for i in range(0, len(x), columns) for a in (x, x_hat)]
    # A last row that is not full is filled up, or the reconstructions would slide up beside it.
    missing = columns - len(rows[-1])
    blank = np.full((missing, *x.shape[1:]), _BACKGROUND, np.uint8)
    return image_grid(np.concatenate([*rows[:-2], rows[-2], blank, rows[-1], blank]), columns)


def save_png(path: Path, picture: NDArray[np.uint8], scale: int = 1) -> None:
    """Write a picture [rows, cols, C] (C = 1, 3 or 4) as PNG, each pixel drawn `scale` x `scale`."""
    from PIL import Image

    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)


def save_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss and its terms against the step, train and test, a panel a term, as PNG.

    Args:
      path: the file to write.
      records: lines of ``metrics.jsonl``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    terms = [term for term in TERMS if term in records[0]]
    figure = Figure(figsize=(4.5 * len(terms), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        for split, style in (("train", "-"), ("test", "o--")):
            lines = [r for r in records if r["split"] == split and term in r]
            steps = [r["step"] for r in lines]
            axes.plot(steps, [r[term] for r in lines], style, markersize=3, label=split)
        axes.set(title=term, xlabel="step", ylabel=records[0]["unit"])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
