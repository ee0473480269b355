"""Convert arrays of images, of any accepted shape and scale, to splits of uint8 [N, H, W, C]."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvae.data.images import ImageData, Split
from jaxvae.data.reading import Images
from jaxvae.errors import InputError

GIVEN = "given"  # The name of a dataset that was given in Python.
_HOLD_OUT = 10  # Every tenth image is held out if there is no test set.


def split_off_test(name: str, source: str, images: Images) -> ImageData:
    """Hold out every tenth image: a fixed choice that covers all classes in files sorted by class."""
    if len(images) < _HOLD_OUT:
        raise InputError(f"{name}: too few images to hold out every tenth for testing: {len(images)}, fewer than 10")
    held_out = np.s_[_HOLD_OUT - 1 :: _HOLD_OUT]
    return paired(name, source, np.delete(images, held_out, axis=0), images[held_out].copy())


def paired(name: str, source: str, train: Images, test: Images) -> ImageData:
    """A training and a test set. Raises `InputError` if their images differ in shape."""
    if train.shape[1:] != test.shape[1:]:
        shapes = f"{list(train.shape[1:])} and {list(test.shape[1:])}"
        raise InputError(f"{name}: training and test images differ in [H, W, C]: {shapes}")
    return ImageData(name, source, train, test)


def require_image_shape(shape: Sequence[int], label: object) -> None:
    """Raise `InputError` if an array of this shape cannot be images."""
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4)):
        return
    hint = ""
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        hint = "; this looks like [N, C, H, W]: channels go last, so transpose to (0, 2, 3, 1)"
    raise InputError(f"{label}: shape {list(shape)[:8]} is not [N, H, W] or [N, H, W, C] with C one of 1, 3, 4{hint}")


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
    found = {"train": _checked(train, "data")} | ({} if test is None else {"test": _checked(test, "the test data")})
    source = "arrays given in Python"
    if test is None:
        whole = found["train"]
        images = split_off_test(GIVEN, source, whole["image"])
        taken = np.s_[_HOLD_OUT - 1 :: _HOLD_OUT]
        found = {
            "train": {name: np.delete(values, taken, axis=0) for name, values in whole.items()},
            "test": {name: values[taken] for name, values in whole.items()},
        }
    else:
        if differ := found["train"].keys() ^ found["test"].keys():
            raise InputError(f"data: the training and the test examples do not both hold {', '.join(sorted(differ))}")
        images = paired(GIVEN, source, found["train"]["image"], found["test"]["image"])
    others = {split: {name: v for name, v in values.items() if name != "image"} for split, values in found.items()}
    return dataclasses.replace(images, others=others)


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
