"""Convert arrays of images, of any accepted shape and scale, to splits of uint8 [N, H, W, C]."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvae.data.images import ImageData, Split
from jaxvae.data.reading import Images
from jaxvae.data.rows import picked
from jaxvae.errors import InputError

GIVEN = "given"  # The name of a dataset that was given in Python.
VALIDATION = ("validation", "valid", "val")  # What people call that split.
CHANNELS = (1, 3, 4)  # What images may have.
_HOLD_OUT = 10  # Every tenth image is held out if there is no test set.


def split_off_test(name: str, source: str, whole: Split) -> ImageData:
    """Hold out every tenth example: a fixed choice that covers all classes in files sorted by class.

    Raises `InputError` if there are too few.
    """
    count = len(whole["image"])
    if count < _HOLD_OUT:
        raise InputError(f"{name}: too few images to hold out every tenth for testing: {count}, fewer than 10")
    every = np.arange(count)
    held_out = every[_HOLD_OUT - 1 :: _HOLD_OUT]
    kept = np.delete(every, held_out)
    train, test = ({key: picked(values, part) for key, values in whole.items()} for part in (kept, held_out))
    return dataclasses.replace(paired(name, source, train, test), whole=True)


def paired(name: str, source: str, train: Split, test: Split) -> ImageData:
    """Training and test examples. Raises `InputError` if their images differ in shape."""
    first, second = train["image"], test["image"]
    if first.shape[1:] != second.shape[1:]:
        shapes = f"{list(first.shape[1:])} and {list(second.shape[1:])}"
        raise InputError(f"{name}: training and test images differ in [H, W, C]: {shapes}")
    splits = {"train": train, "test": test}
    others = {split: {key: v for key, v in values.items() if key != "image"} for split, values in splits.items()}
    return ImageData(name, source, first, second, others=others if any(others.values()) else {})


def used_splits(names: Iterable[str], told: object) -> list[str]:
    """Of the splits of a dataset, those that are used: train, and if there are, test and the first of `VALIDATION`.

    Raises `InputError` if there is no split called train.
    """
    every = [*names]
    if "train" not in every:
        raise InputError(f"{told}: has no split train, but {', '.join(every)}")
    return ["train", *(["test"] if "test" in every else []), *[name for name in VALIDATION if name in every][:1]]


def of_splits(name: str, source: str, splits: Mapping[str, Split], classes: tuple[str, ...] = ()) -> ImageData:
    """The examples of `used_splits`. Every tenth is held out if there is no split called test.

    Labels that some split lacks are left out, and so are names of classes that are fewer than the labels.

    Raises:
      InputError: the images of splits differ in shape, or there are too few to hold out every tenth.
    """
    labelled = all("label" in split for split in splits.values())
    examples = {
        key: {n: values for n, values in split.items() if labelled or n != "label"} for key, split in splits.items()
    }
    if "test" in splits:
        found = paired(name, source, examples["train"], examples["test"])
    else:
        found = split_off_test(name, source, examples["train"])
    for key in splits.keys() - {"train", "test"}:
        found = with_own_validation(found, examples[key])
    most = max(int(split["label"].max()) for split in splits.values()) if labelled else len(classes)
    # The order of its parts is that of a set with splits.
    return dataclasses.replace(found, whole=False, classes=classes if most < len(classes) else ())


def with_own_validation(images: ImageData, validation: Split) -> ImageData:
    """`images` with validation examples that the data bring along. Raises `InputError` if they differ in kind."""
    if validation.keys() != images.split("train").keys():
        raise InputError(f"{images.name}: training and validation images do not both have labels")
    whole = paired(images.name, images.source, images.split("train"), validation)
    others = {**images.others, "validation": whole.others.get("test", {})} if images.others else {}
    return dataclasses.replace(images, validation=whole.test, others=others)


def require_image_shape(shape: Sequence[int], label: object) -> None:
    """Raise `InputError` if an array of this shape cannot be images."""
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in CHANNELS):
        return
    hint = ""
    if len(shape) == 4 and shape[1] in CHANNELS:
        hint = "; this looks like [N, C, H, W]: channels go last, so transpose to (0, 2, 3, 1)"
    raise InputError(f"{label}: shape {list(shape)[:8]} is not [N, H, W] or [N, H, W, C] with C one of 1, 3, 4{hint}")


def is_label_shape(shape: Sequence[int]) -> bool:
    """Whether an array of this shape can be labels: one for each image."""
    return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)


def require_label_shape(shape: Sequence[int], label: object) -> None:
    """Raise `InputError` if an array of this shape cannot be labels."""
    if not is_label_shape(shape):
        raise InputError(f"{label}: shape {list(shape)[:8]} is not [N] or [N, 1]: one label for each image")


def to_labels(array: np.ndarray[Any, Any], count: int, label: object) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Convert the labels of `count` images, ``[N]`` or ``[N, 1]`` whole numbers from 0 on, to int32 ``[N]``."""
    if array.dtype.kind not in "biu":
        raise InputError(f"{label}: {array.dtype}: labels must be whole numbers")
    if len(array) != count:
        raise InputError(f"{label}: {len(array):,} labels for {count:,} images")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise InputError(f"{label}: values from {array.min()} to {array.max()}: labels must be from 0 to 2^31 - 1")
    return array.reshape(count).astype(np.int32)


def to_uint8(array: np.ndarray[Any, Any], label: object) -> Images:
    """Convert ``[N, H, W]`` or ``[N, H, W, C]`` of any accepted dtype to uint8 ``[N, H, W, C]``."""
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype == np.bool_:
        # Through bytes, because a file may hold booleans other than 0 and 1.
        array = np.where(array.view(np.uint8) != 0, np.uint8(255), np.uint8(0))
    elif array.dtype != np.uint8:
        floating = array.dtype.kind == "f"
        high = 1 if floating else 255
        with np.errstate(invalid="ignore"):
            low, top = array.min(), array.max()
        if not (low >= 0 and top <= high):  # false for NaN too
            kind = "floats must be finite and in [0, 1]" if floating else "integers must be in 0..255"
            if floating and low >= 0 and 2 <= top <= 255:
                kind += "; if they are levels from 0 to 255, divide them by 255"
            if floating and -1 <= low < 0 and top <= 1:
                kind += "; if they are from -1 to 1, take (x + 1) / 2"
            raise InputError(f"{label}: {array.dtype} values from {low:g} to {top:g}: {kind}")
        array = np.rint(array.astype(np.float32) * 255) if floating else array
    return np.ascontiguousarray(array, dtype=np.uint8)


def from_arrays(train: Split, test: Split | None = None) -> ImageData:
    """Convert examples given in Python, named arrays with a common first axis, to `ImageData`.

    Args:
      train: "image" [N, H, W, C] or [N, H, W] of any scale that `to_uint8` takes, and any other arrays.
      test: the same. None: every tenth example of `train` is held out.

    Raises:
      InputError: there are no images, their shape or scale cannot be used, or arrays differ in length.
    """
    examples = _checked(train, "data")
    source = "arrays given in Python"
    if test is None:
        return split_off_test(GIVEN, source, examples)
    others = _checked(test, "the test data")
    if differ := examples.keys() ^ others.keys():
        raise InputError(f"data: the training and the test examples do not both hold {', '.join(sorted(differ))}")
    return paired(GIVEN, source, examples, others)


def _checked(given: Split, label: str) -> dict[str, np.ndarray[Any, Any]]:
    if "image" not in given:
        raise InputError(f'{label} must hold "image", and holds {", ".join(given) or "nothing"}')
    require_image_shape(given["image"].shape, label)
    if not len(given["image"]):
        raise InputError(f"{label} holds no images")
    for name, values in given.items():
        if values.dtype.kind not in "biuf":
            raise InputError(f"{label}: {name} is {values.dtype}, and must hold numbers")
        if values.shape[:1] != given["image"].shape[:1]:
            raise InputError(f"{label}: {name} has {len(values)} entries for {len(given['image'])} images")
    return {name: to_uint8(v, label) if name == "image" else v for name, v in given.items()}
