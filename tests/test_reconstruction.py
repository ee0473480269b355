"""PSNR and SSIM of reconstructions against scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from skimage import metrics
from small import SMALL, subject_of

from jaxvae.keys import example_keys
from jaxvae.metrics import Reconstruction
from jaxvae.metrics.reconstruction import MOST_PSNR, psnr
from jaxvae.metrics.ssim import ssim
from jaxvae.models.build import build_model, init_variables
from jaxvae.train.step import as_batch

pytestmark = pytest.mark.unoptimized

SHAPES = [(28, 28, 1), (11, 11, 1), (11, 12, 3), (17, 23, 3), (29, 15, 1)]


def pairs(shape: tuple[int, ...], count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images and noisy copies of them; of the last pair both are flat."""
    rng = np.random.default_rng(sum(shape))
    x = rng.uniform(size=(count, *shape))
    y = np.clip(x + rng.normal(size=x.shape) * np.linspace(0.01, 0.5, count).reshape(-1, 1, 1, 1), 0, 1)
    x[-1], y[-1] = 1.0, 0.98
    return x, y


def of_scikit_image(x: np.ndarray, y: np.ndarray) -> list[float]:
    named = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return [metrics.structural_similarity(a, b, channel_axis=-1, **named) for a, b in zip(x, y, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_is_that_of_scikit_image(shape: tuple[int, ...]) -> None:
    x, y = pairs(shape)
    expected = of_scikit_image(x, y)
    with jax.enable_x64(True):
        np.testing.assert_allclose(ssim(jnp.float64(x), jnp.float64(y)), expected, rtol=1e-12)
    np.testing.assert_allclose(ssim(jnp.float32(x), jnp.float32(y)), expected, atol=1e-5)


def test_equal_images_have_an_ssim_of_1_and_small_ones_none() -> None:
    x, _ = pairs((14, 13, 3))
    np.testing.assert_allclose(ssim(jnp.float32(x), jnp.float32(x)), 1, atol=1e-6)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, not 10 x 13"):
        ssim(jnp.zeros((1, 10, 13, 1)), jnp.zeros((1, 10, 13, 1)))


def test_psnr_is_that_of_scikit_image() -> None:
    x, y = pairs((9, 8, 3))
    expected = [metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(jnp.float32(np.square(x - y).mean((1, 2, 3)))), expected, rtol=1e-6)
    assert float(psnr(jnp.float32(0))) == MOST_PSNR


@pytest.mark.slow
@pytest.mark.parametrize("side", [10, 12])
def test_each_image_counts_once(side: int) -> None:
    """Means and standard errors over the images, of the pixels that the model sees; no SSIM of small images."""
    images = np.random.default_rng(3).integers(0, 256, (7, side, 13, 1), np.uint8)
    model = build_model(SMALL, (side, 13, 1))
    variables = init_variables(model, jax.random.key(0), {"image": np.zeros((1, side, 13, 1), np.float32)})
    key = jax.random.key(1)
    found = Reconstruction().measure(subject_of(SMALL, model, variables), {"image": images}, key)
    x = as_batch({"image": images})["image"]
    x_hat = model.apply(variables, x, example_keys(key, 0, 7)).x_hat
    error = np.square(np.float64(x_hat) - np.float64(x)).mean((1, 2, 3))
    for name, each in {"mse": error, "psnr": -10 * np.log10(error)}.items():
        np.testing.assert_allclose(found[name].each, each, rtol=1e-5)
        assert found[name].value == pytest.approx(each.mean(), rel=1e-5)
        assert found[name].standard_error == pytest.approx(stats.sem(each), rel=1e-3)
    if side < 11:
        assert found["ssim"].value is None and "at least 11 x 11" in found["ssim"].note
    else:
        each = of_scikit_image(np.float64(x), np.float64(x_hat))
        assert found["ssim"].value == pytest.approx(np.mean(each), abs=1e-5)
        assert found["ssim"].standard_error == pytest.approx(stats.sem(each), rel=0.01)
