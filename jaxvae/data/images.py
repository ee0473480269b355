"""The images of a run: splits of uint8 arrays, and the digests that identify them."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from jaxvae.config import Config
from jaxvae.data.reading import Images, Reading, applied, shape_words
from jaxvae.data.rows import Rows, picked
from jaxvae.errors import InputError
from jaxvae.noise import Static
from jaxvae.options import MOST_CLASSES
from jaxvae.typing import ImageShape

Split: TypeAlias = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""Examples: named arrays with a common first axis. Always uint8 "image" [N, H, W, C]; others are optional."""
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A training set, a validation set (which may be empty) and a test set, of images of one shape.

    Attributes:
      name: the value of ``--dataset`` that loads the same data again: a name of `DATASETS` or a path.
      source: where the images came from, in words.
      train: uint8 ``[N, H, W, C]``, N >= 1, C one of 1, 3, 4.
      test: uint8 ``[M, H, W, C]``, M >= 1, with the H, W and C of `train`. For final metrics: nothing is chosen by it.
      validation: uint8 ``[V, H, W, C]``, V >= 0, held out of the training images to select models. Default: none.
      others: the other arrays of a split, by split and name, such as ``{"train": {"label": [N]}, ...}``.
      skipped: a line for each file that was left out because it cannot be read.
      classes: the names of the values of "label", in order; empty if they have none.
      whole: whether it is one set without splits, every tenth image of which is a test image.
    """

    name: str
    source: str
    train: Images
    test: Images
    validation: Images = None  # type: ignore[assignment]
    others: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    whole: bool = False

    def __post_init__(self) -> None:
        if self.validation is None:
            object.__setattr__(self, "validation", self.train[:0])

    def split(self, name: str) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """The examples of the split called `name`; see `Split`."""
        return {"image": getattr(self, name), **self.others.get(name, {})}

    @property
    def image_shape(self) -> ImageShape:
        """(H, W, C)."""
        _, height, width, channels = self.train.shape
        return height, width, channels

    def read_as(self, reading: Reading) -> "ImageData":
        """The same images, with the size and channels of `reading`. Raises `InputError`."""
        train, validation, test = (applied(getattr(self, name), reading, self.name) for name in SPLITS)
        return dataclasses.replace(self, train=train, validation=validation, test=test)

    @property
    def nbytes(self) -> int:
        """Bytes of all examples."""
        return sum(array.nbytes for name in SPLITS for array in self.split(name).values())


def in_words(images: ImageData) -> str:
    """How many there are and how large they are: "train 54 + validation 3 + test 6 images, 48 x 30 x 3"."""
    counts = [f"{name} {len(getattr(images, name)):,}" for name in SPLITS if len(getattr(images, name))]
    words = [f"{' + '.join(counts)} images", shape_words(images.image_shape)]
    if images.classes:
        words.append(f"{len(images.classes)} classes")
    elif others := [name for name in images.split("train") if name != "image"]:
        words.append(f"with {', '.join(others)}")
    return ", ".join(words)


def prepared(images: ImageData, config: Config) -> ImageData:
    """Binarise the images that `load` returns, if `config` says so, then hold out validation images.

    In this order, an image's pixels do not depend on what is held out. Raises `InputError` as
    `with_validation` does.
    """
    return with_validation(as_seen(images, config), config.validation, config.validation_seed)


def for_run(config: Config, images: ImageData) -> Config:
    """`config` with what a run takes from its images: the name of the dataset, and the number of classes.

    Raises:
      InputError: the model reads labels, and the images have none, or others than the model knows.
    """
    named = dataclasses.replace(config, dataset=images.name)
    if not config.reads_labels:
        return named
    flag = config.labels_flag
    splits = {name: images.split(name) for name in SPLITS if len(getattr(images, name))}
    labels = {name: split["label"] for name, split in splits.items() if "label" in split}
    if labels.keys() != splits.keys():
        raise InputError(f"{flag}: {images.source}: the images have no labels")
    if any(each.ndim != 1 or each.dtype.kind not in "iu" or each.min() < 0 for each in labels.values()):
        raise InputError(f"{flag}: {images.source}: a label must be a whole number of at least 0 for each image")
    most = max(int(each.max()) for each in labels.values())
    if most >= MOST_CLASSES:
        raise InputError(f"{flag}: {images.source} has the label {most}; labels must be below {MOST_CLASSES}")
    classes = config.classes or max(most + 1, len(images.classes))
    if most >= classes:
        raise InputError(f"{flag} with {classes} classes: {images.source} has the label {most}; labels count from 0")
    return dataclasses.replace(named, classes=classes)


def as_seen(images: ImageData, config: Config) -> ImageData:
    """The images as models of `config` see them: in their size and channels, and with pixels that are drawn once."""
    images, inputs = images.read_as(reading_of(config)), config.parts.inputs
    if isinstance(inputs, Static) and isinstance(images.train, Rows):
        raise InputError(f"--inputs static needs all images in memory, and {images.name} is streamed: take dynamic")
    return binarized(images, inputs.static_seed) if isinstance(inputs, Static) else images


def reading_of(config: Config) -> Reading:
    """How a run of `config` reads its images."""
    return Reading(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Reading)})


def usual_batch_size(num_images: int) -> int:
    """A batch size to begin with, for few training images: the greatest power of two within a quarter of them."""
    return 1 << (max(num_images // 4, 1).bit_length() - 1)


def with_validation(images: ImageData, amount: float, seed: int) -> ImageData:
    """Hold out some of the training images for validation. The rest keep their order.

    The choice depends only on `amount`, `seed` and the number of training images. A smaller amount holds out a
    subset of a larger one.

    Args:
      images: if they have validation images of their own, these are used, whatever the amount above 0.
      amount: below 1, a fraction of the training images (rounded); else their number; 0: no validation images.
      seed: the seed of the draw.

    Raises:
      InputError: `amount` is above 0 and holds out none, or leaves none to train on.
    """
    if len(images.validation):
        none = {name: values[:0] for name, values in images.split("validation").items()}
        image = none.pop("image")
        others = {**images.others, "validation": none} if images.others else {}
        return images if amount > 0 else dataclasses.replace(images, validation=image, others=others)
    total = len(images.train)
    count = round(amount * total) if amount < 1 else int(amount)
    if amount > 0 and count == 0:
        raise InputError(f"--validation {amount:g} of {total:,} training images holds out none")
    if count >= total:
        raise InputError(f"--validation {amount:g} leaves none of {total:,} images to train on")
    if count == 0:
        return images
    held_out = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    parts = np.delete(np.arange(total), held_out), held_out
    kept, out = ({name: picked(values, part) for name, values in images.split("train").items()} for part in parts)
    others = {**images.others, "train": kept, "validation": out}
    return dataclasses.replace(images, train=kept.pop("image"), validation=out.pop("image"), others=others)


def binarized(images: ImageData, seed: int) -> ImageData:
    """Draw each pixel once, as 0 or 255. Its intensity is the probability of 255: static binarisation.

    Larochelle and Murray (2011). No seed gives their own draw of MNIST. NumPy's default generator, seeded with
    `seed`, draws the training images first, then the test images, then validation images that the data bring along.
    Others are held out afterwards: see `prepared`.
    """
    rng = np.random.default_rng(seed)

    def draw(split: Images) -> Images:
        drawn = np.empty_like(split)
        for i, image in enumerate(split):  # One by one: a copy of all in float64 would be eight times their size.
            drawn[i] = 255 * (255 * rng.random(image.shape) < image)
        return drawn

    train, test, validation = map(draw, (images.train, images.test, images.validation))
    return dataclasses.replace(images, train=train, test=test, validation=validation)


def digest(images: np.ndarray[Any, np.dtype[Any]]) -> str:
    """SHA-256 of the bytes of an array, such as uint8 images [N, H, W, C]."""
    found = hashlib.sha256()
    for chunk in images.chunks() if isinstance(images, Rows) else (images,):
        found.update(np.ascontiguousarray(chunk).data)
    return found.hexdigest()


def digests(images: ImageData) -> dict[str, str]:
    """The digests of a run's data in its checkpoints: "train_images_sha256" and so on, for each non-empty split."""
    return {
        f"{split}_{'images' if name == 'image' else name}_sha256": digest(values)
        for split in SPLITS
        for name, values in images.split(split).items()
        if len(values)
    }


def identity(images: ImageData) -> dict[str, Any]:
    """What a run records of its data: `digests`, the names of classes, and what examples hold besides images."""
    found: dict[str, Any] = digests(images)
    if images.classes:
        found["classes"] = list(images.classes)
    if others := {name: values for name, values in images.split("train").items() if name != "image"}:
        found["example"] = {
            name: {"shape": list(values.shape[1:]), "dtype": str(values.dtype)} for name, values in others.items()
        }
    return found


def contradicted(found: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """The entries of `record`, of the data at hand, that a run's saved record `found` contradicts.

    Labels and factors that the run did not have do not count: files are not always read with them.
    """
    others = [f"{split}_{name}_sha256" for split in SPLITS for name in ("label", "factors")]
    labels = ("example", "classes", *others)
    return [
        name for name, value in record.items() if found.get(name) != value and (name in found or name not in labels)
    ]
