"""The prior of the codes of an image: autoregressive, or uniform.

Shapes: B images; N codes each, from 0 to K - 1.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, Key

from jaxvae.models.layers import GLOROT, ByLabel, at_least_float32
from jaxvae.typing import Array

HEAD_WIDTH = 32  # Of each attention head, where it divides the width.

# The keys and values of a block at all places, [B, N, heads, W / heads] each; zeros at places that are yet to come.
Seen = tuple[Array, Array]


class CausalBlock(nn.Module):
    """``x + attention(x)``, then ``x + mlp(x)``, for x [B, N, W]: a place sees itself and those before it.

    Vaswani et al. (arXiv 1706.03762), with normalisation first (Xiong et al., arXiv 2002.04745).
    """

    width: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        style = {"dtype": self.dtype, **GLOROT}
        self.norm_0, self.norm_1 = nn.LayerNorm(), nn.LayerNorm()
        self.query, self.key, self.value = (nn.Dense(self.width, **style) for _ in range(3))
        self.mixed, self.narrow = nn.Dense(self.width, **style), nn.Dense(self.width, **style)
        self.wide = nn.Dense(4 * self.width, **style)

    def __call__(self, x: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
        query, key, value = self._heads(x)
        return self._added(x, jax.nn.dot_product_attention(query, key, value, is_causal=True))

    def one(self, x: Float[Array, "B 1 W"], seen: Seen, place: Int[Array, ""]) -> tuple[Float[Array, "B 1 W"], Seen]:
        """`__call__` for one place, and `seen` with its key and value added to those of the places before it."""
        query, *new = self._heads(x)
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(all_, own, place, axis=1) for all_, own in zip(seen, new, strict=True)
        )
        before = jnp.arange(key.shape[1]) <= place
        mixed = jax.nn.dot_product_attention(query, key, value, mask=before[None, None, None])
        return self._added(x, mixed), (key, value)

    def _heads(self, x: Array) -> tuple[Array, ...]:
        y, heads = self.norm_0(x), _heads_of(self.width)
        return tuple(layer(y).reshape(*x.shape[:2], heads, -1) for layer in (self.query, self.key, self.value))

    def _added(self, x: Array, mixed: Array) -> Array:
        x = x + at_least_float32(self.mixed(mixed.reshape(x.shape)))
        return x + at_least_float32(self.narrow(nn.gelu(self.wide(self.norm_1(x)))))


def _heads_of(width: int) -> int:
    return width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1


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
        self.blocks = [CausalBlock(self.width, self.dtype) for _ in range(self.layers)]
        self.norm = nn.LayerNorm()
        self.out = nn.Dense(self.codes, dtype=self.dtype, kernel_init=normal)

    def logits(self, codes: Int[Array, "B N"], label: Int[Array, " B"] | None = None) -> Float[Array, "B N K"]:
        """Logits of the code at each place, given those before it."""
        if not self.layers:
            return jnp.zeros((*codes.shape, self.codes))
        x = jnp.concatenate([self._start(codes, label), self.code(codes[:, :-1])], axis=1) + self.place[None]
        for block in self.blocks:
            x = block(x)
        return at_least_float32(self.out(self.norm(x)))

    def _next(
        self, code: Int[Array, " B"], seen: Sequence[Seen], place: Int[Array, ""], label: Int[Array, " B"] | None
    ) -> tuple[Float[Array, "B K"], Sequence[Seen]]:
        """The logits of one place, given the code before it; and what the blocks have seen then."""
        if not self.layers:
            return jnp.zeros((len(code), self.codes)), seen
        x = jnp.where(place == 0, self._start(code, label), self.code(code)[:, None])
        x = x + jax.lax.dynamic_slice_in_dim(self.place, place, 1)[None]
        now = []
        for block, own in zip(self.blocks, seen, strict=True):
            x, own = block.one(x, own, place)
            now.append(own)
        return at_least_float32(self.out(self.norm(x)))[:, 0], now

    def _start(self, codes: Array, label: Array | None) -> Float[Array, "B 1 W"]:
        """What stands before the first code."""
        start: Array = self.start(jnp.zeros(len(codes), jnp.int32) if label is None else label)
        return start[:, None]

    def log_probability(self, codes: Int[Array, "B N"], label: Int[Array, " B"] | None = None) -> Float[Array, " B"]:
        """log p(codes) of each image, nats."""
        log_p = nn.log_softmax(self.logits(codes, label))
        return jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0].sum(-1)

    def sample(self, key: Key[Array, ""], count: int, label: Int[Array, " B"] | None = None) -> Int[Array, "{count} N"]:
        """Draw the codes of `count` images, place by place."""
        module, variables = self.unbind()
        heads = _heads_of(self.width)
        empty = jnp.zeros((count, self.places, heads, self.width // heads), self.dtype)
        first = jnp.zeros(count, jnp.int32), [(empty, empty)] * self.layers

        def draw(before: tuple[Array, Any], place: Array) -> tuple[tuple[Array, Any], Array]:
            logits, seen = module.apply(variables, *before, place, label, method="_next")
            drawn = jax.random.categorical(jax.random.fold_in(key, place), logits).astype(jnp.int32)
            return (drawn, seen), drawn

        codes: Array = jax.lax.scan(draw, first, jnp.arange(self.places))[1]
        return codes.T
