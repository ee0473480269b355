"""Fused steps against plain ones, in Pallas' interpreter."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.config import PRESETS, Config
from jaxvae.data.images import ImageData
from jaxvae.errors import InputError
from jaxvae.train.computer import advance
from jaxvae.train.fused import chosen_plan, plan_of, refusal, tree_of, weights_of
from jaxvae.train.fused_plan import Plan
from jaxvae.train.trainer import Trainer

SHAPE = (5, 4, 1)  # Neither its pixels nor a width is a multiple of a tile.
SMALL: dict[str, Any] = {"validation": 0.0, "hidden": (18, 5), "latent_size": 3, "batch_size": 5}


def config_of(preset: str, **changes: Any) -> Config:
    return dataclasses.replace(PRESETS[preset], **{**SMALL, **changes})


def trained(config: Config, block: int, fused: Plan | None) -> Any:
    """The state after 4 steps, and every step's terms; an epoch has 3 steps."""
    images = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)
    trainer = Trainer(config, ImageData("noise", "noise", images, images[:1]), block=block, fused=fused)
    state, calls = advance(trainer, trainer.start(None), 0, 4)
    terms = {name: np.concatenate([values[name][:count] for count, values in calls]) for name in calls[0][1]}
    return jax.device_get(state), terms


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize(
    ("config", "block", "parts"),
    [
        # A block of 2 steps, and what is left of an epoch.
        pytest.param(config_of("notes-vae", hidden=(18,)), 2, {}, id="blocks"),
        # A program takes a weight in several parts, as it does with a large one.
        pytest.param(config_of("vae", activation="tanh", beta=0.5), 1, {"values": 64, "chunk": 16}, id="parts"),
        pytest.param(config_of("notes-ae", hidden=()), 1, {}, id="no hidden layers"),
    ],
)
def test_fused_steps_compute_what_plain_ones_do(config: Config, block: int, parts: dict[str, int]) -> None:
    plan = dataclasses.replace(plan_of(config, SHAPE, interpret=True), **parts)
    (plain, expected), (fused, terms) = trained(config, block, None), trained(config, block, plan)
    assert jax.tree.structure(fused) == jax.tree.structure(plain)
    assert terms.keys() == expected.keys()
    for name, values in terms.items():
        np.testing.assert_allclose(values, expected[name], rtol=2e-6)
    for mine, theirs in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6 * max(1e-3, np.abs(theirs).max()))


@pytest.mark.slow
def test_a_plan_names_all_layers() -> None:
    plan = plan_of(PRESETS["vae"], (28, 28, 1))
    assert plan.widths == (784, 512, 256, 40, 256, 512, 784)
    assert plan.inputs == (784, 512, 256, 20, 256, 512)
    for (programs, share), size in ((plan.first_shares, 784), (plan.last_shares, 512)):
        assert (programs - 1) * share < size <= programs * share and share % plan.chunk == 0


def test_weights_become_a_tree_again() -> None:
    images = np.zeros((8, *SHAPE), np.uint8)
    state = Trainer(config_of("notes-vae"), ImageData("none", "none", images, images)).abstract_state()
    assert tree_of(weights_of(state.params), encoder=3) == state.params


@pytest.mark.parametrize(
    ("preset", "changes", "why"),
    [
        ("vae", {"architecture": "conv"}, "--architecture mlp"),
        ("iwae", {}, "--objective mse, notes-elbo or elbo"),
        ("notes-ae", {"corruption": 0.1}, "no --corruption"),
        ("vae", {"likelihood": "logistic"}, "--likelihood bernoulli"),
        ("vae", {"free_bits": 0.1}, "no --samples, --free-bits"),
        ("vae", {"inputs": "dynamic"}, "--inputs grey or static"),
        ("vae", {"flip": True}, "no --flip"),
        ("vae", {"ema": 0.9}, "without --ema"),
        ("vae", {"schedule": "cosine"}, "no --schedule"),
        ("vae", {"compute_dtype": "bfloat16"}, "--compute-dtype float32"),
        ("vae", {"batch_size": 129}, "at most 128"),
        ("vae", {"hidden": (64, 4096)}, "layers and latents of at most 2048"),
    ],
)
def test_what_fused_steps_cannot_train_is_refused(preset: str, changes: dict[str, Any], why: str) -> None:
    config = dataclasses.replace(PRESETS[preset], **{**changes, "step_kernels": "pallas"})
    assert why in str(refusal(config, (28, 28, 1)))
    with pytest.raises(InputError, match=f"^--step-kernels pallas: they .*{why}"):
        chosen_plan(config, (28, 28, 1), jax.devices()[:1])


def test_fused_steps_need_a_gpu() -> None:
    config = dataclasses.replace(PRESETS["vae"], step_kernels="pallas")
    with pytest.raises(InputError, match=r"^--step-kernels pallas: they run on a GPU, not on a CPU$"):
        chosen_plan(config, (28, 28, 1), jax.devices()[:1])


class Gpu(NamedTuple):
    compute_capability: str
    platform: str = "gpu"
    device_kind: str = "a GPU"


def test_fused_steps_need_one_gpu_that_triton_serves() -> None:
    config: Any = dataclasses.replace(PRESETS["vae"], step_kernels="pallas")
    devices: Any = [Gpu("9.0"), Gpu("9.0")]
    assert chosen_plan(config, (28, 28, 1), devices[:1]).widths[0] == 784
    with pytest.raises(InputError, match="on one GPU, not on 2: take --devices 1$"):
        chosen_plan(config, (28, 28, 1), devices)
    for old in ("7.5", "gfx90a"):
        other: Any = [Gpu(old)]
        with pytest.raises(InputError, match="from Ampere on, not on a GPU$"):
            chosen_plan(config, (28, 28, 1), other)


def test_large_images_are_refused() -> None:
    config = dataclasses.replace(PRESETS["vae"], step_kernels="pallas")
    assert refusal(config, (64, 64, 3)) is None
    assert "at most 1,073,741,824" in str(refusal(config, (256, 256, 3)))


@pytest.mark.parametrize("preset", ["notes-ae", "notes-vae", "vae"])
def test_no_kernel_takes_a_maximum_which_hides_nan_on_a_gpu(preset: str) -> None:
    plan, x = plan_of(PRESETS[preset], (28, 28, 1)), jnp.ones(3)
    formulas: list[Any] = [plan.act, plan.code, lambda x: plan.pixel(x, x)]
    formulas += [lambda x: plan.latent and plan.latent(x, x, x)]
    for formula in formulas:
        assert not re.search(r"\bmax", str(jax.make_jaxpr(formula)(x)))
        assert all(np.isnan(value).all() for value in jax.tree.leaves(formula(x * jnp.nan)))
