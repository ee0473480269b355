"""The regularised autoencoder's loss in NumPy, and images drawn from a mixture fitted to codes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import train
from sklearn.mixture import GaussianMixture
from small import config_of, images, keys_of, model_and_params

import jaxvae
from jaxvae import cli, generate
from jaxvae.errors import InputError
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective

pytestmark = pytest.mark.unoptimized


def terms_of(config: Any, model: Any, params: Any, step: int | None) -> Any:
    context = Context() if step is None else Context(jnp.int32(step))
    return build_objective(config).of(model, params, {"image": images(5)}, keys_of(0, 5), context)[0]


def test_the_loss_in_numpy() -> None:
    config = config_of("rae", code_l2=0.3, decoder_l2=0.02)
    model, params = model_and_params(config)
    output = model.apply(params, images(5))
    x, x_hat, code = (np.float64(a) for a in (images(5), output.x_hat, output.latent))
    recon, half = ((x_hat - x) ** 2).sum((1, 2, 3)), 0.5 * (code**2).sum(1)
    weights = sum(float((np.float64(leaf) ** 2).sum()) for leaf in jax.tree.leaves(params["params"]["decoder"]))
    assert weights > 0.1

    found = terms_of(config, model, params, 0)
    np.testing.assert_allclose(found["recon"], recon, rtol=1e-5)
    np.testing.assert_allclose(found["code"], half, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], recon + 0.3 * half + 0.02 * weights, rtol=1e-5)
    np.testing.assert_allclose(terms_of(config, model, params, None)["loss"], recon + 0.3 * half, rtol=1e-5)


@pytest.mark.slow
def test_the_decoders_weights_are_pulled_to_zero_and_the_encoders_are_not() -> None:
    """With the gradient of 2 decoder_l2 w, beside that of the rest."""
    config = config_of("rae", decoder_l2=0.5)
    model, params = model_and_params(config)

    def gradient(weight: float) -> Any:
        changed = dataclasses.replace(config, decoder_l2=weight)
        return jax.grad(lambda p: terms_of(changed, model, p, 0)["loss"].mean())(params)["params"]

    pull = jax.tree.map(lambda a, b: a - b, gradient(0.5), gradient(0.0))
    jax.tree.map(
        lambda found, w: np.testing.assert_allclose(found, w, rtol=1e-3, atol=1e-4),
        pull["decoder"],
        params["params"]["decoder"],
    )
    assert all(float(jnp.abs(leaf).max()) < 1e-4 for leaf in jax.tree.leaves(pull["encoder"]))


def test_a_deviation_is_refused() -> None:
    with pytest.raises(InputError, match="--objective rae needs --head relu or linear"):
        config_of("rae", head="exp")


FLAGS = ["--preset", "vae", "--hidden", "16", "8", "--latent-size", "3", "--batch-size", "8"]


@pytest.fixture
def trained(image_file: Path, tmp_path: Path) -> Path:
    given = [*FLAGS, "--dataset", str(image_file), "--objective", "rae", "--learning-rate", "0.01"]
    assert train(*given, "--epochs", "6", "--run-dir", str(tmp_path / "run")) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_images_are_drawn_from_a_mixture_fitted_to_the_codes(
    trained: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(*args: str) -> int:
        return cli.run(lambda: generate.main([str(trained), "--out", str(tmp_path / "drawn.png"), *args]))

    assert draw() == 2
    assert "it is an autoencoder; --fit-mixture 10 fits one to its codes" in capsys.readouterr().err
    assert draw("--fit-mixture", "2", "-n", "4") == 0
    assert "4 images -> " in capsys.readouterr().out
    for args, said in (
        (["--fit-mixture", "65"], "--fit-mixture 65 is more than the 59 training images"),
        (["--fit-mixture", "-1"], "--fit-mixture must be at least 1, not -1"),
        (["--data-dir", str(tmp_path)], "--data-dir has no effect without --nearest, --interpolate or --fit-mixture"),
    ):
        assert draw(*args) == 2
        assert said in capsys.readouterr().err

    run = jaxvae.load(trained)
    with pytest.raises(TypeError, match="it is an autoencoder, so fit a mixture"):
        run.sample(3)
    seen = np.load(image_file)["train"]
    mixture = run.fit_mixture(seen, 2, seed=1)
    codes = run.encode(seen).astype(np.float64)
    theirs = GaussianMixture(2, max_iter=1000, random_state=1).fit(codes)
    np.testing.assert_allclose(mixture.means_, theirs.means_, rtol=1e-6)
    drawn = run.sample(500, 7, mixture)
    np.testing.assert_array_equal(drawn, run.sample(500, 7, mixture))  # A function of the seed.
    assert np.abs(drawn[:5] - run.sample(5, 8, mixture)).max() > 0
    # What it draws are the decoded draws of scikit-learn, in another order.
    latents, _ = theirs.set_params(random_state=7).sample(500)
    expected = run.decode(latents)
    np.testing.assert_allclose(np.sort(drawn.ravel()), np.sort(expected.ravel()), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_mixture_stands_in_for_the_prior_of_a_vae(image_file: Path, tmp_path: Path) -> None:
    labels = {"y_train": np.arange(64) % 2, "y_test": np.arange(32) % 2}
    given = np.load(image_file)
    np.savez(tmp_path / "labelled.npz", x_train=given["train"], x_test=given["test"], **labels)
    args = [*FLAGS, "--dataset", str(tmp_path / "labelled.npz"), "--condition", "label", "--epochs", "2"]
    assert train(*args, "--run-dir", str(tmp_path / "run")) == 0
    drawn = generate.generate(tmp_path / "run", 6, label="1", fit_mixture=2)
    assert drawn.shape == (6, 6, 5, 1)
    assert np.abs(drawn - generate.generate(tmp_path / "run", 6, label="1")).max() > 0
    assert np.abs(drawn - generate.generate(tmp_path / "run", 6, label="0", fit_mixture=2)).max() > 0
