"""FSQ: discrete latents without a codebook to learn."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxvae.models.quantizers import FiniteScalarQuantizer
from jaxvae.objectives.discrete import Discrete
from jaxvae.options import Range, option

_LEVELS = Range(
    "from 3 to 256 levels for each dimension, and at most 65536 codes",
    lambda value: len(value) > 0 and all(3 <= levels <= 256 for levels in value) and math.prod(value) <= 2**16,
)


@dataclass(frozen=True)
class Fsq(Discrete):
    """Finite scalar quantisation: Mentzer et al., arXiv 2309.15505. It has no terms besides the bound."""

    levels: tuple[int, ...] = option((8, 8, 8), _LEVELS)
    """Levels of each dimension of fsq's vectors. Their product is the number of codes."""

    separate: ClassVar[bool] = True

    def quantizer(self) -> FiniteScalarQuantizer:
        """See `Discrete`."""
        return FiniteScalarQuantizer(math.prod(self.levels), self.levels)
