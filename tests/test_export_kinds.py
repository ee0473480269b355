"""Models of every later kind, exported as ONNX and StableHLO: discrete latents, many layers, a learnt prior."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from jaxvae.config import PRESETS
from jaxvae.export.onnx.files import onnx_files_of
from jaxvae.export.programs import programs_of
from jaxvae.models.build import build_model
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


@pytest.mark.slow
def test_onnx_files_compute_what_the_model_computes(run: TrainedRun) -> None:
    runtime = pytest.importorskip("onnxruntime")
    images, latents = given(run)
    files = onnx_files_of(run)
    encoder, decoder = (runtime.InferenceSession(files[f"{part}.onnx"]) for part in ("encoder", "decoder"))
    for count in (5, 2):
        found = encoder.run(None, {"image": images[:count]})[0]
        assert found.std() > 0.01
        np.testing.assert_allclose(found, latents[:count], rtol=0, atol=1e-5)
        decoded = decoder.run(None, {"latent": latents[:count]})[0]
        np.testing.assert_allclose(decoded, run.decode(latents[:count]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_programs_compute_what_the_model_computes(run: TrainedRun) -> None:
    pytest.importorskip("flatbuffers")
    images, latents = given(run)
    files = programs_of(run)
    encode, decode = (export.deserialize(bytearray(files[name])) for name in ("encode.stablehlo", "decode.stablehlo"))
    found = jax.tree.leaves(encode.call(images))[0]
    np.testing.assert_allclose(found, latents, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decode.call(latents[:3]), run.decode(latents[:3]), rtol=1e-4, atol=1e-5)
