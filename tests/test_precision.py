"""The precision of every product: that of `--matmul-precision` in training steps, float32 everywhere else."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import config_of
from runs import train
from small import products

from jaxvae import PRESETS, build_model, build_objective, build_optimizer, evaluate, generate, make_evaluate
from jaxvae.config import Config
from jaxvae.train.step import abstract_state, make_train_step

SHAPE = (8, 8, 1)
SMALL: dict[str, Any] = {"hidden": (6, 5), "latent_size": 3, "batch_size": 4}
NATS: dict[str, Any] = {"preset": "vae", "head": "exp"}
# Every architecture and every objective, and what may need a product of its own.
CONFIGS = [
    Config(objective="mse", **SMALL),
    Config(objective="mse", architecture="conv", corruption=0.5, **SMALL),
    Config(**SMALL),
    Config(architecture="conv", **SMALL),
    Config(architecture="resnet", **SMALL),
    Config(architecture="gated", **SMALL),
    Config(objective="elbo", likelihood="logistic", **NATS, **SMALL),
    Config(objective="elbo", architecture="conv", likelihood="gaussian-global", **NATS, **SMALL),
    Config(objective="elbo", architecture="two-layer", **NATS, **SMALL),
    Config(objective="iwae", architecture="two-layer", samples=2, **NATS, **SMALL),
    Config(objective="iwae", samples=2, inputs="dynamic", **NATS, **SMALL),
    Config(objective="dreg", samples=2, **NATS, **SMALL),
    Config(objective="dreg", samples=2, architecture="conv", **NATS, **SMALL),
    Config(objective="info", mmd_weight=1.0, clip_norm=1.0, **NATS, **SMALL),
    Config(objective="beta-tc", beta=2.0, **NATS, **SMALL),
    *map(config_of, ("factor", "capacity", "rae", "realnvp", "vamp", "ladder", "vq-vae", "fsq")),
]


def name(config: Config) -> str:
    return f"{config.objective}-{config.architecture}-{config.prior}"


def precisions(traced: Any) -> list[Any]:
    """What every product of a traced function is asked to be computed in."""
    return [product.params["precision"] for product in products(traced.jaxpr)]


def abstract_step(config: Config) -> tuple[Any, Any]:
    """The train step of a configuration, and what it takes."""
    model, optimizer = build_model(config, SHAPE), build_optimizer(config)
    batch = jax.ShapeDtypeStruct((config.batch_size, *SHAPE), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    objective = build_objective(config, steps_per_epoch=1, num_images=100)
    return make_train_step(model, objective, optimizer), (abstract_state(model, optimizer), batch, key)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_every_product_of_a_train_step_has_the_precision_asked_for(config: Config, precision: Any) -> None:
    step, arguments = abstract_step(dataclasses.replace(config, matmul_precision=precision))
    asked = jax.lax.Precision(precision)
    with jax.default_matmul_precision("bfloat16"):  # What the surroundings say does not count.
        found = precisions(jax.make_jaxpr(step)(*arguments))
    # Forward, and by the weights and (but for the first layer) the inputs of every layer.
    layers = 2 * (len(config.hidden) + 1)
    assert len(found) >= 3 * layers - 1
    # Distances to the components of a VampPrior need float32: see `squared_distances`.
    always = {(jax.lax.Precision.HIGHEST,) * 2} if config.prior == "vamp" else set()
    assert set(found) | always == {(asked, asked)} | always


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_every_product_of_an_evaluation_is_float32(config: Config) -> None:
    config = dataclasses.replace(config, matmul_precision="default")
    model = build_model(config, SHAPE)
    variables = abstract_state(model, build_optimizer(config)).variables
    run = make_evaluate(model, build_objective(config, steps_per_epoch=1, num_images=100), size=4)
    images = jax.ShapeDtypeStruct((5, *SHAPE), jnp.uint8)
    found = precisions(jax.make_jaxpr(run)(variables, images, jax.random.key(0), 0))
    layers = 2 * (len(config.hidden) + 1)
    assert len(found) >= layers and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.slow
def test_the_lowered_products_are_those_of_the_trace() -> None:
    """What XLA is told, for a device where it matters."""
    for precision in ("default", "highest"):
        step, arguments = abstract_step(dataclasses.replace(CONFIGS[3], matmul_precision=precision))
        text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
        assert stated(text) == {precision.upper()}


def stated(text: str) -> set[str]:
    """The precisions of all products in a program's text (StableHLO)."""
    found: set[str] = set()
    for line in re.findall(r"^.*stablehlo\.(?:dot_general|convolution).*$", text, re.MULTILINE):
        found |= set(re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)) or {"unstated"}
    return found


@pytest.mark.long
@pytest.mark.unoptimized
def test_only_training_steps_follow_the_flag(image_file: Path, tmp_path: Path) -> None:
    """Every program that the commands compile, as they compile it."""
    programs = tmp_path / "programs"
    flags = ["--preset", "iwae", "--architecture", "conv", "--hidden", "6", "5", "--latent-size", "2"]
    flags += ["--batch-size", "32", "--epochs", "1", "--dataset", str(image_file), "--run-dir", str(tmp_path / "run")]
    before = jax.config.read("jax_dump_ir_to")
    jax.config.update("jax_dump_ir_to", str(programs / "training"))
    try:
        assert train(*flags, "--matmul-precision", "default") == 0
        jax.clear_caches()  # The same programs are compiled, and written, once more.
        jax.config.update("jax_dump_ir_to", str(programs / "after"))
        assert "log_likelihood" in evaluate.evaluate_run(tmp_path / "run", samples=3)
        assert generate.generate(tmp_path / "run", 2).shape == (2, 6, 5, 1)
    finally:
        jax.config.update("jax_dump_ir_to", before)
    training, after = ([stated(path.read_text()) for path in (programs / d).iterdir()] for d in ("training", "after"))
    assert {"DEFAULT"} in training and {"HIGHEST"} in training
    assert all(found in ({"DEFAULT"}, {"HIGHEST"}, set()) for found in training)
    # The bound, its likelihood, the reconstruction error, the posteriors, and the pictures.
    assert sum(found == {"HIGHEST"} for found in after) >= 5
    assert all(found in ({"HIGHEST"}, set()) for found in after)


@pytest.mark.long
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices round otherwise, as they are told to")
def test_a_cpu_computes_the_same_bits_at_any_precision() -> None:
    config = dataclasses.replace(PRESETS["vae"], **SMALL)
    batch = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    states = []
    for precision in ("default", "highest"):
        step, (state, _, _) = abstract_step(dataclasses.replace(config, matmul_precision=precision))
        rng = np.random.default_rng(1)
        state = jax.tree.map(lambda a, rng=rng: jnp.asarray(rng.uniform(0, 0.1, a.shape), a.dtype), state)
        states.append(jax.device_get(jax.jit(step)(state, batch, jax.random.key(0))))
    jax.tree.map(np.testing.assert_array_equal, *states)
