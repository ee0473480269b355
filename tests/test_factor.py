"""FactorVAE: its terms in NumPy, whom each loss trains, and what its discriminator finds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.typing import NDArray
from runs import assert_same_run, train
from small import config_of, images, keys_of, model_and_params, terms_of

import jaxvae
from jaxvae import evaluate
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.models.build import build_model
from jaxvae.models.factor import Discriminator, permuted, uniform_noise
from jaxvae.objectives.base import Context
from jaxvae.optimizer import build_optimizer
from jaxvae.torch_weights import params_from_torch, torch_from_params

pytestmark = pytest.mark.unoptimized

CONFIG = config_of("factor", beta=3.0, discriminator_width=6, discriminator_layers=2)
FLAGS = ["--preset", "vae", "--objective", "factor", "--beta", "3", "--hidden", "16", "--latent-size", "4"]
FLAGS += ["--discriminator-width", "8", "--discriminator-layers", "2", "--batch-size", "8"]


def judged(params: Any, latent: NDArray[np.float64]) -> NDArray[np.float64]:
    """The discriminator of `CONFIG`, in float64."""
    x = latent
    for number in range(3):
        layer = {
            name: np.float64(value) for name, value in params["params"]["discriminator"][f"Dense_{number}"].items()
        }
        x = x @ layer["kernel"] + layer["bias"]
        x = np.where(x > 0, x, 0.2 * x) if number < 2 else x
    return x[:, 0]


def drawn(model: Any, params: Any, x: jax.Array, keys: jax.Array) -> Any:
    return model.apply(params, {"image": x}, keys, 1, method="draw")


@pytest.mark.long
def test_its_terms_in_numpy() -> None:
    model, params = model_and_params(CONFIG, scale=2.0)
    x, keys = images(6), keys_of(0, 6)
    got = terms_of(CONFIG, model, params, x, keys)
    plain = terms_of(config_of("elbo"), model, params, x, keys)
    latent = np.float64(drawn(model, params, x, keys).latent[:, 0])
    order = np.argsort(np.asarray(uniform_noise(keys, 3)), axis=0)
    shuffled = np.stack([latent[order[:, column], column] for column in range(3)], axis=1)
    joint, apart = judged(params, latent), judged(params, shuffled)
    own = 0.5 * (np.log1p(np.exp(-joint)) + np.log1p(np.exp(apart))).mean()
    np.testing.assert_allclose(got["tc"], np.full(6, joint.mean()), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["discriminator"], np.full(6, own), rtol=1e-4)
    np.testing.assert_array_equal(got["kl"], plain["kl"])
    np.testing.assert_allclose(got["loss"], plain["recon"] + plain["kl"] + 2 * joint.mean() + own, rtol=1e-5)


def test_in_evaluation_its_loss_is_minus_the_bound() -> None:
    model, params = model_and_params(CONFIG)
    got = terms_of(CONFIG, model, params, images(4), keys_of(0, 4), Context())
    assert got.keys() == {"loss", "recon", "kl", "unnormalised_elbo"}
    np.testing.assert_array_equal(got["loss"], -got["unnormalised_elbo"])


def gradient(of: Any, params: Any) -> Any:
    return jax.grad(lambda p: of(p).mean())(params)["params"]


@pytest.mark.long
def test_the_discriminator_learns_from_its_own_loss_and_the_vae_from_the_others() -> None:
    model, params = model_and_params(CONFIG, scale=2.0)
    x, keys = images(6), keys_of(0, 6)

    def term(name: str) -> Any:
        return gradient(lambda p: terms_of(CONFIG, model, p, x, keys)[name], params)

    def estimate(p: Any) -> Any:
        return model.apply(p, drawn(model, p, x, keys).latent[:, 0], method="judge")

    loss, own = term("loss"), term("discriminator")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loss["discriminator"], own["discriminator"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(loss["discriminator"]))
    plain, moved = term("recon"), gradient(estimate, params)
    kl = term("kl")
    for side in ("encoder", "decoder"):
        expected = jax.tree.map(lambda r, k, t: r + k + 2 * t, plain[side], kl[side], moved[side])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), loss[side], expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved["encoder"])) > 1e-4


def test_permuted_latents_keep_each_dimension_and_lose_what_ties_them() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 1)).astype(np.float32)
    latent = np.hstack([one, 2 * one, -one])
    found = np.asarray(permuted(jnp.asarray(latent), jnp.asarray(rng.uniform(size=latent.shape))))
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(latent, axis=0))
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.15


@pytest.mark.long
@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_a_trained_discriminator_finds_the_total_correlation_of_gaussians(rho: float) -> None:
    """That is -log det C / 2."""
    covariance = (1 - rho) * np.eye(3) + rho
    factor = jnp.float32(np.linalg.cholesky(covariance))
    module, optimizer = Discriminator((32, 32)), build_optimizer(config_of(learning_rate=3e-3))
    params = module.init(jax.random.key(0), jnp.zeros((1, 3)))

    def loss(p: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        latent = jax.random.normal(keys[0], (256, 3)) @ factor.T
        joint, apart = (module.apply(p, z) for z in (latent, permuted(latent, jax.random.uniform(keys[1], (256, 3)))))
        return 0.5 * (jax.nn.softplus(-joint) + jax.nn.softplus(apart)).mean()

    @jax.jit
    def trained(params: Any) -> Any:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            p, state = carry
            updates, state = optimizer.update(jax.grad(loss)(p, key), state)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 1500))[0][0]

    latent = np.random.default_rng(2).normal(size=(20_000, 3)) @ np.linalg.cholesky(covariance).T
    estimate = float(module.apply(trained(params), jnp.float32(latent)).mean())
    assert estimate == pytest.approx(-0.5 * np.linalg.slogdet(covariance)[1], abs=0.06)


@pytest.mark.long
def test_a_run_trains_both_and_resumes_to_the_same_bytes(image_file: Path, tmp_path: Path) -> None:
    given = [*FLAGS, "--dataset", str(image_file), "--ema", "0.9"]
    assert train(*given, "--epochs", "3", "--run-dir", str(tmp_path / "whole")) == 0
    assert train(*given, "--epochs", "1", "--run-dir", str(tmp_path / "cut")) == 0
    early = jaxvae.load(tmp_path / "cut").variables["params"]
    assert train("--resume", "--epochs", "3", "--run-dir", str(tmp_path / "cut")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    run = jaxvae.load(tmp_path / "whole")
    for side in ("discriminator", "encoder", "decoder"):
        jax.tree.map(lambda a, b: np.testing.assert_raises(AssertionError, np.testing.assert_array_equal, a, b),
                     run.variables["params"][side], early[side])  # fmt: skip
    assert run.sample(2).shape == (2, 6, 5, 1)
    assert evaluate.evaluate_run(tmp_path / "whole", samples=5)["unnormalised_log_likelihood"] < 0
    unused = {"discriminator_width": 1000, "discriminator_layers": 6}
    plain = build_model(dataclasses.replace(run.config, objective="elbo", beta=1.0, **unused), (6, 5, 1))
    exported = torch_from_params(run.variables, run.model)
    back = params_from_torch(exported, plain)["params"]
    jax.tree.map(np.testing.assert_array_equal, back, {side: run.variables["params"][side] for side in back})
    with pytest.raises(InputError, match="weights from PyTorch have no discriminator, which this model needs"):
        params_from_torch(exported, run.model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 1}, "--objective factor needs --batch-size 2 or more: it compares samples"),
        ({"head": "relu"}, "--objective factor needs --head linear, logvar or exp"),
        ({"architecture": "two-layer", "hidden": (8, 4)}, "--architecture two-layer needs --objective elbo"),
        ({"architecture": "own_parts:Loud"}, "--objective factor needs a network whose model is a VAE"),
        ({"model": "own_parts:Vae"}, "--objective factor trains a model of its own: it takes no --model"),
        (
            {"objective": "elbo", "discriminator_width": 5},
            "--discriminator-width 5 has no effect: it needs --objective",
        ),
    ],
)
def test_what_does_not_fit_it_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Config(**{"preset": "vae", "objective": "factor", **changes})
