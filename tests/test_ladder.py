"""The hierarchical VAE: its densities, its bounds, and that latents of all layers decode to what they came from."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import train
from scipy import stats
from small import keys_of

from jaxvae.config import PRESETS, Config
from jaxvae.keys import example_keys
from jaxvae.metrics import ActiveUnits, LayerKL, Subject
from jaxvae.models.build import build_model, sample
from jaxvae.models.ladder import LadderVAE
from jaxvae.models.top_down import layer_grids
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective
from jaxvae.trained import TrainedRun

pytestmark = pytest.mark.unoptimized

SHAPE = (7, 6, 1)


@functools.cache
def built(**changes: Any) -> tuple[Config, LadderVAE, Any]:
    """A model with random weights, none of them 0."""
    small: dict[str, Any] = {"hidden": (8, 12), "blocks": 2, "maps": 2, "batch_size": 8}
    config = dataclasses.replace(PRESETS["ladder"], **{**small, **changes})
    model = build_model(config, SHAPE)
    assert isinstance(model, LadderVAE)
    rng, x = np.random.default_rng(0), jnp.zeros((1, *SHAPE))
    forms = jax.eval_shape(lambda: model.init(jax.random.key(0), {"image": x}, keys_of(0, 1), 1, method="draw"))
    params = jax.tree.map(
        lambda a: jnp.float32(rng.normal(0, 0.7 * np.prod(a.shape[:-1], initial=4.0) ** -0.5, a.shape)), forms
    )
    return config, model, params


def images(count: int = 3) -> Any:
    return np.float32(np.random.default_rng(1).uniform(size=(count, *SHAPE)))


def test_grids_grow_from_the_top_down() -> None:
    assert layer_grids((28, 28, 1), 2, 2) == [(7, 7), (7, 7), (14, 14), (14, 14)]
    assert layer_grids(SHAPE, 2, 1) == [(2, 2), (4, 3)]
    assert built()[1].latent_size == 2 * 2 * (2 * 2 + 4 * 3)


@pytest.mark.long
def test_the_densities_are_those_of_gaussians_given_the_layers_above() -> None:
    """The posterior and prior of each layer are computed again, layer by layer, from the latents that were drawn."""
    _, model, params = built()
    x, keys = images(), keys_of(0, 3)
    drawn = jax.jit(lambda: model.apply(params, {"image": x}, keys, 2, method="draw"))()
    z = np.asarray(drawn.latent).reshape(6, -1)
    eps = np.asarray(jax.vmap(lambda k: jax.random.normal(k, (2, model.latent_size)))(keys)).reshape(6, -1)

    def again(module: LadderVAE) -> Any:
        given = module._split(jnp.asarray(z))
        features = tuple(jnp.repeat(maps, 2, axis=0) for maps in module.encoder(x))
        return module._posterior(features, lambda layer, mean, std: given[layer])[1]

    found = {name: np.float64(value) for name, value in model.apply(params, method=again).items()}
    np.testing.assert_allclose(z, found["mean"] + found["std"] * eps, rtol=1e-4, atol=1e-5)
    posterior = stats.norm.logpdf(z, found["mean"], found["std"]).sum(-1)
    prior = stats.norm.logpdf(z, found["prior_mean"], found["prior_std"]).sum(-1)
    np.testing.assert_allclose(drawn.log_posterior.ravel(), posterior, rtol=1e-4)
    np.testing.assert_allclose(drawn.log_prior.ravel(), prior, rtol=1e-4)
    distance = np.square((found["mean"] - found["prior_mean"]) / found["prior_std"])
    ratio = found["std"] / found["prior_std"]
    kl = (0.5 * (np.square(ratio) + distance - 1) - np.log(ratio)).reshape(3, 2, -1).mean(axis=1)
    np.testing.assert_allclose(drawn.kl, kl, rtol=1e-3, atol=1e-5)
    # The prior of a layer depends on those above it: not the same for two draws, but for the top layer.
    size = 2 * 2 * 2
    assert np.ptp(found["prior_mean"][:, :size], axis=0).max() == 0
    assert np.ptp(found["prior_mean"][:, 2 * size :], axis=0).min() > 0


@pytest.mark.long
def test_both_estimates_of_the_bound_agree() -> None:
    """The one with closed-form KL terms, and that of densities alone, over many draws."""
    config, model, params = built(likelihood="bernoulli")
    x = images(1)
    draws = jax.jit(lambda: model.apply(params, {"image": x}, keys_of(3, 1), 4000, method="draw"))()
    difference = np.asarray(draws.log_posterior - draws.log_prior)[0]
    error = difference.std() / len(difference) ** 0.5
    assert abs(difference.mean() - float(draws.kl.sum())) < 5 * error
    elbo, iwae = (
        build_objective(dataclasses.replace(config, objective=name, samples=50)).of(
            model, params, {"image": x}, keys_of(4, 1), Context()
        )[0]
        for name in ("elbo", "iwae")
    )
    assert float(iwae["unnormalised_iwae_bound"][0]) > float(elbo["unnormalised_elbo"][0])


@pytest.mark.long
def test_latents_decode_to_the_images_that_they_were_drawn_with() -> None:
    _, model, params = built()
    drawn = jax.jit(lambda: model.apply(params, {"image": images()}, keys_of(0, 3), 2, method="draw"))()
    pixels = model.apply(params, drawn.latent, method="pixels")
    np.testing.assert_allclose(pixels.location, drawn.pixels.location, rtol=1e-4, atol=1e-4)
    output = jax.jit(lambda: model.apply(params, images(), keys_of(0, 3)))()
    np.testing.assert_allclose(model.apply(params, output.latent, method="decode"), output.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_samples_follow_the_priors_from_the_top_down() -> None:
    """Drawn latents, standardised by the priors given those above, are standard normal."""
    _, model, params = built()
    count = 3000
    z = jax.jit(lambda: model.apply(params, jax.random.key(5), count, method="sample_latent"))()

    def priors(module: LadderVAE) -> Any:
        given, found = module._split(z), []
        module._down(count, lambda layer, level, prior, state: (found.append(prior), given[layer])[1])
        return found

    from jaxvae.models.vae import split_posterior

    parts = [split_posterior(prior, "linear") for prior in model.apply(params, method=priors)]
    mean, std = (np.concatenate([np.asarray(p[i]).reshape(count, -1) for p in parts], axis=1) for i in range(2))
    standard = (np.asarray(z) - mean) / std
    assert stats.kstest(standard.ravel(), "norm").pvalue > 0.001
    np.testing.assert_allclose(np.corrcoef(standard.T) - np.eye(model.latent_size), 0, atol=6 * count**-0.5)
    assert sample(model, params, jax.random.key(0), 2).shape == (2, *SHAPE)


@pytest.mark.long
def test_an_untrained_model_has_no_kl_term() -> None:
    """Its posteriors and priors are all N(0, I)."""
    config, model, _ = built()
    params = jax.jit(lambda: model.init(jax.random.key(0), {"image": images()}, keys_of(0, 3), 1, method="draw"))()
    terms, _ = build_objective(config).of(model, params, {"image": images()}, keys_of(0, 3), Context())
    np.testing.assert_array_equal(terms["kl"], 0)
    subject = Subject(TrainedRun(config, model, params, 0, SHAPE, {}), build_objective(config))
    measured = ActiveUnits().measure(subject, {"image": np.uint8(255 * images())}, jax.random.key(7))
    assert measured["active_units"].value == [0, 0, 0, 0]


@pytest.mark.long
def test_the_kl_terms_of_the_layers_add_up() -> None:
    config, model, params = built()
    shown = np.uint8(255 * images())
    subject = Subject(TrainedRun(config, model, params, 0, SHAPE, {}), build_objective(config))
    measured = LayerKL().measure(subject, {"image": shown}, jax.random.key(7))["kl_per_layer"]
    found = measured.value
    assert isinstance(found, list) and len(found) == 4 and min(found) > 0
    x = shown / np.float32(255)
    keys = example_keys(jax.random.key(7), 0, 3)
    terms, _ = build_objective(config).of(model, params, {"image": x}, keys, Context())
    assert sum(found) == pytest.approx(float(terms["kl"].mean()), rel=1e-4)
    kl = np.float64(model.apply(params, {"image": x}, keys, 1, method="draw").kl)
    layers = [layer.sum(1) for layer in np.split(kl, np.cumsum(model.layer_sizes())[:-1], axis=1)]
    np.testing.assert_allclose(found, np.mean(layers, axis=1), rtol=1e-4)
    errors = measured.extra["kl_per_layer_standard_error"]
    np.testing.assert_allclose(errors, stats.sem(layers, axis=1), rtol=1e-2, atol=1e-6)


@pytest.mark.long
def test_active_units_say_more_than_their_priors() -> None:
    config, model, params = built()
    # The encoder's features vary so much that some latents are above the threshold, and others below it.
    params = {"params": {**params["params"], "encoder": jax.tree.map(lambda a: 7 * a, params["params"]["encoder"])}}
    shown = np.uint8(255 * images(40))
    subject = Subject(TrainedRun(config, model, params, 0, SHAPE, {}), build_objective(config))
    found = ActiveUnits().measure(subject, {"image": shown}, jax.random.key(7))

    def again(module: LadderVAE) -> Any:
        return module._posterior(module.encoder(shown / np.float32(255)), lambda layer, mean, std: mean)[1]

    given = {name: np.float64(value) for name, value in jax.jit(lambda: model.apply(params, method=again))().items()}
    variance = ((given["mean"] - given["prior_mean"]) / given["prior_std"]).var(axis=0)
    expected = [int((layer > 0.01).sum()) for layer in np.split(variance, np.cumsum(model.layer_sizes())[:-1])]
    assert found.keys() == {"active_units"} and found["active_units"].value == expected
    assert found["active_units"].extra == {"latent_sizes": [8, 8, 24, 24]}
    assert any(0 < units < size for units, size in zip(expected, model.layer_sizes(), strict=True)), expected
    assert expected != [int((layer > 0.01).sum()) for layer in np.split(given["mean"].var(axis=0), [8, 16, 40])]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--objective", "dreg"], "--architecture ladder needs --objective elbo or iwae: the others train one layer"),
        (["--latent-size", "9"], "--latent-size 9 has no effect: it needs another --architecture"),
        (["--condition", "label"], "--condition label needs a VAE with one layer of latents"),
        (["--architecture", "resnet", "--maps", "3"], "--maps 3 has no effect: it needs --architecture ladder"),
    ],
)
def test_conflicting_flags_are_refused(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--preset", "ladder", "--dataset", "digits", "--run-dir", str(tmp_path / "run"), *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
