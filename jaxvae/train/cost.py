"""What a training step computes, from its shapes alone."""

import jax
import jax.numpy as jnp

from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.flops import product_flops
from jaxvae.keys import purpose_key
from jaxvae.models.build import build_model
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import abstract_state, example_of, make_train_step


def flops_per_step(config: Config, images: ImageData) -> tuple[int, list[str]]:
    """FLOP of one training step on examples like those of `images`, and what they leave out: see `product_flops`."""
    model, optimizer = build_model(config, images.image_shape), build_optimizer(config, steps_per_epoch=1)
    train = images.split("train")
    objective = build_objective(config, steps_per_epoch=1, num_images=len(train["image"]))
    step = make_train_step(model, objective, optimizer)
    forms = {name: (config.batch_size, *values.shape[1:]) for name, values in train.items()}
    batch = {name: jax.ShapeDtypeStruct(form, jnp.dtype(train[name].dtype)) for name, form in forms.items()}
    state = abstract_state(model, optimizer, example_of(train))
    return product_flops(jax.make_jaxpr(step)(state, batch, purpose_key(config.seed, "train-noise")).jaxpr)


def products_of(config: Config) -> str:
    """What the products of a training step are computed in: "float32-highest", ..., or "bfloat16"."""
    return config.compute_dtype if config.compute_dtype != "float32" else f"float32-{config.matmul_precision}"
