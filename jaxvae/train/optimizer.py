"""The optimiser of a configuration: Adam, with a schedule, decay and clipping."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxvae.config import Config
from jaxvae.models.models import Params

STAGES = 8  # Of the rate, in the schedule of that name.


def build_optimizer(
    config: Config, steps_per_epoch: int | None = None, numbers: Mapping[str, Array | float] | None = None
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv 1412.6980), with the rate's schedule, decay and clipping that are configured.

    Args:
      config: the notes' own defaults are PyTorch's.
      steps_per_epoch: of training, needed where the rate has a schedule or a warm-up, which count in epochs. The
        state's structure does not depend on it.
      numbers: values, which may be traced, in place of ``config.numbers()``.

    Raises:
      TypeError: `config` needs `steps_per_epoch`, and it is missing.
    """
    numbers = config.numbers() if numbers is None else numbers
    rate = numbers["learning_rate"]
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(_scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(numbers["weight_decay"]))
    if config.schedule == "constant" and not config.warmup_epochs:
        parts.append(optax.scale(-rate))
    elif steps_per_epoch is None:
        raise TypeError("build_optimizer needs steps_per_epoch: schedule and warmup_epochs count in epochs")
    else:
        fraction = rate_schedule(config, steps_per_epoch)
        parts.append(optax.scale_by_schedule(lambda count: -rate * fraction(count)))
    return optax.chain(*parts)


def rate_schedule(config: Config, steps_per_epoch: int) -> Callable[[Array], Array]:
    """The learning rate at a step, as a fraction of the highest: from an int32 [] to a float32 []."""
    total, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    # Stage i of Burda et al. (arXiv 1509.00519), appendix: 3^i parts of the 3,280, at 10^(-i/7).
    ends = [total * (3 ** (i + 1) - 1) / (3**STAGES - 1) for i in range(STAGES - 1)]

    def fraction(count: Array) -> Array:
        step = count.astype(jnp.float32)
        value = jnp.ones((), jnp.float32)
        if config.schedule == "cosine":
            done = jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
            value = 0.5 * (1 + jnp.cos(jnp.pi * done))
        elif config.schedule == "stages":
            stage = jnp.searchsorted(jnp.asarray(ends, jnp.float32), step, side="right").astype(jnp.float32)
            value = 10.0 ** (-stage / (STAGES - 1))
        if warmup:
            value = value * jnp.minimum((step + 1) / warmup, 1)
        return value

    return fraction


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, but for the bias corrections ``1 - b**t``, which are exact to rounding here.

    Optax rounds ``b**t`` before it subtracts. In float32 that puts the first steps off by some 1e-5
    of their size, and the loss after 200 steps by up to 6e-3, against 4e-7 with ``-expm1(t * log(b))``.
    """

    def update(grads: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)

        def direction(m: Array, v: Array) -> Array:
            t = count.astype(m.dtype)
            # By a scalar's reciprocal, as XLA rewrites some divisions and not others: so every program rounds alike.
            m_hat = m * (-1 / jnp.expm1(t * math.log(b1))) if b1 else m
            v_hat = v * (-1 / jnp.expm1(t * math.log(b2))) if b2 else v
            return m_hat / (jnp.sqrt(v_hat) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)
