"""How images are read: their size, their channels, and what happens to files that cannot be read."""

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxvae.data.rows import Rows
from jaxvae.errors import InputError
from jaxvae.fields import Resize, Stream

Images: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is done with every image as it is read.

    Attributes:
      image_size: (height, width), or a side for squares; empty: images stay as they are, and must have one size.
      resize: how images of other proportions get this size. crop: the middle of the image, as much of it as fits; pad:
        all of it, with black bars; stretch: all of it, distorted.
      channels: 1 (grey) or 3 (colour). None: 1 if all images are grey, else 3.
      skip_bad: leave out picture files that cannot be read, instead of refusing them.
      stream: whether a .npy file stays on the disk, see `jaxvae.data.rows`. auto: if it would take more than half of
        the free memory.
    """

    image_size: tuple[int, ...] | int = ()
    resize: Resize = "crop"
    channels: int | None = None
    skip_bad: bool = False
    stream: Stream = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size,))

    def check(self, dataset: str) -> None:
        """Raise `InputError` if it asks for what has no effect on images of `dataset`."""
        if not Path(dataset).is_dir():
            self.without_skip_bad(dataset)

    def without_skip_bad(self, dataset: str) -> None:
        """Raise `InputError` if files are to be left out: `dataset` is not a folder of pictures."""
        if self.skip_bad:
            raise InputError(f"--skip-bad has no effect: --dataset {dataset} is not a picture folder")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), or None."""
        assert not isinstance(self.image_size, int)  # See `__post_init__`.
        if not self.image_size:
            return None
        height, width = self.image_size * (2 if len(self.image_size) == 1 else 1)
        return height, width

    def resized(self, image: Any) -> Any:
        """A picture of Pillow, in the size asked for. Antialiased: each pixel averages those that it covers."""
        from PIL import Image, ImageOps

        if self.size is None or image.size == self.size[::-1]:
            return image
        size, method = self.size[::-1], Image.Resampling.BICUBIC
        if self.resize == "crop":
            return ImageOps.fit(image, size, method)
        if self.resize == "pad":
            return ImageOps.pad(image, size, method, color=0)
        return image.resize(size, method)


AS_THEY_ARE = Reading()


def applied(images: Images, reading: Reading, label: object) -> Images:
    """Images of an array, uint8 [N, H, W, C], with the size and the channels asked for.

    Raises:
      InputError: the channels are neither 1 nor 3, but a number of them is asked for.
    """
    from PIL import Image

    _, height, width, channels = images.shape
    wanted = reading.channels or channels
    if (reading.size or (height, width)) == (height, width) and wanted == channels:
        return images
    if isinstance(images, Rows):
        raise InputError(f"{label}: streamed images keep their size and channels; convert the file first")
    if wanted != channels and channels not in (1, 3):
        raise InputError(f"{label}: --channels {wanted} takes images of 1 or 3 channels; these have {channels}")
    new_height, new_width = reading.size or (height, width)
    found = np.empty((len(images), new_height, new_width, wanted), np.uint8)
    for number, image in enumerate(images):
        if wanted != channels:
            picture = Image.fromarray(image[..., 0] if channels == 1 else image)
            image = np.asarray(picture.convert("L" if wanted == 1 else "RGB")).reshape(height, width, wanted)
        # Channel by channel: Pillow would take a fourth for an opacity.
        for channel in range(wanted):
            found[number, ..., channel] = np.asarray(reading.resized(Image.fromarray(image[..., channel])))
    return found


def shape_words(shape: tuple[int, ...]) -> str:
    """Sizes as people write them, height first: "48 x 64"."""
    return " x ".join(map(str, shape))
