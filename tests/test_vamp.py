"""The VampPrior: against the posteriors of its pseudo-inputs, where it starts, and what it costs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from small import SHAPE, config_of, images, keys_of, products

from jaxvae.config import Config
from jaxvae.data import ImageData, load
from jaxvae.data.reading import Reading
from jaxvae.data.rows import Rows
from jaxvae.errors import InputError
from jaxvae.models.build import Start, build_model
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state
from jaxvae.train.trainer import start_of

pytestmark = pytest.mark.unoptimized

K = 5


def model_and_params(**changes: Any) -> tuple[Config, Any, Any]:
    config = config_of(prior="vamp", pseudo_inputs=K, **changes)
    model = build_model(config, SHAPE)
    params = init_state(model, build_optimizer(config), jax.random.key(1)).params
    own = params["params"]["p_z"]
    own["pseudo_inputs"] = jax.random.uniform(jax.random.key(2), own["pseudo_inputs"].shape, minval=-0.2, maxval=1.2)
    return config, model, params


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_the_density_is_the_mean_of_the_posteriors_of_the_pseudo_inputs(architecture: str) -> None:
    _, model, params = model_and_params(architecture=architecture)
    seen = np.clip(params["params"]["p_z"]["pseudo_inputs"], 0, 1)
    mean, std = (np.float64(a) for a in model.apply(params, seen, method="encode"))
    latent = np.random.default_rng(0).normal(size=(4, 3, 3))
    each = stats.norm.logpdf(latent[:, :, None], mean, std).sum(-1)
    expected = special.logsumexp(each, axis=-1) - np.log(K)
    np.testing.assert_allclose(model.apply(params, jnp.float32(latent), {}, method="log_prior"), expected, rtol=1e-5)

    drawn = np.float64(model.apply(params, jax.random.key(3), (50_000,), method="sample_prior"))
    np.testing.assert_allclose(drawn.mean(0), mean.mean(0), atol=0.03)
    np.testing.assert_allclose(drawn.var(0), (std**2 + mean**2).mean(0) - mean.mean(0) ** 2, rtol=0.05)


@pytest.mark.parametrize(("count", "expected"), [(9, [0, 2, 4, 6, 8]), (3, [0, 0, 1, 1, 2]), (1, [0] * 5)])
def test_pseudo_inputs_start_at_training_images_from_all_parts_of_the_set(count: int, expected: list[int]) -> None:
    config = config_of(prior="vamp", pseudo_inputs=K)
    train = np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    start = start_of(config, ImageData("own", "own", train, train[:1]))
    assert start.mean is None
    np.testing.assert_array_equal(start.images, (train / 255)[expected].astype(np.float32))


def test_pseudo_inputs_start_at_images_of_a_file_that_is_streamed(tmp_path: Path) -> None:
    train = np.random.default_rng(0).integers(0, 256, (40, *SHAPE)).astype(np.uint8)
    np.save(tmp_path / "train.npy", train)
    images = load(str(tmp_path / "train.npy"), None, Reading(stream="always"))
    assert isinstance(images.train, Rows)
    start = start_of(config_of(prior="vamp", pseudo_inputs=2), images)
    np.testing.assert_array_equal(start.images, (train / 255)[[0, 38]].astype(np.float32))  # Every tenth is for tests.


@pytest.mark.slow
def test_pseudo_inputs_lie_half_way_from_the_mean_to_an_image_but_for_little_noise() -> None:
    config = config_of(prior="vamp", pseudo_inputs=400)
    seen = np.random.default_rng(0).integers(0, 2, (400, *SHAPE)).astype(np.float32)
    seen[:, 0, 0] = 0.0
    halfway = (np.float64(seen) + seen.mean(axis=0, dtype=np.float64)) / 2
    model = build_model(config, SHAPE)
    first = init_state(model, build_optimizer(config), jax.random.key(1), Start(images=seen)).params["params"]
    own = np.asarray(first["p_z"]["pseudo_inputs"])
    inside = halfway > 0.05
    assert inside.sum() == 400 * 11
    assert abs(np.mean((own - halfway)[inside])) < 1e-3
    np.testing.assert_allclose(np.std((own - halfway)[inside]), 0.01, rtol=0.05)
    assert own[:, 0, 0].min() == 0 and own[:, 0, 0].max() < 0.05
    plain = init_state(model, build_optimizer(config), jax.random.key(1)).params["params"]
    jax.tree.map(np.testing.assert_array_equal, first["decoder"], plain["decoder"])


@pytest.mark.parametrize(("objective", "samples"), [("elbo", 1), ("elbo", 3), ("iwae", 4)])
def test_pseudo_inputs_are_encoded_once_for_all_latents(objective: str, samples: int) -> None:
    config, model, params = model_and_params(objective=objective, samples=samples)
    loss = build_objective(config, 1, 1)

    def terms(params: Any) -> Any:
        return loss.of(model, params, {"image": images(4)}, keys_of(0, 4), Context(jnp.int32(0)))[0]

    shapes = [product.outvars[0].aval.shape for product in products(jax.make_jaxpr(terms)(params).jaxpr)]
    # Two products for the pseudo-inputs, two for the images, two for all latents.
    assert sorted(shapes) == sorted([(K, 8), (K, 6), (4, 8), (4, 6), (4 * samples, 8), (4 * samples, 12)])


def test_info_encodes_them_once_for_all_its_draws() -> None:
    config, model, params = model_and_params(objective="info")
    loss = build_objective(config, 1, 1)

    def terms(params: Any) -> Any:
        return loss.of(model, params, {"image": images(4)}, keys_of(0, 4), Context(jnp.int32(0)))[0]

    shapes = [product.outvars[0].aval.shape for product in products(jax.make_jaxpr(terms)(params).jaxpr)]
    assert shapes.count((K, 8)) == 2 and not any(
        len(shape) > 2 for shape in shapes
    )  # One for log p, one for the draws.


def test_a_batch_is_not_computed_in_parts_that_would_each_encode_them() -> None:
    from jaxvae.train.programs import part_size

    for prior, parts in (("normal", True), ("vamp", False)):
        config = Config(preset="vae", architecture="conv", batch_size=128, prior=prior)
        assert (part_size(config, (28, 28, 1), 1, "cpu") is not None) == parts


@pytest.mark.slow
def test_the_gradient_reaches_the_pseudo_inputs_and_the_encoder() -> None:
    _, model, params = model_and_params()
    latent = jnp.float32(np.random.default_rng(0).normal(size=(4, 1, 3)))
    gradient = jax.grad(lambda p: model.apply(p, latent, {}, method="log_prior").sum())(params)["params"]
    moved = {part: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[part])) for part in gradient}
    assert moved["p_z"] > 0 and moved["encoder"] > 0 and moved["decoder"] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"condition": "label", "classes": 3}, "--prior vamp: not with --condition label"),
        (
            {"architecture": "two-layer", "hidden": (8, 4), "head": "exp"},
            "--prior vamp needs a network with one layer of latents",
        ),
        ({"pseudo_inputs": 0}, "--pseudo-inputs must be from 1 to 65536, not 0"),
        ({"objective": "beta-tc"}, "--objective beta-tc needs a prior whose KL term has a closed form: --prior normal"),
        ({"free_bits": 0.5}, "--free-bits 0.5 has no effect: it needs --prior normal or label"),
        ({"mixture_components": 3}, "--mixture-components 3 has no effect: it needs --prior mixture"),
    ],
)
def test_what_has_no_meaning_with_it_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Config(**{"preset": "vae", "prior": "vamp", **changes})
