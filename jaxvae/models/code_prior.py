"""The prior of the codes of an image: autoregressive, or uniform.

Shapes: B images; N codes each, from 0 to K - 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, Key

from jaxvae.models.layers import GLOROT, ByLabel, at_least_float32
from jaxvae.typing import Array

HEAD_WIDTH = 32  # Of each attention head, where it divides the width.


class CausalBlock(nn.Module):
    """``x + attention(x)``, then ``x + mlp(x)``, for x [B, N, W]: a place sees itself and those before it.

    Vaswani et al. (arXiv 1706.03762), with normalisation first (Xiong et al., arXiv 2002.04745).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
        count, places, width = x.shape
        heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        style = {"dtype": self.dtype, **GLOROT}
        y = nn.LayerNorm(name="norm_0")(x)
        query, key, value = (
            nn.Dense(width, **style, name=name)(y).reshape(count, places, heads, -1)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(count, places, width)
        x = x + at_least_float32(nn.Dense(width, **style, name="mixed")(mixed))
        y = nn.gelu(nn.Dense(4 * width, **style, name="wide")(nn.LayerNorm(name="norm_1")(x)))
        return x + at_least_float32(nn.Dense(width, **style, name="narrow")(y))


class CodePrior(nn.Module):
    """p(codes): the product over places of p(code | those before it), by a causal transformer.

    Attributes:
      codes: K.
      places: N.
      layers: blocks; 0: all codes are equally likely.
      width: of the blocks.
      classes: labels that it knows, with which it is p(codes | label); 0: none.
      dtype: of the products.
    """

    codes: int
    places: int
    layers: int = 2
    width: int = 64
    classes: int = 0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if not self.layers:
            return
        normal = nn.initializers.normal(0.02)
        self.code = ByLabel(self.codes, self.width, normal)
        self.place = self.param("place", normal, (self.places, self.width))
        self.start = ByLabel(max(self.classes, 1), self.width, normal)
        self.blocks = [CausalBlock(self.dtype) for _ in range(self.layers)]
        self.norm = nn.LayerNorm()
        self.out = nn.Dense(self.codes, dtype=self.dtype, kernel_init=normal)

    def logits(self, codes: Int[Array, "B N"], label: Int[Array, " B"] | None = None) -> Float[Array, "B N K"]:
        """Logits of the code at each place, given those before it."""
        if not self.layers:
            return jnp.zeros((*codes.shape, self.codes))
        if label is None:  # Then there is one class.
            label = jnp.zeros(len(codes), jnp.int32)
        start = self.start(label)
        x = jnp.concatenate([start[:, None], self.code(codes[:, :-1])], axis=1) + self.place[None]
        for block in self.blocks:
            x = block(x)
        return at_least_float32(self.out(self.norm(x)))

    def log_probability(self, codes: Int[Array, "B N"], label: Int[Array, " B"] | None = None) -> Float[Array, " B"]:
        """log p(codes) of each image, nats."""
        log_p = nn.log_softmax(self.logits(codes, label))
        return jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0].sum(-1)

    def sample(self, key: Key[Array, ""], count: int, label: Int[Array, " B"] | None = None) -> Int[Array, "{count} N"]:
        """Draw the codes of `count` images, place by place."""
        module, variables = self.unbind()

        def draw(place: Array, codes: Array) -> Array:
            logits: Any = module.apply(variables, codes, label, method="logits")
            drawn = jax.random.categorical(jax.random.fold_in(key, place), logits[:, place])
            return codes.at[:, place].set(drawn)

        empty = jnp.zeros((count, self.places), jnp.int32)
        codes: Array = jax.lax.fori_loop(0, self.places, draw, empty)
        return codes
