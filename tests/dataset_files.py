"""Small files of the true formats of Omniglot, the silhouettes of Caltech 101, and dSprites."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from image_files import noise
from numpy.typing import NDArray
from scipy.io import savemat

Images = NDArray[np.uint8]
OBJECTS = tuple(f"object {number}" for number in range(101))


def columns(images: Images) -> NDArray[np.float64]:
    """Images [N, 28, 28, 1] as MATLAB writes them, column by column: [784, N], from 0 to 1."""
    return np.stack([image[..., 0].reshape(-1, order="F") for image in images], axis=1) / 255


def omniglot(folder: Path, **changed: Any) -> tuple[Images, Images]:
    """Writes `chardata.mat` with the labels 0, 1, ... of both splits; `changed` variables replace the right ones."""
    train, test = noise(10, 28, 28, 1), noise(3, 28, 28, 1, seed=1)
    variables: dict[str, Any] = {"note": "texts, too"}
    for part, images in (("", train), ("test", test)):
        variables[f"{part}data"] = columns(images)
        variables[f"{part}target"] = np.eye(50)[:, : len(images)]
        variables[f"{part}targetchar"] = np.arange(1.0, len(images) + 1)[None]
    write_mat(folder / "chardata.mat", {**variables, **changed})
    return train, test


def caltech101_silhouettes(folder: Path, **changed: Any) -> tuple[Images, Images]:
    """Writes `caltech101_silhouettes_28_split1.mat` of 10 + 4 + 3 images with the labels 0, 1, ... of each split."""
    splits = {name: noise(count, 28, 28, 1, seed=count) // 128 * 255 for name, count in SILHOUETTES.items()}
    variables: dict[str, Any] = {"classnames": np.array(OBJECTS, object)[None]}
    for name, images in splits.items():
        variables[f"{name}_data"] = np.uint8(1 - columns(images).T)  # An object is 0.
        variables[f"{name}_labels"] = np.arange(1, len(images) + 1, dtype=np.uint8)[:, None]
    write_mat(folder / "caltech101_silhouettes_28_split1.mat", {**variables, **changed})
    return splits["train"], splits["test"]


SILHOUETTES = {"train": 10, "val": 4, "test": 3}


def write_mat(path: Path, variables: Mapping[str, Any]) -> None:
    """A compressed MATLAB file of version 5; variables that are None are left out."""
    savemat(path, {name: value for name, value in variables.items() if value is not None}, do_compression=True)


def factors(count: int) -> NDArray[np.int64]:
    """The factors of the first images of dSprites if there were two scales and two orientations: [N, 6]."""
    return np.stack(np.unravel_index(np.arange(count), (1, 3, 2, 2, 32, 32)), axis=1).astype(np.int64)


def dsprites(folder: Path, count: int = 30, **changed: Any) -> tuple[Images, Images]:
    """Writes the .npz file of dSprites with some images of noise."""
    images = noise(count, 64, 64) // 128
    metadata = np.array({"title": "dSprites dataset", "latents_sizes": np.array([1, 3, 6, 40, 32, 32])})
    arrays = {
        "metadata": metadata,
        "imgs": images,
        "latents_classes": factors(count),
        "latents_values": factors(count) / 32,
        **changed,
    }
    np.savez_compressed(
        folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        **{name: value for name, value in arrays.items() if value is not None},
    )
    test = np.sort(np.random.default_rng(0).permutation(count)[: count // 10])
    whole = 255 * images[..., None]
    return np.delete(whole, test, axis=0), whole[test]
