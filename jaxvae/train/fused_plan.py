"""What the kernels of a fused training step are made for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl

from jaxvae.typing import Array

TILE = 16  # The smallest side of a tile of a product.
PROGRAMS = 128  # About as many as a GPU runs at once.


@dataclass(frozen=True)
class Plan:
    """What the kernels of a model are made for.

    Attributes:
      widths: of the image, and of every layer's outputs.
      encoder: layers of the encoder.
      batch_size: images of a batch.
      latents: dimensions of the latents.
      act: the activation between layers.
      latent: maps the halves of the encoder's outputs and noise, elementwise, to the latent and its cost.
        Without it, `code` maps the encoder's outputs to the latents.
      code: see `latent`.
      pixel: maps a logit and an intensity, elementwise, to the reconstruction's cost.
      weight: of the latents' cost.
      b1, b2, eps: Adam's constants.
      precision: of the float32 products of tiles. What a program computes for one image is always float32.
      interpret: run anywhere, slowly.
      chunk: inputs that a program multiplies at a time; a power of two, at least `TILE`.
      values: of a weight, that a program holds at a time; a power of two.
    """

    widths: tuple[int, ...]
    encoder: int
    batch_size: int
    latents: int
    act: Callable[[Array], Array]
    latent: Callable[[Array, Array, Array], tuple[Array, Array]] | None
    code: Callable[[Array], Array]
    pixel: Callable[[Array, Array], Array]
    weight: float
    b1: float
    b2: float
    eps: float
    precision: jax.lax.Precision
    interpret: bool = False
    chunk: int = 64
    values: int = 2**14

    def __post_init__(self) -> None:
        for size in (self.chunk, self.values):
            assert size >= TILE and size == pl.next_power_of_2(size), size

    @property
    def layers(self) -> int:
        """Dense layers."""
        return len(self.widths) - 1

    @property
    def inputs(self) -> tuple[int, ...]:
        """Widths of the layers' inputs: those of the outputs, but for the decoder's first."""
        given = list(self.widths[:-1])
        given[self.encoder] = self.latents
        return tuple(given)

    @property
    def rows(self) -> int:
        """Rows of a tile of a batch."""
        return max(TILE, pl.next_power_of_2(self.batch_size))

    @property
    def first_shares(self) -> tuple[int, int]:
        """Programs that share the inputs of the first layer, and the inputs of each."""
        tiles = pl.cdiv(self.widths[1], TILE)
        share = pl.cdiv(pl.cdiv(self.widths[0], max(1, PROGRAMS // tiles)), self.chunk) * self.chunk
        return pl.cdiv(self.widths[0], share), share

    @property
    def pixel_tiles(self) -> int:
        """Tiles of an image's pixels, in the last layer."""
        return int(pl.cdiv(self.widths[-1], TILE))

    @property
    def last_shares(self) -> tuple[int, int]:
        """Programs that share the inputs of the last layer, and the inputs of each."""
        tiles = pl.cdiv(self.widths[-1], TILE)
        share = pl.cdiv(pl.cdiv(self.inputs[-1], max(1, PROGRAMS // tiles)), self.chunk) * self.chunk
        return pl.cdiv(self.inputs[-1], share), share


class Weights(NamedTuple):
    """Parameters, or a moment of Adam: kernels [in, out] and biases [out] of all layers."""

    kernels: tuple[Array, ...]
    biases: tuple[Array, ...]
