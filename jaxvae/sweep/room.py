"""How many members fit in the memory of the devices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxvae import memory
from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.sweep.trainer import MembersTrainer, abstract_members
from jaxvae.train.programs import part_size
from jaxvae.train.step import example_of

MEMORY_FRACTION = 0.8  # Part of an accelerator's free memory that members may fill.
HOST_MEMORY_FRACTION = 0.5  # The same for a machine that trains on its CPU: other programs need memory, too.


class Room(NamedTuple):
    """How many members one program takes, and why.

    Attributes:
      members: in one program, over all devices.
      member_bytes: what each takes of a device's memory.
      free_bytes: what they may take together of a device's memory.
    """

    members: int
    member_bytes: int
    free_bytes: int


def room(config: Config, images: ImageData, devices: Sequence[jax.Device]) -> Room:
    """How many members fit in the memory of the devices.

    A member takes the memory of a compiled program of one member, without the images. The free memory is
    `MEMORY_FRACTION` of what the device reports; on a CPU, an equal share of `HOST_MEMORY_FRACTION` of the machine's.
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
    # Measured before the images, which are counted below, and before a member that does not stay.
    free = memory.free_bytes(devices[0])
    free = int(MEMORY_FRACTION * free) if accelerator else int(HOST_MEMORY_FRACTION * free) // len(devices)
    free -= images.nbytes
    hyperparameters = {name: [value] for name, value in config.traced().items()}
    trainer = MembersTrainer(config, images, [0], hyperparameters, devices[:1])
    state = trainer.start(None)
    trainer.compile(state)
    program = trainer._program.memory()
    # The new state overwrites the old one, but a device that maps over members holds both.
    member_bytes = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
    member_bytes -= sum(values.nbytes for values in images.split("train").values())
    return Room(max(1, free // member_bytes) * len(devices), member_bytes, max(free, 0))
