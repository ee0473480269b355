"""Images on the page: PNG files within its HTML, and pictures that people upload or draw."""

import base64
import binascii
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from jaxvae.data.formats import blaming
from jaxvae.data.pictures import checked, opened_stream, picture_of
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError
from jaxvae.run import plots
from jaxvae.typing import ImageShape

MOST_BYTES = 20 * 2**20  # Of a file that is uploaded,
MOST_PIXELS = 50_000_000  # and of the picture in it.
PEN = 0.09  # Width of a stroke, as a part of the drawing's shorter side.


def png(image: NDArray[np.uint8]) -> bytes:
    """An image [H, W, C] as a PNG file. (Of little compression: the page is near.)"""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def element(image: NDArray[np.uint8], says: str) -> str:
    """An image [H, W, C] as HTML, of all the width there is; `says` is what a screen reader says."""
    return html_of(png(image), image.shape[1], image.shape[0], says)


def html_of(file: bytes, width: int, height: int, says: str) -> str:
    """A PNG file as HTML."""
    data = base64.b64encode(file).decode()
    # The size reserves its place, so that nothing moves while it is decoded.
    return (
        f'<img width="{width}" height="{height}" decoding="sync" draggable="false" '
        f'alt="{escape(says)}" src="data:image/png;base64,{data}">'
    )


def row(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [N, H, W, C] side by side, without gaps: [H, N W, C]."""
    return np.concatenate(list(images), axis=1)


def grid(images: NDArray[np.uint8], says: str, columns: int = plots.COLUMNS) -> str:
    """Images [N, H, W, C] in rows, as HTML."""
    return element(plots.image_grid(images, columns), says)


def complaint(error: object) -> str:
    """An error as HTML."""
    return f'<p class="error" role="alert">{escape(str(error))}</p>'


def uploaded(content: str, shape: ImageShape) -> NDArray[np.uint8]:
    """A picture file in base64, hostile perhaps, as an image of the model: its middle, in the model's size.

    Raises:
      InputError: it is too large, or not a picture that `jaxvae.data` reads.
    """
    if len(content) > MOST_BYTES * 4 // 3 + 4:
        raise InputError(f"your file: more than {MOST_BYTES >> 20} MB")
    try:
        file = io.BytesIO(base64.b64decode(content, validate=True))
    except (binascii.Error, ValueError):
        raise InputError("your file: not in base64") from None
    height, width, channels = shape
    reading = Reading((height, width), channels=1 if channels == 1 else 3)
    label = "your file"
    with blaming(label), checked(reading), opened_stream(file, label) as image:
        if image.size[0] * image.size[1] > MOST_PIXELS:
            raise InputError(f"{label}: more than {MOST_PIXELS // 10**6} million pixels")
        image.draft(None, (2 * max(height, width),) * 2)
        found = picture_of(image, reading, label)
    return _opaque(found, channels)


def drawn(strokes: Sequence[tuple[Sequence[float], Sequence[float], str]], shape: ImageShape) -> NDArray[np.uint8]:
    """A drawing as an image [H, W, C] of the model, on black.

    Args:
      strokes: the x and y of each, on the unit square, y upwards; and its colour as ``#rrggbb``.
      shape: (H, W, C).

    Raises:
      ValueError: a stroke is not like that.
    """
    from PIL import Image, ImageDraw

    height, width, channels = shape
    scale = max(1, 256 // max(height, width))  # Drawn larger, so that edges are smooth.
    size = (width * scale, height * scale)
    paper = Image.new("RGB", size)
    pen, thick = ImageDraw.Draw(paper), max(1, round(PEN * min(size)))
    for xs, ys, colour in strokes:
        # Points far outside would take Pillow long.
        path = np.clip(np.stack([np.asarray(xs, np.float64), 1 - np.asarray(ys, np.float64)], axis=1), -1, 2) * size
        points = [(float(x), float(y)) for x, y in path if np.isfinite((x, y)).all()]
        if len(points) > 1:
            pen.line(points, colour, thick, "curve")
        for x, y in points[:1] + points[-1:]:
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), colour)
    small = paper.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    return _opaque(np.asarray(small).reshape(height, width, -1), channels)


def _opaque(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """An image, with a fourth channel if the model has one."""
    if channels != 4:
        return image
    return np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=2)
