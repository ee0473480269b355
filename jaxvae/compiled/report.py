"""What XLA makes of a training step for an accelerator, and how long that should take there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxvae.compiled.accelerators import Accelerator, described
from jaxvae.compiled.hlo import Kernel, Program
from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.distributed import devices as parallel
from jaxvae.errors import InputError
from jaxvae.train.programs import BLOCK, compiler_options, program_bytes
from jaxvae.train.trainer import Trainer

# From the start of a kernel to the start of one that needs it, within a CUDA graph. An H100 took 65 us for a step of
# the notes' VAE at batch size 32: a chain of 24 kernels, and 7 us of work. Taken for the other accelerators as well,
# where nothing was measured.
KERNEL_SECONDS = 2.4e-6


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled training step.

    Attributes:
      kernels: what a step runs.
      chain: the most kernels of a step that must run one after another.
      program_bytes: memory of a device that the program takes, the training images included.
      flops: of the products of a step, on each device.
    """

    kernels: Sequence[Kernel]
    chain: int
    program_bytes: int
    flops: float

    @property
    def count(self) -> int:
        """Kernels of a step."""
        return sum(each.times for each in self.kernels)

    @property
    def nbytes(self) -> int:
        """Bytes that the kernels of a step read and write, on each device. Caches may save many of them."""
        return sum(each.times * each.nbytes for each in self.kernels)

    @property
    def collectives(self) -> Sequence[Kernel]:
        """The kernels by which devices exchange something."""
        return [each for each in self.kernels if each.is_collective]

    @property
    def exchanged(self) -> int:
        """Bytes of the results of a step's collectives."""
        return sum(each.times * each.written for each in self.collectives)

    def seconds(self, accelerator: Accelerator, products: str) -> dict[str, float]:
        """The predicted seconds of a step, by what takes them. A step takes their sum.

        - "kernels": the longest chain of kernels, `KERNEL_SECONDS` each;
        - "work": the products at the accelerator's best, or the bytes at the bandwidth of its memory, whichever is
          longer;
        - "exchange": the results of collectives, over the links.

        Args:
          accelerator: where.
          products: what products are computed in, a key of ``accelerator.flops``.
        """
        return {
            "kernels": self.chain * KERNEL_SECONDS,
            "work": max(self.flops / accelerator.flops[products], self.nbytes / accelerator.bandwidth),
            "exchange": self.exchanged / accelerator.link,
        }


def compile_for(name: str, config: Config, images: ImageData, flops: float) -> tuple[Accelerator, int, Report]:
    """Compile training for an accelerator that need not be here.

    Args:
      name: see `described`.
      config: what to train.
      images: only their shapes and number count.
      flops: of the products of a step, on all devices together.

    Returns:
      The accelerator, how many of them, and the step.

    Raises:
      InputError: see `described`; or a batch does not divide over the devices.
    """
    accelerator, devices = described(name)
    trainer = Trainer(config, images, parallel.data_parallel(devices), block=BLOCK)
    return accelerator, len(devices), report(compiled(trainer, accelerator), flops / len(devices))


def compiled(trainer: Any, accelerator: Accelerator) -> Any:
    """The compiled program of a `Trainer` or `MembersTrainer` that was made for devices of `accelerator`."""
    if accelerator.platform == "tpu":
        return trainer.trace().lower().compile(compiler_options=compiler_options("tpu"))
    # XLA would time kernels on the GPU itself.
    lowered, options = trainer.trace().lower(), compiler_options("gpu") | {"xla_gpu_autotune_level": 0}
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        # Without trials XLA takes one choice of Triton's tiles for all products, which does not suit each.
        if "output tile sizes" not in str(error):
            raise
        return lowered.compile(compiler_options=options | {"xla_gpu_enable_triton_gemm": False})


def report(compiled: Any, flops: float) -> Report:
    """What a compiled training program does in a step.

    Args:
      compiled: takes steps in a loop.
      flops: of the products of a step, on each device.

    Raises:
      InputError: it has no loop.
    """
    program = Program(compiled.as_text())
    try:
        step = program.step()
    except ValueError as error:
        raise InputError(str(error)) from None
    memory = program_bytes(compiled.memory_analysis())
    return Report(list(program.kernels(step)), program.chain(step), memory, flops)
