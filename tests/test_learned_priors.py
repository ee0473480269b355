"""Learned priors in whole runs: what is trained, resumed, evaluated, drawn and exported with each."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray
from runs import train
from safetensors.numpy import load_file
from scipy import special, stats
from small import config_of, images, keys_of, many, model_and_params, subject_of

import jaxvae
from jaxvae import config_file, evaluate, generate
from jaxvae.errors import InputError
from jaxvae.export import formats
from jaxvae.metrics.likelihood import log_likelihood
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective
from jaxvae.torch_weights import params_from_torch, torch_from_params

pytestmark = pytest.mark.unoptimized

PRIORS: dict[str, dict[str, Any]] = {
    "mixture": {"mixture_components": 4},
    "vamp": {"pseudo_inputs": 6},
    "realnvp": {"flow_layers": 3, "flow_width": 8},
}


def flags(prior: str, image_file: Path, *more: str) -> list[str]:
    own = [word for name, value in PRIORS[prior].items() for word in (f"--{name.replace('_', '-')}", str(value))]
    small = ["--hidden", "16", "8", "--latent-size", "4", "--batch-size", "8"]
    return ["--preset", "vae", "--dataset", str(image_file), "--prior", prior, *own, *small, *more]


@pytest.mark.long
@pytest.mark.parametrize("prior", PRIORS)
def test_a_run_is_evaluated_drawn_from_and_exported(prior: str, image_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    given = flags(prior, image_file, "--objective", "iwae", "--samples", "2", "--ema", "0.9")
    assert train(*given, "--epochs", "4", "--run-dir", str(whole)) == 0
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]

    found = evaluate.evaluate_run(whole, samples=20)
    assert "kl_per_dimension" not in found and found["latent_sizes"] == [4]
    assert found["unnormalised_log_likelihood"] > found["unnormalised_iwae_bound"] - 1
    run = jaxvae.load(whole)
    drawn = generate.generate(whole, 9, seed=3)
    assert drawn.shape == (9, 6, 5, 1) and drawn.std(axis=0).max() > 0
    np.testing.assert_array_equal(drawn, run.sample(9, 3))

    formats.export_run(whole, "safetensors", tmp_path / "card")
    config = config_file.load(tmp_path / "card" / "config.json", to_use=True)
    variables = unflatten_dict(load_file(tmp_path / "card" / "model.safetensors"), sep=".")
    latents = np.zeros((2, 4), np.float32)
    theirs = jaxvae.build_model(config, (6, 5, 1)).apply(variables, latents, method="decode")
    np.testing.assert_allclose(jax.nn.sigmoid(theirs), run.decode(latents), rtol=1e-5)
    back = params_from_torch(torch_from_params(run.variables, run.model), run.model)
    jax.tree.map(np.testing.assert_array_equal, back["params"], run.variables["params"])
    with pytest.raises(InputError, match="--format html needs a VAE with one layer of latents and --prior normal"):
        formats.export_run(whole, "html", tmp_path / "page.html")


CHANGES: dict[str, dict[str, Any]] = {
    "info": {"objective": "info", "compute_dtype": "bfloat16"},
    "dreg": {"objective": "dreg", "samples": 3},
    "spatial": {"architecture": "resnet", "hidden": (8,), "blocks": 1, "latents": "spatial", "latent_size": 4},
    "label": {"condition": "label", "classes": 3},
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("prior", "changes"),
    # A VampPrior refuses labels: see test_vamp.py.
    [(prior, name) for prior in PRIORS for name in CHANGES if (prior, name) != ("vamp", "label")],
)
def test_the_gradient_of_every_loss_is_finite_and_reaches_the_prior(prior: str, changes: str) -> None:
    config = config_of(**{"prior": prior, **PRIORS[prior], **CHANGES[changes]})
    model, params = model_and_params(config)
    loss, batch = build_objective(config, 1, 100), {"image": images(6), "label": jnp.arange(6) % 3}

    def mean_loss(params: Any) -> jax.Array:
        return loss.of(model, params, batch, keys_of(0, 6), Context(jnp.int32(0)))[0]["loss"].mean()

    gradients = jax.jit(jax.grad(mean_loss))(params)["params"]
    leaves = jax.tree.leaves(gradients)
    assert all(np.isfinite(leaf).all() and leaf.dtype == jnp.float32 for leaf in leaves)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients["p_z"])) > 0


def test_the_estimated_kl_term_is_that_of_the_closed_form() -> None:
    """A mixture of one component is a Gaussian."""
    config = config_of(prior="mixture", mixture_components=1)
    model, params = model_and_params(config)
    own = params["params"]["p_z"]
    own["log_std"] = jnp.array([[0.3, -0.2, 0.1]])
    mean, std = (np.float64(a) for a in model.apply(params, images(3), method="encode"))
    ratio = std / np.exp(np.float64(own["log_std"]))
    offset = (mean - np.float64(own["mean"])) / np.exp(np.float64(own["log_std"]))
    expected = (0.5 * (ratio**2 + offset**2 - 1) - np.log(ratio)).sum(axis=1)
    found = many(config, params, model, images(3), 4000)["kl"]
    error = found.std(axis=0) / len(found) ** 0.5
    assert (np.abs(found.mean(axis=0) - expected) < 4 * error).all()


@pytest.mark.long
@pytest.mark.parametrize("prior", PRIORS)
def test_iwae_and_dreg_have_the_same_value(prior: str) -> None:
    bounds = []
    for objective in ("iwae", "dreg"):
        config = config_of(objective, prior=prior, samples=4, **PRIORS[prior])
        model, params = model_and_params(config)
        loss = build_objective(config, 1, 100)
        terms, _ = loss.of(model, params, {"image": images(5)}, keys_of(0, 5), Context())
        bounds.append(terms[loss.bound_name])
    np.testing.assert_allclose(*bounds, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_importance_sampling_finds_the_integral_over_the_prior(prior: str) -> None:
    """log p(x) of one latent dimension, on a grid, with the prior from SciPy."""
    config = config_of(prior=prior, latent_size=1, likelihood="gaussian", likelihood_std=0.3, **PRIORS[prior])
    model, params = model_and_params(config)
    if prior == "vamp":
        own = jax.random.uniform(jax.random.key(4), params["params"]["p_z"]["pseudo_inputs"].shape)
        params["params"]["p_z"]["pseudo_inputs"] = own
        mean, std = model.apply(params, own, method="encode")
    else:
        mean, std = params["params"]["p_z"]["mean"], jnp.exp(params["params"]["p_z"]["log_std"])
    grid = np.linspace(-12, 12, 4001)
    each = stats.norm.logpdf(grid[:, None], np.float64(mean)[:, 0], np.float64(std)[:, 0])
    log_prior = special.logsumexp(each, axis=1) - np.log(len(mean))
    decoded = np.float64(model.apply(params, jnp.float32(grid)[:, None], method="pixels").location).reshape(4001, -1)
    pixels: NDArray[np.uint8] = np.asarray(np.round(255 * images(3))).astype(np.uint8)
    x = np.float64(pixels).reshape(3, -1) / 255
    log_px = stats.norm.logpdf(x[:, None], decoded, 0.3).sum(axis=-1)
    expected = special.logsumexp(log_px + log_prior, axis=1) + np.log(grid[1] - grid[0])
    subject = subject_of(config, model, params)
    found, error = log_likelihood(subject, {"image": pixels}, jax.random.key(5), 4000)
    assert (np.abs(found - expected) < 5 * error + 1e-3).all()
