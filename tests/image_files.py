"""Files of images for tests, and what `jaxvae.data.load` must do with good and bad ones."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jaxvae import data
from jaxvae.data.reading import AS_THEY_ARE
from jaxvae.errors import InputError

FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)


def noise(*shape: int, seed: int = 0) -> data.Images:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def refuses(
    *fragments: object, dataset: str, data_dir: Path | None = None, reading: data.Reading = AS_THEY_ARE
) -> None:
    """Assert that `load` raises a one-line `InputError` with all fragments. Matches inside paths do not count."""
    with pytest.raises(InputError) as caught:
        data.load(dataset, data_dir, reading)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in sorted(map(str, fragments), key=lambda text: os.sep not in text):
        assert fragment in message
        if os.sep in fragment:
            message = message.replace(fragment, "PATH")


def mutated(content: bytes, edit: st.DataObject) -> bytes:
    """`content` with a few bytes replaced, removed or inserted."""
    changed = bytearray(content)
    for _ in range(edit.draw(st.integers(1, 4))):
        start = edit.draw(st.integers(0, len(changed)))
        stop = start + edit.draw(st.integers(0, 4))
        changed[start:stop] = edit.draw(st.binary(max_size=4))
    return bytes(changed)


def loads_or_refuses(dataset: str, data_dir: Path | None = None) -> None:
    try:
        loaded = data.load(dataset, data_dir)
    except InputError as error:
        message = str(error)
        assert "\n" not in message
    else:
        for images in (loaded.train, loaded.test):
            assert images.dtype == np.uint8
            assert images.ndim == 4
            assert images.size > 0
        assert loaded.train.shape[1:] == loaded.test.shape[1:]


def save(path: Path, array: Any) -> str:
    np.save(path, array)
    return str(path)


def whole(loaded: data.ImageData) -> data.Images:
    """The images of a dataset before it was split."""
    total = len(loaded.train) + len(loaded.test)
    images = np.empty((total, *loaded.train.shape[1:]), np.uint8)
    is_test = np.arange(total) % 10 == 9
    images[is_test], images[~is_test] = loaded.test, loaded.train
    return images
