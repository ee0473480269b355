"""Which devices a run is spread over, and how its arrays lie on them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvae.errors import InputError

AXIS = "data"


def data_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with one axis, over which the examples of a batch are spread."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def local_devices(count: int) -> list[jax.Device]:
    """The first `count` devices of this process. Raises `InputError` if there are fewer."""
    devices: list[jax.Device] = jax.local_devices()
    if not 1 <= count <= len(devices):
        raise InputError(f"--devices {count}: this process has {len(devices)} ({devices[0].device_kind})")
    return devices[:count]


def replicated(mesh: Mesh) -> NamedSharding:
    """All of an array on every device: parameters, optimiser state, the training images."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """An equal share of an array's first axis on every device: batches."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_divisible(batch_size: int, mesh: Mesh) -> None:
    """Raise `InputError` for a batch that the devices of `mesh` cannot share equally."""
    if batch_size % mesh.size:
        raise InputError(f"--batch-size {batch_size} does not divide over {mesh.size} devices")
