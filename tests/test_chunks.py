"""How many images an evaluation takes at a time, and that it does not matter for what it finds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import chunks
from jaxvae.config import Config
from jaxvae.train import programs

SHAPE = (16, 32, 3)  # 64 such images are as many pixels as a training step takes at a time.


@pytest.mark.parametrize(
    ("changes", "draws", "expected"),
    [
        ({}, 1, None),  # Dense: any number.
        ({"architecture": "conv"}, 1, 128),
        ({"architecture": "conv"}, 4, 32),
        ({"architecture": "conv"}, 50, 16),  # Not fewer than twice the least part of a step.
        ({"architecture": "conv", "prior": "vamp"}, 1, None),  # Each part would encode the pseudo-inputs.
        ({"architecture": "resnet"}, 1, 128),
    ],
)
def test_a_cpu_takes_twice_as_many_images_as_in_training(
    changes: dict[str, Any], draws: int, expected: int | None
) -> None:
    config = Config(preset="vae", **changes)
    assert chunks.cached_at_once(config, SHAPE, draws) == expected
    examples = {"image": np.zeros((1000, *SHAPE), np.uint8)}
    whole = chunks.chunk_size(examples, draws=draws)
    assert whole == min(1000, 2**22 // (16 * 32 * 3 * draws))
    assert chunks.chunk_size(examples, config, draws) == min(whole, expected or whole)


def test_another_platform_takes_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunks.cached_at_once(Config(preset="vae", architecture="conv"), SHAPE) is None


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_chunks_find_the_same_whatever_their_size(size: int) -> None:
    examples = {"image": np.arange(7, dtype=np.float32)}

    def run(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        return params * batch["image"] + jax.vmap(jax.random.uniform)(keys)

    found = chunks.in_chunks(run, jnp.float32(2), examples, jax.random.key(0), size)
    np.testing.assert_array_equal(found, chunks.in_chunks(run, jnp.float32(2), examples, jax.random.key(0), 7))
    assert found.dtype == np.float64 and (np.diff(found - 2 * examples["image"]) != 0).all()


def test_a_chunk_is_compiled_as_what_runs_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "seldom_options", lambda backend: {"xla_gpu_no_such_option": 0})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        chunks.in_chunks(lambda _, batch, keys: batch["image"], {}, {"image": np.ones(3)}, jax.random.key(0), 3)
