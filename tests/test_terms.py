"""The terms of every objective in nats against NumPy in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from small import SHAPE, config_of, images, keys_of, model_and_params, terms_of
from written import Written, double_sum, stratified

from jaxvae.keys import fold_in_each
from jaxvae.models.build import build_model
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state, make_train_step

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "samples", "changes"),
    [
        ("elbo", 1, {}),
        ("elbo", 3, {"beta": 3.0}),
        ("elbo", 1, {"beta": 3.0, "free_bits": 0.2}),
        ("iwae", 3, {"beta": 3.0}),
        ("dreg", 3, {"beta": 3.0}),
        ("info", 1, {"beta": 3.0, "free_bits": 0.2, "mmd_weight": 2.0}),
        ("beta-tc", 1, {"beta": 3.0}),
    ],
    ids=["elbo", "samples", "free_bits", "iwae", "dreg", "info", "beta-tc"],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_terms_are_those_written_out(training: bool, objective: str, samples: int, changes: dict[str, Any]) -> None:
    written = Written(objective, samples, **changes)
    log_px, log_ratio, z, mean, std = written.densities(*[written.start] * 3)
    per_dimension = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    expected = {"recon": -log_px.mean(axis=1), "kl": per_dimension.sum(axis=1)}
    beta, free = changes.get("beta", 1.0), changes.get("free_bits", 0.0)
    assert not free or ((per_dimension < free).any() and (per_dimension > free).any())
    bound = "unnormalised_elbo", -(expected["recon"] + expected["kl"])
    expected["loss"] = expected["recon"] + beta * np.maximum(per_dimension, free).sum(axis=1)
    if objective in ("iwae", "dreg"):
        expected["kl"] = -log_ratio.mean(axis=1)
        expected["loss"] = -np.log(np.exp(log_px + beta * log_ratio).mean(axis=1))
        bound = "unnormalised_iwae_bound", np.log(np.exp(log_px + log_ratio).mean(axis=1))
    if objective == "beta-tc":
        expected["loss"] = expected["recon"] + expected["kl"]
    if training and objective == "beta-tc":
        expected["tc"] = np.full(5, stratified(z[:, 0], mean, std, 100).mean())
        expected["loss"] = expected["loss"] + 2 * expected["tc"]
    if training and objective == "info":
        prior = np.float64(jax.vmap(lambda k: jax.random.normal(k, (3,)))(fold_in_each(written.keys, "prior")))
        expected["mmd"] = np.full(5, double_sum(z[:, 0], prior))
        expected["loss"] = expected["loss"] + 2.0 * 12 * expected["mmd"]
    if not training:
        expected |= dict([bound])
    context = Context(jnp.int32(0)) if training else Context()
    got = terms_of(written.config, written.model, written.params, written.x, written.keys, context)
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "elbo"},
        {"objective": "elbo", "samples": 3},
        {"objective": "elbo", "free_bits": 0.3},
        {"objective": "info", "mmd_weight": 2.0, "free_bits": 0.3},
        {"objective": "beta-tc"},
        {"objective": "iwae", "samples": 3},
        {"objective": "dreg", "samples": 3},
        {"objective": "elbo", "architecture": "two-layer", "hidden": (8, 6)},
        {"objective": "iwae", "samples": 3, "architecture": "two-layer", "hidden": (8, 6)},
    ],
    ids=["elbo", "samples", "free_bits", "info", "beta-tc", "iwae", "dreg", "two-layer", "two-layer-iwae"],
)
def test_the_bound_is_the_same_for_all_weights(changes: dict[str, Any]) -> None:
    config = config_of(beta=3.0, **changes)
    model, params = model_and_params(config, scale=2.0)
    rng = np.random.default_rng(0)
    x, keys = jnp.float32(rng.uniform(size=(6, *SHAPE))), keys_of(0, 6)
    name = loss_of(config).bound_name
    terms = terms_of(config, model, params, x, keys, Context())
    assert name not in terms_of(config, model, params, x, keys)
    draws = model.apply(params, {"image": x}, keys, config.samples, method="draw")
    log_px = -np.float64(loss_of(config).nll(draws.pixels, x))
    if name.endswith("iwae_bound"):
        expected = np.log(np.exp(log_px + draws.log_prior - draws.log_posterior).mean(axis=1))
    elif config.architecture == "two-layer":
        expected = (log_px + draws.log_prior - draws.log_posterior).mean(axis=1)
    else:
        mean, std = np.float64(draws.mean), np.float64(draws.std)
        expected = log_px.mean(axis=1) - (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(axis=1)
    np.testing.assert_allclose(terms[name], expected, rtol=1e-4)
    if config.objective == "elbo" and not config.free_bits:
        np.testing.assert_allclose(terms["loss"], terms["recon"] + 3 * terms["kl"], rtol=1e-5)
    plain = dataclasses.replace(config, beta=1.0, free_bits=0.0)
    same = terms_of(plain, model, params, x, keys, Context())
    np.testing.assert_allclose(terms[name], -same["loss"], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("objective", ["info", "beta-tc", "factor"])
def test_terms_of_a_batch_are_of_the_global_batch(objective: str) -> None:
    config = config_of(objective, beta=3.0, mmd_weight=2.0 if objective == "info" else 0.0)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    state = init_state(model, optimizer, jax.random.key(0))
    batch, parts = images(16), (model, build_objective(config, 1, 500), optimizer)
    _, expected = jax.jit(make_train_step(*parts))(state, batch, jax.random.key(1))
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(AxisType.Auto,))
    here, split = PartitionSpec(), PartitionSpec("data")
    step = make_train_step(*parts, axis_name="data")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(here, split, here), out_specs=here, check_vma=False)
    _, got = jax.jit(mapped)(state, batch, jax.random.key(1))
    assert expected.keys() == got.keys() >= {"loss", "mmd" if objective == "info" else "tc"}
    for term, value in expected.items():
        np.testing.assert_allclose(got[term], value, rtol=1e-4, atol=1e-6)
