"""How many members fit in the memory of the devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxvae import memory
from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.flops import inner_jaxprs
from jaxvae.sweep.trainer import MembersTrainer, abstract_members
from jaxvae.train.programs import part_size
from jaxvae.train.step import example_of

MEMORY_FRACTION = 0.8  # Part of an accelerator's free memory that members may fill.
PADDED = 4  # An accelerator may take so many times the bytes of an array.
HOST_MEMORY_FRACTION = 0.5  # The same for a machine that trains on its CPU: other programs need memory, too.


class Room(NamedTuple):
    """How many members one program takes, and why.

    Attributes:
      members: in one program, over all devices.
      member_bytes: what each takes of a device's memory.
      free_bytes: what they may take together of a device's memory.
      compiled: whether `member_bytes` is what XLA says of a compiled program. Else it is the most that a member takes.
    """

    members: int
    member_bytes: int
    free_bytes: int
    compiled: bool


def room(config: Config, images: ImageData, devices: Sequence[jax.Device], wanted: int) -> Room:
    """How many members fit in the memory of the devices.

    The free memory is `MEMORY_FRACTION` of what the device reports; on a CPU, an equal share of `HOST_MEMORY_FRACTION`
    of the machine's. A member takes at most the bytes of all values that its program ever computes, by experience; on
    an accelerator, which pads arrays and needs room for its own, `PADDED` times that. If `wanted` members do not fit by
    this, a program of one member is compiled, and what it takes counts, without the images.
    """
    required = memory.required_bytes(
        abstract_members(config, images.image_shape, 1, example_of(images.split("train"))),
        images.image_shape,
        config.batch_size,
        config.parts.objective.latents,
        part_size(config, images.image_shape, 1, devices[0].platform),
    )
    memory.check_fits(required, images.nbytes, devices[:1])
    accelerator = memory.device_stats(devices[0]) is not None
    free = memory.free_bytes(devices[0])
    free = int(MEMORY_FRACTION * free) if accelerator else int(HOST_MEMORY_FRACTION * free) // len(devices)
    free -= images.nbytes
    hyperparameters = {name: [value] for name, value in config.traced().items()}
    trainer = MembersTrainer(config, images, [0], hyperparameters, devices[:1])
    traced = trainer.trace()
    train = sum(values.nbytes for values in images.split("train").values())
    most = _bytes_of(traced.jaxpr.jaxpr.invars) - train + _computed_bytes(traced.jaxpr.jaxpr)
    most = max(1, most * PADDED if accelerator else most)
    if free // most * len(devices) >= wanted:
        return _room(free, most, len(devices), compiled=False)
    program = trainer.memory(traced)
    # The new state overwrites the old one, but a device that maps over members holds both.
    member_bytes = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
    return _room(free, member_bytes - train, len(devices), compiled=True)


def _room(free: int, member_bytes: int, devices: int, compiled: bool) -> Room:
    return Room(max(1, free // member_bytes) * devices, member_bytes, max(free, 0), compiled)


def _computed_bytes(jaxpr: Any) -> int:
    """Bytes of all values that a program computes, those of a loop's turn once; with what `scan` cuts for each turn."""
    total = 0
    for equation in jaxpr.eqns:
        total += _bytes_of(equation.outvars) + sum(map(_computed_bytes, inner_jaxprs(equation)))
        if equation.primitive.name == "scan":
            kept = equation.params["num_consts"] + equation.params["num_carry"]
            total += _bytes_of(equation.params["jaxpr"].jaxpr.invars[kept:])
    return total


def _bytes_of(variables: Sequence[Any]) -> int:
    return sum(each.aval.size * each.aval.dtype.itemsize for each in variables)
