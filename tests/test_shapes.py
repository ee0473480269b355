"""The shapes in the signatures hold: every kind of model and objective is traced with each call checked."""

import subprocess
import sys
from pathlib import Path

import pytest
from runs import PATIENCE, environment

# In a process of its own, where the modules are imported with checks. Nothing is compiled.
CHECKED = """
from jaxtyping import install_import_hook

MODULES = ["models.autoencoder", "models.likelihoods", "models.priors", "models.two_layer", "models.vae", "noise"]
MODULES += ["objectives.beta_tc", "objectives.elbo", "objectives.info", "objectives.iwae", "objectives.notes"]
MODULES += ["objectives.capacity", "objectives.rae", "models.mixture", "models.vamp", "models.flow", "train.step"]
with install_import_hook([f"jaxvae.{name}" for name in MODULES], "shape_checker.check"):
    import jaxvae
    from jaxvae.models import build
    from jaxvae.train import step

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError

from jaxvae.keys import example_keys, key_of
from jaxvae.noise import corrupt

for preset, changes in (
    ("notes-ae", {"corruption": 0.2}),
    ("notes-vae", {}),
    ("vae", {"likelihood": "gaussian-global", "dequantize": True, "free_bits": 0.1, "samples": 2}),
    ("vae", {"objective": "beta-tc", "likelihood": "logistic"}),
    ("vae", {"objective": "info", "mmd_weight": 1.0, "inputs": "dynamic", "architecture": "conv", "hidden": (4, 8)}),
    ("vae", {"objective": "dreg", "samples": 3, "likelihood": "gaussian-pixel"}),
    ("iwae", {"architecture": "two-layer", "hidden": (20, 10)}),
    ("vae", {"objective": "capacity"}),
    ("vae", {"objective": "rae"}),
    ("vae", {"prior": "mixture", "samples": 2}),
    ("vae", {"prior": "realnvp"}),
    ("vamp", {"pseudo_inputs": 7, "hidden": (8,)}),
):
    config = dataclasses.replace(jaxvae.PRESETS[preset], batch_size=6, **changes)
    model = jaxvae.build_model(config, (8, 8, 1))
    optimizer = jaxvae.build_optimizer(config, 10)
    train_step = jaxvae.make_train_step(model, jaxvae.build_objective(config, 10, 60), optimizer)
    images = jnp.zeros((6, 8, 8, 1), jnp.uint8)

    def everything(key):
        state = jaxvae.init_state(model, optimizer, key)
        state, metrics = train_step(state, images, key)
        drawn = build.reconstruct(model, state.variables, step.as_batch(images), key)
        samples = build.sample(model, state.variables, key, 5) if build.can_sample(model) else drawn
        return metrics, drawn, samples, step.epoch_order(key, 0, 60)

    jax.eval_shape(everything, key_of(0))
    print(preset, changes, flush=True)

try:
    corrupt(jnp.zeros((6, 8)), example_keys(key_of(0), 0, 5), 0.5)
except TypeCheckError:
    print("refused")
"""


@pytest.mark.long
def test_signatures_tell_the_shapes() -> None:
    command, here = [sys.executable, "-c", CHECKED], Path(__file__).parent  # Where `shape_checker` is.
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 13 and done.stdout.endswith("refused\n")
