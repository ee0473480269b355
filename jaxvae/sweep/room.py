"""How many members fit the memory of the devices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxvae import memory
from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.sweep.trainer import MembersTrainer, abstract_members
from jaxvae.train.step import example_of

MEMORY_FRACTION = 0.8  # Of an accelerator's free memory, that members may fill.
HOST_MEMORY_FRACTION = 0.5  # Of the free memory of a machine that trains on its CPU: others live there too.


class Room(NamedTuple):
    """How many members one program takes, and why.

    Attributes:
      members: in one program, over all devices.
      member_bytes: of a device's memory that each takes.
      free_bytes: of a device's memory that they may take together.
    """

    members: int
    member_bytes: int
    free_bytes: int


def room(config: Config, images: ImageData, devices: Sequence[jax.Device]) -> Room:
    """How many members fit the memory of the devices.

    What a member takes is what the compiled program of one of them says, without the images; what is free is
    `MEMORY_FRACTION` of what the device reports, or `HOST_MEMORY_FRACTION` of the machine's, in equal shares.
    """
    required = memory.required_bytes(
        abstract_members(config, images.image_shape, 1, example_of(images.split("train"))),
        images.image_shape,
        config.batch_size,
        config.parts.objective.latents,
    )
    memory.check_fits(required, images.nbytes, devices[:1])
    accelerator = memory.device_stats(devices[0]) is not None
    # Before the images are there, which are counted below, and a member, which is not to stay.
    free = memory.free_bytes(devices[0])
    free = int(MEMORY_FRACTION * free) if accelerator else int(HOST_MEMORY_FRACTION * free) // len(devices)
    free -= images.nbytes
    hyperparameters = {name: [value] for name, value in config.traced().items()}
    trainer = MembersTrainer(config, images, [0], hyperparameters, devices[:1])
    state = trainer.start(None)
    trainer.compile(state)
    program = trainer._programs.memory()
    # The state goes in and comes out in one place, but a device that maps over members holds both.
    member_bytes = program.argument_size_in_bytes + program.output_size_in_bytes + program.temp_size_in_bytes
    member_bytes -= sum(values.nbytes for values in images.split("train").values())
    return Room(max(1, free // member_bytes) * len(devices), member_bytes, max(free, 0))
