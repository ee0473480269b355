"""Models of every later kind, exported: discrete latents, many layers, learned priors."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxvae.config import PRESETS
from jaxvae.export.card import card_of
from jaxvae.export.onnx.files import onnx_files_of
from jaxvae.export.programs import programs_of
from jaxvae.models.build import build_model
from jaxvae.models.quantized import QuantizedVAE
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state
from jaxvae.trained import TrainedRun

pytestmark = pytest.mark.unoptimized

SHAPE = (6, 8, 1)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ladder": ("ladder", {"hidden": (8,), "maps": 1}),
    "vq": ("vq-vae", {"hidden": (8,), "codes": 12, "code_size": 4, "code_prior_width": 8}),
    "fsq": ("fsq", {"hidden": (8,), "levels": (4, 3), "code_prior_width": 8}),
    "vamp": ("vamp", {"hidden": (8,), "latent_size": 3, "pseudo_inputs": 5}),
    "realnvp": ("vae", {"prior": "realnvp", "hidden": (8,), "latent_size": 4}),
    "mixture": ("vae", {"prior": "mixture", "mixture_components": 3, "hidden": (8,), "latent_size": 3}),
}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest) -> TrainedRun:
    """A model with random weights."""
    preset, changes = KINDS[request.param]
    config = dataclasses.replace(PRESETS[preset], **changes)
    model = build_model(config, SHAPE)
    state = jax.jit(lambda: init_state(model, build_optimizer(config, 1), jax.random.key(0)))()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: np.asarray(a + 0.1 * rng.normal(size=a.shape), np.float32), state.params)
    return TrainedRun(config, model, {**params, **state.collections}, 0, SHAPE, {"image_shape": list(SHAPE)})


def given(run: TrainedRun) -> tuple[Any, Any]:
    """Images, as the model sees them, and latents."""
    images = np.random.default_rng(1).integers(0, 2, (5, *SHAPE)).astype(np.float32)
    return images, run.encode(images)


def assert_encoded(found: Any, run: TrainedRun, images: Any) -> None:
    """What an exported encoder returned: latents, or the mean and the standard deviation of the posterior."""
    if isinstance(run.model, QuantizedVAE):
        expected = [run.encode(images)]
    else:
        expected = list(run.model.apply(run.variables, jnp.asarray(images), method="encode"))
        assert np.ptp(expected[1]) > 0.01
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.std(one) > 0.01
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_onnx_files_compute_what_the_model_computes(run: TrainedRun) -> None:
    runtime = pytest.importorskip("onnxruntime")
    images, latents = given(run)
    files = onnx_files_of(run)
    encoder, decoder = (runtime.InferenceSession(files[f"{part}.onnx"]) for part in ("encoder", "decoder"))
    for count in (5, 2):
        assert_encoded(encoder.run(None, {"image": images[:count]}), run, images[:count])
        decoded = decoder.run(None, {"latent": latents[:count]})[0]
        np.testing.assert_allclose(decoded, run.decode(latents[:count]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_programs_compute_what_the_model_computes(run: TrainedRun) -> None:
    pytest.importorskip("flatbuffers")
    images, latents = given(run)
    files = programs_of(run)
    encode, decode = (export.deserialize(bytearray(files[name])) for name in ("encode.stablehlo", "decode.stablehlo"))
    assert_encoded(jax.tree.leaves(encode.call(images)), run, images)
    np.testing.assert_allclose(decode.call(latents[:3]), run.decode(latents[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weights_and_their_card_make_the_model_again(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, latents = given(run)
    for name, content in card_of(run, tmp_path).items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {"latents": latents}
    exec(code, found)
    jax.tree.map(np.testing.assert_array_equal, found["variables"], dict(run.variables))
    np.testing.assert_allclose(jax.nn.sigmoid(found["images"]), run.decode(latents), rtol=1e-5, atol=1e-6)
