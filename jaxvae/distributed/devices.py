"""The devices of a process or of a job, and how a run's arrays lie on them."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvae.errors import InputError

AXIS = "data"
MOST_COMMUNICATION = 0.5  # Of a step, above which the user gets advice.


class Placement(NamedTuple):
    """How the arrays of a run lie on the devices, all of one mesh.

    `state` is a sharding, or a tree of them that is a prefix of the train state; `batch` is for arrays
    with a first axis of the batch; `images` is for the training and test images.
    """

    state: Any
    batch: NamedSharding
    images: NamedSharding

    @property
    def shares(self) -> int:
        """The number of shares of a batch."""
        axes = self.batch.spec[0] if len(self.batch.spec) else None
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        return math.prod(self.batch.mesh.shape[name] for name in names)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding that puts a whole array on every device."""
        return NamedSharding(self.batch.mesh, PartitionSpec())


def data_parallel(devices: Sequence[jax.Device]) -> Placement:
    """Every device holds the state and the images, and works on an equal share of each batch."""
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return Placement(state=everywhere, batch=NamedSharding(mesh, PartitionSpec(AXIS)), images=everywhere)


def select_devices(count: int | None = None) -> list[jax.Device]:
    """The first `count` devices of every process, or all.

    Raises:
      InputError: a process has fewer.
    """
    every: list[jax.Device] = jax.devices()
    if count is None:
        return every
    selected = []
    for process in range(jax.process_count()):
        owned = [device for device in every if device.process_index == process]
        if not 1 <= count <= len(owned):
            where = f"process {process}" if jax.process_count() > 1 else "this machine"
            raise InputError(f"--devices {count}: {where} has {len(owned)} ({every[0].device_kind})")
        selected += owned[:count]
    return selected


def check_divisible(batch_size: int, placement: Placement) -> None:
    """Raise `InputError` for a batch that cannot be cut into equal shares."""
    if batch_size % placement.shares:
        raise InputError(f"--batch-size {batch_size} does not divide over {placement.shares} devices (see --devices)")


def place(tree: Any, sharding: Any) -> Any:
    """Put host arrays, which every process holds in full, on the devices: a tree of `jax.Array`.

    Args:
      tree: of arrays.
      sharding: for all of them, or a tree of shardings that is a prefix of `tree`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(sharding, tree))


def placed_shapes(tree: Any, sharding: Any) -> Any:
    """The shapes, dtypes and shardings of what `place` would return. Nothing is put anywhere."""

    def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, jax.tree.broadcast(sharding, tree))


def collective_seconds(size: int, placement: Placement, rounds: int = 5) -> float:
    """Seconds that the average of `size` bytes over the devices of a batch takes: the median of `rounds`.

    All processes of a job must call it together.
    """
    axes = placement.batch.spec[0]
    count = placement.shares * -(-size // 4)
    share = jax.jit(lambda: jnp.zeros(count, jnp.float32), out_shardings=placement.batch)()
    mean: Any = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.pmean(x, axes),
            mesh=placement.batch.mesh,
            in_specs=PartitionSpec(axes),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )
    jax.block_until_ready(mean(share))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(mean(share))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def communication_advice(collective: float, step: float) -> str | None:
    """Advice for the user if the collective of a step takes most of it, else None. Arguments are in seconds."""
    part = min(collective / step, 1.0)
    if part <= MOST_COMMUNICATION:
        return None
    return (
        f"communication takes about {part:.0%} of a step: a larger --batch-size does more work per collective, "
        "and one process may be faster"
    )
