"""`jaxvae.load`: a trained model on images as people have them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import own_parts
import pytest
from numpy.typing import NDArray
from runs import train

import jaxvae
from jaxvae import chunks, trained
from jaxvae.errors import InputError
from jaxvae.models.vae import VAE

pytestmark = pytest.mark.unoptimized

MODELS = {
    "vae": ["--preset", "vae"],
    "notes-ae": ["--preset", "notes-ae"],
    "conv": ["--preset", "vae", "--architecture", "conv", "--likelihood", "logistic"],
    "resnet": ["--preset", "vae", "--architecture", "resnet", "--blocks", "1"],
    "two-layer": ["--preset", "iwae", "--architecture", "two-layer", "--samples", "2"],
    "gaussian": ["--preset", "vae", "--likelihood", "gaussian-global"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8]) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    np.savez(directory / "images.npz", train=images[:64], test=images[64:])
    return directory


def loaded(runs: Path, name: str) -> trained.TrainedRun:
    if not (runs / name).exists():
        args = ["--dataset", str(runs / "images.npz"), "--hidden", "8", "4", "--latent-size", "2", "--batch-size", "16"]
        assert train(*MODELS[name], *args, "--epochs", "1", "--run-dir", str(runs / name)) == 0
    return jaxvae.load(runs / name)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_images_go_in_and_images_come_out(name: str, runs: Path, images: NDArray[np.uint8]) -> None:
    run = loaded(runs, name)
    latents = run.encode(images[:5])
    assert latents.shape == (5, 4 if name == "two-layer" else 2) and latents.dtype == np.float32
    back = run.reconstruct(images[:5])
    assert back.shape == (5, 6, 5, 1) and back.dtype == np.uint8
    floats = run.reconstruct(images[:5] / 255.0)
    assert floats.dtype == np.float32 and floats.min() >= 0 and floats.max() <= 1
    np.testing.assert_array_equal(back, np.round(255 * floats))
    np.testing.assert_array_equal(run.encode(images[:5, ..., 0]), latents)
    decoded = run.decode(latents)
    assert decoded.shape == (5, 6, 5, 1) and decoded.min() >= 0 and decoded.max() <= 1
    between = run.interpolate(images[0], images[1], steps=5)
    assert between.shape == (5, 6, 5, 1) and between.dtype == np.uint8
    np.testing.assert_allclose(between[[0, -1]] / 255, decoded[:2], atol=0.51 / 255)
    if name == "notes-ae":
        with pytest.raises(TypeError, match="prior"):
            run.sample(3)
    else:
        assert run.sample(3).shape == (3, 6, 5, 1)
        np.testing.assert_array_equal(run.sample(3, seed=4), run.sample(3, seed=4))
        assert np.abs(run.sample(3, seed=4) - run.sample(3, seed=5)).max() > 0


@pytest.mark.slow
def test_what_is_computed_is_what_the_module_computes(runs: Path, images: NDArray[np.uint8]) -> None:
    run = loaded(runs, "vae")
    x = images[:7] / np.float32(255)
    mean, _ = run.model.apply(run.variables, x, method="encode")
    np.testing.assert_allclose(run.encode(images[:7]), mean, rtol=1e-5, atol=1e-6)
    logits = run.model.apply(run.variables, mean, method="decode")
    np.testing.assert_allclose(run.decode(mean), jax.nn.sigmoid(logits), rtol=1e-5)


@pytest.mark.slow
def test_chunks_change_nothing(runs: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    run = loaded(runs, "vae")
    whole = run.encode(images), run.reconstruct(images)
    monkeypatch.setattr(trained, "PIXELS_AT_ONCE", 30 * 7)
    again = jaxvae.load(runs / "vae")
    np.testing.assert_allclose(again.encode(images), whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.reconstruct(images).astype(int), whole[1].astype(int), atol=1)
    assert len(images) * 30 < chunks.PIXELS_AT_ONCE


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((2, 5, 6, 1), np.uint8), r"\[N, 6, 5, 1\]"),
        (np.zeros((6, 5), np.uint8), r"\[N, 6, 5, 1\]"),
        (np.full((2, 6, 5, 1), 200.0), r"\[0, 1\]"),
        (np.full((2, 6, 5, 1), np.nan), r"\[0, 1\]"),
    ],
)
def test_images_of_another_shape_or_scale_are_refused(wrong: NDArray[np.float64], said: str, runs: Path) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(runs, "vae").encode(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: run.sample(0), "count must be at least 1, not 0"),
        (lambda run: run.sample(2, label=[1, 1]), "label: the model was trained without --condition label"),
        (lambda run: run.decode(np.zeros((2, 3))), r"latents must be \[N, 2\], not \[2, 3\]"),
        (lambda run: run.decode(np.zeros(2)), r"latents must be \[N, 2\], not \[2\]"),
    ],
)
def test_what_a_model_cannot_draw_is_refused(call: Callable[[Any], Any], said: str, runs: Path) -> None:
    with pytest.raises(ValueError, match=said):
        call(loaded(runs, "vae"))


@pytest.mark.slow
def test_what_is_no_run_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} is not a run directory: it has no config.json$"):
        jaxvae.load(str(tmp_path))
    with pytest.raises(InputError, match="nothing is not a run directory: it does not exist"):
        jaxvae.load(tmp_path / "nothing")
    loaded(runs, "vae")
    for number in range(6):
        (tmp_path / f"run{number}").symlink_to(runs / "vae")
    with pytest.raises(InputError, match="no config.json; it holds the runs run0, run1, run2, run3, run4, ...$"):
        jaxvae.load(tmp_path)


@pytest.mark.slow
def test_a_model_of_binary_pixels_sees_binary_pixels(runs: Path, images: NDArray[np.uint8]) -> None:
    """Binary images are encoded as they are; of grey images, binary pixels are drawn first."""
    run = loaded(runs, "two-layer")
    binary = np.where(images[:5] > 99, np.uint8(255), np.uint8(0))
    mean, _ = run.model.apply(run.variables, binary / np.float32(255), method="encode")
    np.testing.assert_allclose(run.encode(binary), mean, rtol=1e-5, atol=1e-6)
    grey, _ = run.model.apply(run.variables, images[:5] / np.float32(255), method="encode")
    assert np.abs(run.encode(images[:5]) - grey).max() > 1e-3


@pytest.mark.slow
def test_what_is_drawn_does_not_depend_on_what_a_machine_computes_at_a_time(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = loaded(runs, "vae").sample(20, seed=3)
    monkeypatch.setattr("jaxvae.trained.cached_at_once", lambda *_: 4)
    np.testing.assert_allclose(loaded(runs, "vae").sample(20, seed=3), drawn, atol=1e-6)
    np.testing.assert_allclose(loaded(runs, "vae").sample(7, seed=3), drawn[:7], atol=1e-6)
    assert len(np.unique(drawn, axis=0)) == 20


@pytest.mark.slow
def test_many_are_drawn_in_chunks_that_differ(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxvae.trained.PIXELS_AT_ONCE", 8 * 30)
    drawn = loaded(runs, "vae").sample(21)
    assert drawn.shape == (21, 6, 5, 1) and len(np.unique(drawn, axis=0)) == 21


@pytest.mark.slow
def test_a_posterior_is_asked_of_models_of_jaxvae_alone(runs: Path, images: NDArray[np.uint8]) -> None:
    """A subclass may return anything from encode, whether a model, a network or an objective brings it."""
    run = loaded(runs, "vae")
    fields = [field.name for field in dataclasses.fields(VAE) if field.init and field.name not in ("parent", "name")]
    own = own_parts.LoudVae(**{name: getattr(run.model, name) for name in fields})
    assert run.has_deviation and not dataclasses.replace(run, model=own).has_deviation
    with pytest.raises(TypeError, match="the model LoudVae has no posterior with a standard deviation"):
        dataclasses.replace(run, model=own).posterior(images[:2])
