"""Quantisers: from vectors of an encoder to codes, and from codes to vectors.

Shapes: B images; N places of an image, each with a vector of D dimensions and a code from 0 to K - 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, Key

from jaxvae.typing import Array

DEAD = 0.1  # A code used less often than this part of an equal share is restarted.
DECAY = 0.99  # Of the moving averages: van den Oord et al., appendix A.1.


def straight_through(features: Float[Array, "..."], vectors: Float[Array, "..."]) -> Float[Array, "..."]:
    """`vectors`, with the gradient of `features` (van den Oord et al., arXiv 1711.00937, section 3.2)."""
    return features + jax.lax.stop_gradient(vectors - features)


def row(values: Any, like: Float[Array, "..."]) -> Array:
    """A vector as an array with as many axes as `like`, and its dtype."""
    vector: Array = jnp.asarray(values, like.dtype).reshape(*[1] * (like.ndim - 1), -1)
    return vector


def nearest(features: Float[Array, "... D"], codebook: Float[Array, "K D"]) -> Int[Array, "..."]:
    """The code whose vector is nearest to each of `features`."""
    products = features @ codebook.T
    distance = row(jnp.square(codebook).sum(-1), products) - 2 * products  # Plus the same for every code.
    return jnp.argmin(distance, axis=-1)


def perplexity(frequencies: Float[Array, " K"]) -> Float[Array, ""]:
    """``exp(-sum p log p)`` of the codes' frequencies: how many codes are in use, if all were used equally often.

    It is 1 if no code was used yet.
    """
    total = frequencies.sum()
    p = frequencies / jnp.where(total > 0, total, 1)
    return jnp.exp(-jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum())


class _Usage(nn.Module):
    """The moving average of the frequency of each code, in the collection "codebook"."""

    codes: int

    def _setup_usage(self, first: float) -> None:
        self.frequencies = self.variable("codebook", "frequencies", jnp.full, (self.codes,), first)

    def _average(self, used: Float[Array, "T K"]) -> None:
        self.frequencies.value = DECAY * self.frequencies.value + (1 - DECAY) * used.mean(0)


class VectorQuantizer(_Usage):
    """A learned codebook: van den Oord, Vinyals and Kavukcuoglu, arXiv 1711.00937.

    Attributes:
      codes: K.
      size: D.
      averaged: whether the codebook is a moving average of the vectors of each code (appendix A.1), rather than
        trained by gradient (equation 3). Then codes that are hardly used are restarted at vectors of the batch
        (as in Dhariwal et al., arXiv 2005.00341, section 3.1).
    """

    size: int
    averaged: bool = True

    def setup(self) -> None:
        self._setup_usage(1 / self.codes)
        # Of the size of features, so that codes compete from the start.
        init = nn.initializers.normal(1.0)
        if self.averaged:
            make = lambda: init(self.make_rng("params"), (self.codes, self.size)) / self.codes  # noqa: E731
            self.sums = self.variable("codebook", "sums", make)
        else:
            self.table = self.param("table", init, (self.codes, self.size))

    def codebook(self) -> Float[Array, "K D"]:
        """The vector of each code."""
        if self.averaged:
            sums: Array = self.sums.value
            return sums / self.frequencies.value[:, None]
        table: Array = self.table
        return table

    def quantize(self, features: Float[Array, "B N D"]) -> tuple[Int[Array, "B N"], Float[Array, "B N D"]]:
        """The codes of an encoder's vectors, and their vectors in the codebook."""
        codes = nearest(jax.lax.stop_gradient(features), jax.lax.stop_gradient(self.codebook()))
        return codes, self.embed(codes)

    def through(self, features: Float[Array, "B N D"], vectors: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """What the decoder gets in training: the codebook's vectors, with the gradient of the encoder's."""
        return straight_through(features, vectors)

    def embed(self, codes: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """The vectors of codes. As a product: the gradient of a gather has no fixed order of sums on a GPU."""
        codebook = self.codebook()
        vectors: Array = nn.one_hot(codes, self.codes, dtype=codebook.dtype) @ codebook
        return vectors

    def update(self, features: Float[Array, "T D"], key: Key[Array, ""]) -> Float[Array, ""]:
        """Move the averages towards a batch's vectors, and restart dead codes at some of them, drawn with `key`.

        Returns:
          The perplexity of the batch's codes. That of the averages would count restarted codes as used.
        """
        used = nn.one_hot(nearest(features, self.codebook()), self.codes, dtype=features.dtype)
        found = perplexity(used.mean(0))
        if not self.averaged:
            self._average(used)
            return found
        sums = DECAY * self.sums.value + (1 - DECAY) * (used.T @ features) / len(features)
        self._average(used)
        frequencies, equal = self.frequencies.value, 1 / self.codes
        dead = frequencies < DEAD * equal
        drawn = features[jax.random.randint(key, (self.codes,), 0, len(features))]
        self.frequencies.value = jnp.where(dead, equal, frequencies)
        self.sums.value = jnp.where(dead[:, None], drawn * equal, sums)
        return found


class FiniteScalarQuantizer(_Usage):
    """FSQ: each dimension is rounded to one of a few levels. Mentzer et al., arXiv 2309.15505, section 3.

    There is no codebook to learn: the codes are all combinations of levels, K of them.

    Attributes:
      codes: K, the product of `levels`.
      levels: of each dimension; D of them.
    """

    levels: tuple[int, ...] = ()

    def setup(self) -> None:
        self._setup_usage(0.0)

    @property
    def size(self) -> int:
        """D."""
        return len(self.levels)

    @property
    def _basis(self) -> Any:
        return np.cumprod([1, *self.levels[:-1]], dtype=np.int32)

    def quantize(self, features: Float[Array, "B N D"]) -> tuple[Int[Array, "B N"], Float[Array, "B N D"]]:
        """The codes of an encoder's vectors, and the rounded vectors in [-1, 1], with the gradient of the bounded ones.

        An even number of levels is not symmetric about 0, so the input is shifted until 0 gives 0 (appendix A.1).
        """
        levels = np.asarray(self.levels, np.float32)
        half = row((levels - 1) * (1 + 1e-3) / 2, features)  # A little wider: the ends are reached.
        offset, middle = row(np.where(levels % 2 == 0, 0.5, 0.0), features), row(levels // 2, features)
        bounded = jnp.tanh(features + jnp.arctanh(offset / half)) * half - offset
        digits = jnp.round(bounded)
        codes = ((digits + middle).astype(jnp.int32) * row(self._basis, jnp.zeros_like(digits, jnp.int32))).sum(-1)
        return codes, straight_through(bounded, digits) / middle

    def through(self, features: Float[Array, "B N D"], vectors: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """What the decoder gets in training: the rounded vectors, whose gradient is that of the bounded ones."""
        del features
        return vectors

    def embed(self, codes: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """The vectors of codes."""
        levels, places = np.asarray(self.levels, np.int32), codes[..., None]
        middle = row(levels // 2, places)
        vectors: Array = (places // row(self._basis, places) % row(levels, places) - middle) / middle
        return vectors.astype(jnp.float32)

    def update(self, features: Float[Array, "T D"], key: Key[Array, ""]) -> Float[Array, ""]:
        """Count the codes of a batch, or of a device's part of it.

        Returns:
          The perplexity of the codes that were used of late, before these: it is the same on every device.
        """
        del key
        found, (codes, _) = perplexity(self.frequencies.value), self.quantize(features[:, None])
        self._average(nn.one_hot(codes[:, 0], self.codes, dtype=features.dtype))
        return found
