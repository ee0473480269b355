"""Small models and images, and the terms of objectives."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae.config import PRESETS, Config
from jaxvae.flops import inner_jaxprs
from jaxvae.keys import example_keys
from jaxvae.metrics import Subject
from jaxvae.models.build import build_model
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state
from jaxvae.trained import TrainedRun

SHAPE = (4, 3, 1)

SMALL = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=3, batch_size=16)


def config_of(objective: str = "elbo", **changes: Any) -> Config:
    needed = {"mmd_weight": 1.0} if objective == "info" else {}
    return dataclasses.replace(SMALL, objective=objective, **{**needed, **changes})  # type: ignore[arg-type]


def model_and_params(config: Config, scale: float = 1.0) -> tuple[Any, Any]:
    model = build_model(config, SHAPE)
    init = jax.jit(
        lambda key: jax.tree.map(lambda a: scale * a, init_state(model, build_optimizer(config), key).params)
    )
    return model, init(jax.random.key(1))


def products(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, and of all that it calls, that are matrix products or convolutions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in inner_jaxprs(equation):
            yield from products(inner)


def images(count: int) -> jax.Array:
    rng = np.random.default_rng(5)
    return jnp.float32(rng.uniform(size=(count, *SHAPE)))


def keys_of(seed: int, count: int) -> jax.Array:
    return example_keys(jax.random.key(seed), 0, count)


def terms_of(
    config: Config, model: Any, params: Any, x: jax.Array, keys: jax.Array, context: Context | None = None
) -> dict[str, jax.Array]:
    """The objective's terms, [B] each, by default those of step 0."""
    context = Context(jnp.int32(0)) if context is None else context
    objective = build_objective(config, 1, 100)
    return jax.jit(lambda p, x, k: objective.of(model, p, {"image": x}, k, context)[0])(params, x, keys)


def many(config: Config, params: Any, model: Any, x: jax.Array, repeats: int) -> dict[str, NDArray[np.float64]]:
    """The objective's terms for the images, with `repeats` independent sets of keys: [repeats, B] each."""
    objective = build_objective(config)
    keys = jax.vmap(lambda k: example_keys(k, 0, x.shape[0]))(jax.random.split(jax.random.key(3), repeats))
    terms = jax.jit(jax.vmap(lambda k: objective.of(model, params, {"image": x}, k, Context())[0]))(keys)
    return {name: np.asarray(values, np.float64) for name, values in terms.items()}


class Given:
    """A view of a model in evaluation, with a given output."""

    train = False

    def __init__(self, output: Any):
        self._output = output

    def output(self, batch: Any, keys: Any) -> Any:
        return self._output


def subject_of(config: Config, model: Any, params: Any) -> Subject:
    return Subject(TrainedRun(config, model, params, 0, SHAPE, {}), loss_of(config))
