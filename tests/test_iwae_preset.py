"""What docs/iwae-preset.md says of the preset beside the authors' code: Adam, the rates, the widths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.typing import NDArray

from jaxvae import PRESETS, build_model, build_optimizer
from jaxvae.config import preset
from jaxvae.train.step import abstract_state

pytestmark = pytest.mark.unoptimized

IWAE = PRESETS["iwae"]
BATCH = 20
EPOCH = 3_000


def authors_steps(gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """The authors' Adam, in units of the rate, for gradients [T, N] summed over the batch.

    Second moments start at one; eps is added to their root before the bias correction.
    """
    m, v = np.zeros(gradients.shape[1]), np.ones(gradients.shape[1])
    steps = []
    for t, g in enumerate(gradients, start=1):
        m, v = 0.99 * m + 0.01 * g, 0.999 * v + 0.001 * g**2
        steps.append(np.sqrt(1 - 0.999**t) / (1 - 0.99**t) * m / (np.sqrt(v) + 1e-4))
    return np.array(steps)


@pytest.mark.parametrize(("size", "equal_after"), [(1.0, 2 * EPOCH), (0.1, 4 * EPOCH)])
def test_adam_takes_the_authors_steps_once_their_second_moments_have_forgotten_their_start(
    size: float, equal_after: int
) -> None:
    rng = np.random.default_rng(0)
    gradients = size * (0.3 + rng.standard_normal((equal_after + 100, 30)))
    theirs = authors_steps(gradients)

    constant = dataclasses.replace(IWAE, schedule="constant", learning_rate=1.0)
    optimizer = build_optimizer(constant)

    def step(state: optax.OptState, gradient: jax.Array) -> tuple[optax.OptState, jax.Array]:
        updates, state = optimizer.update(gradient, state)
        return state, updates

    with jax.enable_x64(True):
        # The mean over the batch, where theirs is the sum.
        ours = jax.jit(lambda g: jax.lax.scan(step, optimizer.init(g[0]), g)[1])(jnp.asarray(gradients / BATCH))
    ratio = np.abs(theirs).sum(axis=1) / np.abs(ours).sum(axis=1)
    assert ratio[0] == pytest.approx(0.001**0.5 * np.abs(gradients[0]).mean(), rel=0.01)
    assert np.all(ratio[:EPOCH] < 1)
    np.testing.assert_allclose(ratio[equal_after:], 1, atol=2.5e-3)


def test_the_rate_is_theirs_within_what_they_round() -> None:
    fraction = IWAE.parts.optimizer.rate_schedule(IWAE.epochs, EPOCH)
    first = 0
    for i in range(8):
        theirs = round(10.0 ** (1 - i / 7), 1) / 10
        last = first + 3**i * EPOCH - 1
        for step in (first, last):
            assert float(fraction(jnp.asarray(step))) == pytest.approx(theirs, rel=0.0165)
        first = last + 1
    assert first == 3_280 * EPOCH


@pytest.mark.parametrize(
    ("changes", "encoder", "decoder"),
    [
        ({}, [(784, 200), (200, 200), (200, 2 * 50)], [(50, 200), (200, 200), (200, 784)]),
        (
            {"architecture": "two-layer", "hidden": (200, 100)},
            [(784, 200), (200, 200), (200, 2 * 100), (100, 100), (100, 100), (100, 2 * 50)],
            [(50, 100), (100, 100), (100, 2 * 100), (100, 200), (200, 200), (200, 784)],
        ),
    ],
)
def test_the_layers_have_their_widths(changes: dict[str, object], encoder: list[object], decoder: list[object]) -> None:
    config = dataclasses.replace(preset("iwae"), **changes)  # type: ignore[arg-type]
    params = abstract_state(build_model(config, (28, 28, 1)), build_optimizer(config, steps_per_epoch=1)).params[
        "params"
    ]

    def kernels(*parts: str) -> list[object]:
        layers = [params[part].get("mlp", params[part]) for part in parts if part in params]
        return [mlp[name]["kernel"].shape for mlp in layers for name in sorted(mlp)]

    assert kernels("encoder", "encoder_2") == encoder
    assert kernels("decoder_2", "decoder") == decoder
