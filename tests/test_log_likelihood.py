"""log p(x) against a closed form: a linear-Gaussian VAE is probabilistic PCA, whose likelihood is known."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from small import subject_of

from jaxvae import chunks
from jaxvae.config import PRESETS
from jaxvae.keys import example_keys
from jaxvae.metrics import LogLikelihood
from jaxvae.metrics.likelihood import bits_per_dimension, error_of_mean, log_likelihood
from jaxvae.metrics.subject import mean_and_error
from jaxvae.models.build import build_model
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state, make_train_step

pytestmark = pytest.mark.unoptimized

Floats = NDArray[np.float64]

SHAPE, PIXELS, LATENT, STD = (4, 4, 1), 16, 3, 0.3

LINEAR = dataclasses.replace(
    PRESETS["vae"],
    hidden=(),
    latent_size=LATENT,
    head="exp",
    likelihood="gaussian",
    likelihood_std=STD,
    learning_rate=1e-2,
    schedule="cosine",
    epochs=1,
)


def linear_vae(weights: Floats, offset: Floats, wrong: float = 0.0) -> tuple[Any, Any]:
    """The VAE with ``p(x | z) = N(W z + b, STD^2)``, W [D, L] with orthogonal columns, and its exact posterior.

    With `wrong`, the posterior is off by that much.
    """
    model = build_model(LINEAR, SHAPE)
    squares = (weights**2).sum(axis=0)
    variance = STD**2 / (squares + STD**2)  # Of the posterior, a diagonal since the columns are orthogonal.
    to_mean = weights / (squares + STD**2)
    kernel = np.concatenate([to_mean, np.zeros_like(to_mean)], axis=1)
    bias = np.concatenate([-offset @ to_mean + wrong, 0.5 * np.log(variance) + wrong])
    encoder = {"mlp": {"dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}
    decoder = {"mlp": {"dense_0": {"kernel": jnp.float32(weights.T), "bias": jnp.float32(offset)}}}
    return model, {"params": {"encoder": encoder, "decoder": decoder}}


def orthogonal_weights(rng: np.random.Generator) -> Floats:
    columns, _ = np.linalg.qr(rng.normal(size=(PIXELS, LATENT)))
    return columns * np.array([1.5, 0.8, 0.4])


@pytest.fixture(scope="module")
def linear() -> tuple[Floats, Floats, NDArray[np.float32], Floats]:
    """W, b, images drawn from the model, and their exact log-likelihoods."""
    rng = np.random.default_rng(11)
    weights, offset = orthogonal_weights(rng), rng.uniform(size=PIXELS)
    covariance = weights @ weights.T + STD**2 * np.eye(PIXELS)
    x = rng.multivariate_normal(offset, covariance, 40)
    return weights, offset, np.float32(x.reshape(-1, *SHAPE)), stats.multivariate_normal(offset, covariance).logpdf(x)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 7, 1000])
def test_with_the_exact_posterior_any_number_of_samples_gives_the_exact_likelihood(
    samples: int, linear: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, offset, x, exact = linear
    model, params = linear_vae(weights, offset)
    for pixels_at_once in (2**22, 5 * PIXELS):  # All at once, and in chunks that do not divide.
        monkeypatch.setattr(chunks, "PIXELS_AT_ONCE", pixels_at_once)
        estimate, error = log_likelihood(subject_of(LINEAR, model, params), {"image": x}, jax.random.key(0), samples)
        np.testing.assert_allclose(estimate, exact, atol=2e-3)
        assert error.max() < 2e-3


@pytest.mark.slow
def test_with_another_posterior_it_is_right_within_its_standard_error(linear: Any) -> None:
    weights, offset, x, exact = linear
    model, params = linear_vae(weights, offset, wrong=0.3)
    errors = []
    for samples in (200, 20_000):
        estimate, error = log_likelihood(subject_of(LINEAR, model, params), {"image": x}, jax.random.key(0), samples)
        z = (estimate - exact) / error
        assert np.abs(z).max() < 5 and abs(z.mean()) < 1
        errors.append(error.mean())
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)  # It falls as one over the root of K.
    # One sample is the ELBO in expectation: lower by the KL from the true posterior.
    one, _ = log_likelihood(subject_of(LINEAR, model, params), {"image": x}, jax.random.key(1), 1)
    assert one.mean() < exact.mean() - 0.1


def test_exactly_k_samples_count(linear: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 for K = 12: log-mean-exp of the first 12 weights, computed by hand."""
    weights, offset, x, _ = linear
    model, params = linear_vae(weights, offset, wrong=0.5)
    monkeypatch.setattr(chunks, "PIXELS_AT_ONCE", 5 * PIXELS)
    estimate, error = log_likelihood(subject_of(LINEAR, model, params), {"image": x}, jax.random.key(2), 12)

    @jax.jit
    def weights_from(first: int) -> Any:
        keys = jax.vmap(lambda k: jax.random.fold_in(k, first))(example_keys(jax.random.key(2), 0, len(x)))
        draws = model.apply(params, {"image": jnp.asarray(x)}, keys, 5, method="draw")
        return draws.log_prior - draws.log_posterior - loss_of(LINEAR).nll(draws.pixels, jnp.asarray(x))

    log_w = [weights_from(first) for first in (0, 5, 10)]
    expected = np.float64(np.concatenate(log_w, axis=1))[:, :12]
    weights = np.exp(expected - expected.max(axis=1, keepdims=True))
    mean = weights.mean(axis=1)
    np.testing.assert_allclose(estimate, np.log(mean) + expected.max(axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(error, weights.std(axis=1) / 12**0.5 / mean, rtol=1e-3)  # Of a mean's logarithm.


def test_errors_and_bits_are_those_of_their_definitions() -> None:
    values = np.random.default_rng(0).normal(size=(2, 50))
    assert mean_and_error(values[0]) == (pytest.approx(values[0].mean()), pytest.approx(stats.sem(values[0])))
    assert mean_and_error(values[1, :1]) == (values[1, 0], None)
    sums = np.random.default_rng(1).normal(0, [0.1, 0.2, 0.7], (100_000, 3)).mean(axis=1)
    assert error_of_mean(np.array([0.1, 0.2, 0.7])) == pytest.approx(sums.std(), rel=0.02)
    # 12 values of 256 levels, all as probable: 8 bits each.
    log_p = 12 * math.log(1 / 256)
    assert bits_per_dimension(log_p, 12) == pytest.approx(8)
    config = dataclasses.replace(PRESETS["vae"], inputs="dynamic")
    subject = dataclasses.replace(subject_of(config, None, {}), terms={"elbo": log_p}, errors={"elbo": 0.3})
    found = LogLikelihood().measure(subject, {"image": np.zeros((1, 2, 2, 3), np.uint8)}, jax.random.key(0))
    assert found["bits_per_dimension"].value == pytest.approx(8)
    assert found["bits_per_dimension"].standard_error == pytest.approx(0.3 / 12 / math.log(2))


@pytest.mark.long
def test_training_reaches_probabilistic_pca() -> None:
    """The maximum of the ELBO of a linear VAE is that of the likelihood of pPCA: Lucas et al. (arXiv 1911.02469).

    With the variance held fixed, it is the eigenvalues above the variance that are kept: Tipping and
    Bishop (1999), equation 7.
    """
    rng = np.random.default_rng(11)
    weights, offset = orthogonal_weights(rng), rng.uniform(size=PIXELS)
    x = offset + rng.normal(size=(256, LATENT)) @ weights.T + STD * rng.normal(size=(256, PIXELS))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values, vectors = values[::-1][:LATENT], vectors[:, ::-1][:, :LATENT]
    best = vectors * np.sqrt(np.maximum(values - STD**2, 0))
    optimum = stats.multivariate_normal(x.mean(0), best @ best.T + STD**2 * np.eye(PIXELS)).logpdf(x).mean()

    steps = 6000
    config = dataclasses.replace(LINEAR, epochs=1)
    model, optimizer = build_model(config, SHAPE), build_optimizer(config, steps)
    step = make_train_step(model, build_objective(config, steps, 256), optimizer)
    batch = jnp.float32(x.reshape(-1, *SHAPE))
    state = init_state(model, optimizer, jax.random.key(0))

    @jax.jit
    def run(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: step(s, batch, jax.random.key(1)), state, length=steps)

    state, terms = run(state)
    assert -float(terms["loss"][-500:].mean()) == pytest.approx(optimum, abs=0.03)
    estimate, _ = log_likelihood(
        subject_of(config, model, state.params), {"image": np.asarray(batch)}, jax.random.key(2), 500
    )
    assert estimate.mean() == pytest.approx(optimum, abs=0.02)
    learned = np.asarray(state.params["params"]["decoder"]["mlp"]["dense_0"]["kernel"], np.float64).T
    np.testing.assert_allclose(learned @ learned.T, best @ best.T, atol=0.05)
