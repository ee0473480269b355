"""Noise on pixels: what models see, in training and evaluation."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small import SHAPE, config_of, images, keys_of, model_and_params, terms_of

from jaxvae import data
from jaxvae.config import PRESETS, Config
from jaxvae.keys import example_keys
from jaxvae.noise import binarize, corrupt, dequantize, flipped
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import PixelDistribution
from jaxvae.train.step import init_state, make_train_step

pytestmark = pytest.mark.unoptimized


def test_binarized_pixels_are_bernoulli_keyed_by_example() -> None:
    x = jnp.broadcast_to(jnp.linspace(0, 1, 12).reshape(SHAPE), (20_000, *SHAPE))
    drawn = binarize(x, keys_of(0, 20_000))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    error = np.sqrt(np.asarray(x[0] * (1 - x[0])) / 20_000)
    assert (np.abs(np.asarray(drawn.mean(axis=0) - x[0])) <= 4 * error + 1e-7).all()
    np.testing.assert_array_equal(drawn[5:9], binarize(x[5:9], keys_of(0, 20_000)[5:9]))
    assert not np.array_equal(drawn[5:9], binarize(x[5:9], keys_of(1, 20_000)[5:9]))


LEVELS = np.array([0, 1, 2, 77, 100, 127, 128, 200, 253, 254, 255, 13]).reshape(SHAPE)


def test_dequantized_pixels_are_uniform_in_their_bins_keyed_by_example() -> None:
    x = jnp.broadcast_to(jnp.float32(LEVELS / 255), (5000, *SHAPE))
    drawn = np.asarray(dequantize(x, keys_of(0, 5000)), np.float64)
    inside = (256 * drawn - LEVELS).reshape(5000, -1)
    assert inside.min() > -1e-4 and inside.max() < 1 + 1e-4  # float32 rounds 255 x to 3e-5.
    for pixel in inside.T:
        assert stats.kstest(pixel, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(inside.T) - np.eye(12)).max() < 0.07
    np.testing.assert_array_equal(drawn[5:9], dequantize(x[5:9], keys_of(0, 5000)[5:9]))
    assert not np.array_equal(drawn[5:9], dequantize(x[5:9], keys_of(1, 5000)[5:9]))


@pytest.mark.parametrize(("std", "gap"), [(0.5, 1e-4), (0.002, 0.3)])
def test_a_dequantized_density_bounds_the_probability_of_the_levels(std: float, gap: float) -> None:
    """The exact probability is the difference of the normal CDF over each bin; a flat density makes the bound tight."""
    config = config_of(likelihood="gaussian", likelihood_std=std, dequantize=True)
    mean = np.float32((LEVELS + 0.8) / 256)
    x = dequantize(jnp.broadcast_to(jnp.float32(LEVELS / 255), (4000, *SHAPE)), keys_of(0, 4000))
    location = jnp.broadcast_to(jnp.asarray(mean), x.shape)
    bounds = -np.float64(loss_of(config).nll(PixelDistribution(location, None), x))
    exact = np.log(np.diff(stats.norm(mean[..., None], std).cdf((LEVELS[..., None] + np.array([0, 1])) / 256))).sum()
    error = bounds.std() / len(bounds) ** 0.5
    assert exact - 12 * gap - 4 * error < bounds.mean() < exact + 4 * error + 1e-4
    assert exact < 0


@pytest.mark.long
@pytest.mark.parametrize("changes", [{"inputs": "dynamic"}, {"likelihood": "gaussian-global", "dequantize": True}])
@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg", "info", "beta-tc"])
def test_training_and_evaluation_see_noisy_pixels(objective: str, changes: dict[str, Any]) -> None:
    _assert_sees_noisy_pixels(config_of(objective, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["notes-ae", "notes-vae"])
def test_the_notes_models_see_binarized_pixels(preset: str) -> None:
    _assert_sees_noisy_pixels(dataclasses.replace(PRESETS[preset], hidden=(8,), latent_size=3, inputs="dynamic"))


def _assert_sees_noisy_pixels(config: Config) -> None:
    """Only the configuration asks for noise."""
    model, params = model_and_params(config)
    x = jnp.float32(np.random.default_rng(0).integers(0, 256, (6, *SHAPE)) / 255)
    keys = example_keys(jax.random.fold_in(jax.random.key(0), 0), 0, 6)  # Those of step 0.
    draw = dequantize if config.dequantize else binarize
    seen, plain = draw(x, keys), dataclasses.replace(config, inputs="grey", dequantize=False)
    nats = 12 * math.log(256) if config.dequantize else 0.0
    step = make_train_step(model, build_objective(config, 1, 100), build_optimizer(config))
    _, trained = jax.jit(step)(init_state(model, build_optimizer(config), jax.random.key(1)), x, jax.random.key(0))
    evaluated = terms_of(config, model, params, x, keys, Context())
    for context, got in ((Context(jnp.int32(0)), trained), (Context(), evaluated)):
        expected = terms_of(plain, model, params, seen, keys, context)["loss"] + nats
        np.testing.assert_allclose(np.mean(got["loss"]), expected.mean(), rtol=1e-5)
        other = terms_of(plain, model, params, x, keys, context)["loss"] + nats
        assert abs(expected.mean() - other.mean()) > 1e-4 * abs(other.mean())


def test_corruption_hides_pixels_from_the_model_alone() -> None:
    x = jnp.full((5000, *SHAPE), 0.5)
    seen = np.asarray(corrupt(x, keys_of(0, 5000), 0.3))
    assert set(np.unique(seen)) == {0.0, 0.5}
    assert (seen == 0).mean() == pytest.approx(0.3, abs=4 * (0.21 / seen.size) ** 0.5)
    config = dataclasses.replace(PRESETS["notes-ae"], hidden=(8,), latent_size=3, corruption=0.3)
    model, params = model_and_params(config)
    x, keys, plain = images(6), keys_of(0, 6), dataclasses.replace(config, corruption=0.0)
    output = jax.jit(lambda x: model.apply(params, corrupt(x, keys, 0.3)))(x)
    expected = np.square(np.asarray(output.x_hat) - np.asarray(x)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(terms_of(config, model, params, x, keys)["loss"], expected, rtol=1e-5)
    clean = terms_of(config, model, params, x, keys, Context())["loss"]  # Evaluation sees all pixels.
    np.testing.assert_allclose(clean, terms_of(plain, model, params, x, keys, Context())["loss"], rtol=1e-6)


def test_half_of_the_images_are_turned_keyed_by_example() -> None:
    x = jnp.float32(np.random.default_rng(0).uniform(size=(4000, *SHAPE)))
    turned = np.asarray(flipped(x, keys_of(0, 4000)))
    same, mirrored = ((turned == other).all(axis=(1, 2, 3)) for other in (np.asarray(x), np.asarray(x)[:, :, ::-1]))
    assert (same ^ mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    np.testing.assert_array_equal(turned[5:9], flipped(x[5:9], keys_of(0, 4000)[5:9]))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["notes-ae", "vae"])
def test_training_alone_turns_images(preset: str) -> None:
    plain = dataclasses.replace(PRESETS[preset], hidden=(8,), latent_size=3)
    config = dataclasses.replace(plain, flip=True)
    model, params = model_and_params(config)
    x, keys = images(16), keys_of(0, 16)
    assert not np.array_equal(x, flipped(x, keys))
    expected = terms_of(plain, model, params, flipped(x, keys), keys)["loss"]
    np.testing.assert_allclose(terms_of(config, model, params, x, keys)["loss"], expected, rtol=1e-6)
    evaluated = [terms_of(each, model, params, x, keys, Context())["loss"] for each in (config, plain)]
    np.testing.assert_array_equal(*evaluated)


def test_static_pixels_are_drawn_once(image_file: Path) -> None:
    images = data.load(str(image_file))
    first, again, other = (data.binarized(images, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)
    assert not np.array_equal(first.train[:32], first.test)
    mean = np.mean([data.binarized(images, seed).train / 255 for seed in range(200)], axis=0)
    p = images.train / 255
    assert (np.abs(mean - p) <= 5 * np.sqrt(p * (1 - p) / 200) + 1e-9).all()
    assert Config().inputs == "grey"
