"""All objectives: names of bounds, the selection of models, and what is refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SMALL, config_of

from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.models.build import build_model, init_variables
from jaxvae.models.likelihoods import bernoulli_nll
from jaxvae.models.priors import gaussian_kl_per_dimension
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import (
    OBJECTIVES,
    build_objective,
    loss_of,
    measure_warning,
    selection_cost,
    selection_term,
)
from jaxvae.objectives.notes import mse, notes_kld
from jaxvae.run import records

pytestmark = pytest.mark.unoptimized


@pytest.mark.parametrize(
    ("likelihood", "inputs", "prefix", "log_p"),
    [
        ("bernoulli", "dynamic", "", "log_likelihood"),
        ("bernoulli", "static", "", "log_likelihood"),
        ("logistic", "grey", "", "log_likelihood"),
        ("bernoulli", "grey", "unnormalised_", "unnormalised_log_likelihood"),
        ("gaussian", "grey", "density_", "log_density"),
        ("gaussian-global", "grey", "density_", "log_density"),
        ("gaussian-pixel", "dynamic", "density_", "log_density"),
        ("gaussian", "dequantized", "", "log_likelihood"),
        ("gaussian-global", "dequantized", "", "log_likelihood"),
    ],
)
@pytest.mark.parametrize(("objective", "bound"), [("elbo", "elbo"), ("info", "elbo"), ("beta-tc", "elbo"),
                                                  ("iwae", "iwae_bound"), ("dreg", "iwae_bound")])  # fmt: skip
def test_a_bound_is_named_for_what_it_bounds(
    objective: str, bound: str, likelihood: str, inputs: str, prefix: str, log_p: str
) -> None:
    pixels = {"dequantize": True} if inputs == "dequantized" else {"inputs": inputs}
    config = config_of(objective, likelihood=likelihood, **pixels)
    warning = measure_warning(config)
    assert ("--dequantize" in (warning or "")) == (warning is not None) == (prefix == "density_")
    assert loss_of(config).bound_name == prefix + bound
    assert loss_of(config).likelihood_name == log_p
    assert selection_term(config) == (prefix + bound, True)
    assert prefix + bound in records.FIRST


@pytest.mark.parametrize("preset", ["notes-ae", "notes-vae"])
def test_the_notes_models_are_selected_by_their_loss(preset: str) -> None:
    assert selection_term(PRESETS[preset]) == ("loss", False)
    assert selection_cost(PRESETS[preset], {"loss": 0.5, "elbo": 9.0}) == 0.5


def test_a_lower_selection_cost_is_better() -> None:
    config = config_of(inputs="dynamic")
    assert selection_cost(config, {"loss": 0.5, "elbo": -9.0}) == 9.0
    assert selection_cost(config, {"loss": 0.5}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": "relu"}, "--objective elbo needs --head linear, logvar or exp"),
        ({"objective": "beta-tc", "samples": 2}, "--samples 2 .*--objective elbo, iwae or dreg"),
        (
            {"objective": "dreg", "architecture": "two-layer", "hidden": (8, 6)},
            "--architecture two-layer needs --objective elbo or iwae",
        ),
        ({"architecture": "two-layer", "hidden": (3,)}, "needs two --hidden widths"),
        ({"mmd_weight": 1.0}, "--mmd-weight 1 .*--objective info"),
        ({"corruption": 0.5}, "--corruption 0.5 .*--objective mse"),
        ({"objective": "notes-elbo", "beta": 2.0}, "--beta 2 .*--objective elbo, iwae"),
        ({"likelihood": "logistic", "inputs": "dynamic"}, "--likelihood logistic needs --inputs grey"),
        ({"kl_cycles": 3}, "--kl-cycles 3 .*--kl-warmup-epochs"),
        ({"dequantize": True}, "--dequantize needs a gaussian --likelihood"),
        ({"dequantize": True, "likelihood": "logistic"}, "--dequantize needs a gaussian --likelihood"),
        ({"dequantize": True, "likelihood": "gaussian", "inputs": "static"}, "--dequantize .* needs --inputs grey"),
        ({"dequantize": True, "objective": "notes-elbo"}, "--dequantize needs"),
        ({"free_bits": -1.0}, "--free-bits must be finite and not negative"),
        ({"adam_b1": 1.0}, r"--adam-b1 must be in \[0, 1\)"),
        ({"likelihood_std": 0.0}, "--likelihood-std must be positive"),
    ],
)
def test_conflicting_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluation_of_an_example_does_not_depend_on_the_batch(name: str) -> None:
    latents = OBJECTIVES[name].latent_model
    needed = {"mmd_weight": 1.0} if name == "info" else {}
    size = {"architecture": "conv", "latents": "spatial"} if name in ("vq", "fsq") else {"latent_size": 5}
    config = Config("vae", objective=name, hidden=(4,), **needed, **size)
    model, loss = build_model(config, (4, 3, 2)), build_objective(config, 1, 100)
    x = jnp.float32(np.random.default_rng(3).uniform(size=(6, 4, 3, 2)))
    variables = jax.jit(lambda key: init_variables(model, key, {"image": x[:1]}))(jax.random.key(0))
    params = {"params": variables.pop("params")}
    of = jax.jit(lambda x, keys: loss.of(model, params, {"image": x}, keys, Context(), variables)[0])
    keys = jax.random.split(jax.random.key(1), 6)
    terms = of(x, keys)
    assert {v.shape for v in terms.values()} == {(6,)}
    assert len(terms) == ({"mse": 1, "rae": 3}[name] if not latents else 4 if OBJECTIVES[name].bound else 3)
    for term, value in of(x[2:3], keys[2:3]).items():
        np.testing.assert_allclose(value[0], terms[term][2], rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: mse(a, b),
        lambda a, b: bernoulli_nll(a, b),
        lambda a, b: gaussian_kl_per_dimension(a, b),
        lambda a, b: notes_kld(a, b, 784),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes must agree: .*\(4, 3\).*\(4, 1\)"):
        call(jnp.ones((4, 3)), jnp.ones((4, 1)))
