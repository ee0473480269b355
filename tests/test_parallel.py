"""Devices and how arrays lie on them, on the eight emulated ones of the suite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import parallel
from jaxvae.errors import InputError


@pytest.mark.parametrize("count", [0, -1, 9])
def test_devices_there_are_not(count: int) -> None:
    with pytest.raises(InputError, match=f"--devices {count}: this process has 8 "):
        parallel.local_devices(count)


def test_shardings() -> None:
    mesh = parallel.data_mesh(parallel.local_devices(4))
    x = jnp.arange(8.0).reshape(8, 1)
    shares = jax.device_put(x, parallel.by_example(mesh)).addressable_shards
    assert [share.data.ravel().tolist() for share in shares] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    copies = jax.device_put(x, parallel.replicated(mesh)).addressable_shards
    assert len(copies) == 4
    for copy in copies:
        np.testing.assert_array_equal(copy.data, x)


def test_divisible() -> None:
    mesh = parallel.data_mesh(parallel.local_devices(4))
    parallel.check_divisible(12, mesh)
    with pytest.raises(InputError, match="--batch-size 10 does not divide over 4 devices"):
        parallel.check_divisible(10, mesh)
