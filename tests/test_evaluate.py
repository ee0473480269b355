"""Evaluation against closed forms: a linear-Gaussian VAE is probabilistic PCA, whose likelihood is known."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import SMALL, train
from scipy import stats

from jaxvae import chunks, cli, data, evaluate
from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.keys import example_keys, purpose_key
from jaxvae.metrics import ActiveUnits, LogLikelihood, Subject
from jaxvae.metrics.likelihood import bits_per_dimension, error_of_mean, log_likelihood
from jaxvae.metrics.subject import mean_and_error
from jaxvae.models.build import build_model, reconstruct
from jaxvae.noise import binarize
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.optimizer import build_optimizer
from jaxvae.run import plots
from jaxvae.train.step import init_state, make_train_step
from jaxvae.trained import load_run

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

    With `wrong`, a posterior that is off by so much.
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


def subject_of(config: Config, model: Any, params: Any) -> Subject:
    return Subject(config, model, params, loss_of(config), {})


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
    subject = subject_of(config, None, {})._replace(terms={"elbo": log_p})
    found = LogLikelihood().measure(subject, {"image": np.zeros((1, 2, 2, 3), np.uint8)}, jax.random.key(0))
    assert found["bits_per_dimension"].value == pytest.approx(8)


@pytest.mark.parametrize("inputs", ["grey", "dynamic"])
def test_posterior_statistics_are_those_of_the_posterior(inputs: str) -> None:
    """A dimension is active whose mean varies by more than 0.01: here by just more and by just less."""
    config = dataclasses.replace(PRESETS["vae"], hidden=(), latent_size=3, head="exp", inputs=inputs)
    model = build_model(config, (2, 2, 1))
    images = np.random.default_rng(0).integers(0, 256, (500, 2, 2, 1), np.uint8)
    x, key = jnp.asarray(images, jnp.float32) / 255, jax.random.key(3)
    if inputs == "dynamic":
        x = binarize(x, example_keys(key, 0, 500))
    flat = np.float64(x).reshape(500, 4)
    kernel = np.random.default_rng(1).normal(size=(4, 6))
    kernel[:, :3] *= np.sqrt([0.0115, 0.0085, 0.0]) / (flat @ kernel[:, :3]).std(axis=0)
    bias = np.random.default_rng(2).uniform(-0.5, 0.5, 6)
    params = {"params": {"encoder": {"mlp": {"dense_0": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}}}
    found = ActiveUnits().measure(subject_of(config, model, params), {"image": images}, key)
    mean, log_std = np.split(flat @ kernel + bias, 2, axis=1)
    expected = (0.5 * (mean**2 + np.exp(2 * log_std) - 1) - log_std).mean(axis=0)
    np.testing.assert_allclose(found["kl_per_dimension"].value, expected, rtol=1e-4)
    assert found["active_units"].value == [1] and found["active_units"].extra == {"latent_sizes": [3]}
    assert found.keys() == {"kl_per_dimension", "active_units"}


def test_active_units_of_both_layers() -> None:
    """One unit of each layer follows the image; another of the upper layer follows the lower layer's noise alone."""
    config = dataclasses.replace(
        PRESETS["vae"], architecture="two-layer", hidden=(3, 2), latent_size=2, head="exp", activation="tanh"
    )
    model = build_model(config, (2, 2, 1))
    images = np.random.default_rng(0).integers(0, 256, (2000, 2, 2, 1), np.uint8)
    like = jax.eval_shape(lambda: init_state(model, build_optimizer(config), jax.random.key(0))).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    lower, upper = (params["params"][name] for name in ("encoder", "encoder_2"))
    lower = lower["mlp"]
    for layer, weights in (
        (lower["dense_0"], (4.0, 0.0)),
        (upper["dense_0"], (1.0, 3.0)),
        (upper["dense_1"], (1.0, 5.0)),
        (lower["dense_1"], (1.0, 0.0)),
        (lower["dense_2"], (5.0, 0.0)),
        (upper["dense_2"], (1.0, 2.0)),
    ):
        for unit, weight in enumerate(weights):
            layer["kernel"][unit, unit] = weight
    found = ActiveUnits().measure(subject_of(config, model, params), {"image": images}, jax.random.key(1))
    assert found["active_units"].value == [1, 1] and found["active_units"].extra == {"latent_sizes": [4, 2]}
    assert found.keys() == {"active_units"}


@pytest.mark.slow
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


# --- Runs ----------------------------------------------------------------------------------------------------


BOUNDS_AND_LIKELIHOODS = ("elbo", "iwae_bound", "log_likelihood", "log_density")  # Or with a measure before them.


@pytest.fixture
def base(image_file: Path) -> list[str]:
    return ["--dataset", str(image_file), *SMALL, "--epochs", "2"]


def evaluated(run_dir: Path, out: Path, *flags: str) -> Any:
    assert cli.run(lambda: evaluate.main([str(run_dir), "--json", str(out), *flags])) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("inputs", ["grey", "dynamic", "static"])
def test_the_figures_of_a_run(inputs: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    weights = ["--beta", "3", "--free-bits", "0.3"]
    assert train("--preset", "vae", *base, "--inputs", inputs, *weights, "--run-dir", str(run)) == 0
    capsys.readouterr()
    figures = evaluated(run, tmp_path / "figures.json", "--samples", "300")
    shown = capsys.readouterr().out
    found = load_run(run)
    test = data.load(found.config.dataset).test
    if inputs == "static":
        test = data.binarized(data.load(found.config.dataset), 0).test
        assert set(np.unique(test)) <= {0, 255}
    x = jnp.asarray(test, jnp.float32) / 255
    keys = example_keys(purpose_key(0, "test-noise"), 0, len(test))
    if inputs == "dynamic":
        x = binarize(x, keys)
    mean, std = (np.asarray(a, np.float64) for a in found.model.apply(found.variables, x, method="encode"))
    output = found.model.apply(found.variables, x, keys)
    assert figures["mse"] == pytest.approx(float(jnp.square(output.x_hat - x).mean()), rel=1e-4)
    kl = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    np.testing.assert_allclose(figures["kl_per_dimension"], kl.mean(0), rtol=1e-3, atol=1e-6)
    assert figures["kl"] == pytest.approx(kl.sum(1).mean(), rel=1e-4)
    assert figures["kl_standard_error"] == pytest.approx(stats.sem(kl.sum(1)), rel=0.01)  # Three digits.
    assert (figures["active_units"], figures["latent_sizes"]) == ([int((mean.var(0) > 0.01).sum())], [4])
    # The loss is what was minimised; the ELBO is the model's, whatever the weights were.
    kind = "unnormalised_" if inputs == "grey" else ""
    elbo, log_p = f"{kind}elbo", f"{kind}log_likelihood"
    assert figures[elbo] == pytest.approx(-(figures["recon"] + figures["kl"]), rel=1e-6)
    cost = np.maximum(kl, 0.3).sum(1).mean()
    assert figures["loss"] == pytest.approx(figures["recon"] + 3 * cost, rel=1e-5)
    assert figures["samples"] == 300
    slack = 5 * math.hypot(figures[f"{log_p}_sampling_error"], figures[f"{elbo}_standard_error"])
    assert figures[log_p] > figures[elbo] - slack
    if inputs == "grey":
        assert not {"elbo", "log_likelihood", "bits_per_dimension"} & figures.keys()
        assert " elbo" not in shown and " log_likelihood" not in shown
    else:
        assert figures["bits_per_dimension"] == pytest.approx(-figures["log_likelihood"] / 30 / math.log(2), rel=1e-5)
    for word in (elbo, log_p, "from 300 latents an image", "nats/image", "per pixel", "active_units"):
        assert word in shown


@pytest.mark.parametrize(
    ("flags", "bound", "log_p"),
    [
        ("--architecture two-layer --objective iwae", "unnormalised_iwae_bound", "unnormalised_log_likelihood"),
        ("--architecture conv", "unnormalised_elbo", "unnormalised_log_likelihood"),
        ("--likelihood logistic", "elbo", "log_likelihood"),
        ("--likelihood gaussian-pixel --objective dreg --samples 3", "density_iwae_bound", "log_density"),
        ("--likelihood gaussian-pixel --objective dreg --samples 3 --dequantize", "iwae_bound", "log_likelihood"),
    ],
)  # fmt: skip
def test_every_kind_of_model_is_evaluated(
    flags: str, bound: str, log_p: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("--preset", "vae", *base, *flags.split(), "--run-dir", str(run)) == 0
    assert capsys.readouterr().err.count("--dequantize") == int(log_p == "log_density")
    figures = evaluated(run, tmp_path / "figures.json", "--samples", "50")
    assert capsys.readouterr().err.count("--dequantize") == int(log_p == "log_density")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["latent_sizes"] == ([8, 4] if "two-layer" in flags else [4])
    for term in ("loss", bound):
        assert figures[term] == pytest.approx(last[term], rel=1e-5)
    assert math.isfinite(figures[log_p])
    assert {bound, log_p} == {name for name in figures if name.endswith(BOUNDS_AND_LIKELIHOODS)}
    if log_p == "log_likelihood":
        assert figures["bits_per_dimension"] == pytest.approx(-figures[log_p] / 30 / math.log(2), rel=1e-5)
    else:
        assert "bits_per_dimension" not in figures


def test_the_notes_scale_has_no_likelihood(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(*base, "--run-dir", str(run)) == 0
    figures = evaluated(run, tmp_path / "figures.json")
    assert figures["mse"] == pytest.approx(figures["recon"], rel=1e-4)
    assert not any(name.endswith(BOUNDS_AND_LIKELIHOODS) for name in figures)
    capsys.readouterr()
    assert cli.run(lambda: evaluate.main([str(run), "--samples", "10"])) == 2
    assert "notes-elbo, which has no likelihood" in capsys.readouterr().err
    with pytest.raises(InputError, match="--samples must not be negative"):
        evaluate.main([str(run), "--samples", "-1"])


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


def test_pictures_show_what_the_model_sees(base: list[str], tmp_path: Path) -> None:
    """Binarised pixels over their reconstructions, in the grid that is written."""
    run = tmp_path / "run"
    assert train("--preset", "vae", *base, "--inputs", "dynamic", "--run-dir", str(run)) == 0
    with Image.open(run / "images" / "reconstructions_epoch_0002.png") as file:
        picture = np.asarray(file)[::2, ::2]
    found = load_run(run)
    shown = data.prepared(data.load(found.config.dataset), found.config).validation
    x = jnp.asarray(shown, jnp.float32) / 255
    key = purpose_key(0, "reconstructions")
    seen = binarize(x, example_keys(key, 0, len(shown)))
    expected = plots.reconstruction_grid(
        np.asarray(seen), np.asarray(reconstruct(found.model, found.variables, {"image": seen}, key))
    )
    assert np.abs(picture.astype(int) - expected[..., 0]).max() <= 1
    assert not np.array_equal(np.asarray(seen), np.asarray(x))
