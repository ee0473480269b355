"""What a training step computes, from its shapes alone."""

import jax
import jax.numpy as jnp

from jaxvae.config import Config
from jaxvae.flops import product_flops
from jaxvae.keys import purpose_key
from jaxvae.models.build import build_model
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import abstract_state, make_train_step


def flops_per_step(config: Config, image_shape: tuple[int, int, int]) -> tuple[int, list[str]]:
    """FLOP of one training step, and what they leave out: see `product_flops`."""
    model, optimizer = build_model(config, image_shape), build_optimizer(config, steps_per_epoch=1)
    step = make_train_step(model, build_objective(config, steps_per_epoch=1, num_images=1), optimizer)
    batch = jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.uint8)
    example = abstract_state(model, optimizer), batch, purpose_key(config.seed, "train-noise")
    return product_flops(jax.make_jaxpr(step)(*example).jaxpr)


def products_of(config: Config) -> str:
    """What the products of a training step are computed in: "float32-highest", ..., or "bfloat16"."""
    return config.compute_dtype if config.compute_dtype != "float32" else f"float32-{config.matmul_precision}"
