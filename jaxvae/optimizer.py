"""Optimisers: Adam with a schedule, decay and clipping; user-defined ones; and the average of the weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvae.errors import InputError
from jaxvae.options import FRACTION, NOT_NEGATIVE, POSITIVE, Range, option
from jaxvae.protocols import Hyperparameters, Optimizer
from jaxvae.typing import Array, Params

STAGES = 8  # Of the learning rate, in the schedule "stages".


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, arXiv 1412.6980). The defaults are PyTorch's, as in the notes."""

    learning_rate: float = option(1e-3, POSITIVE, traced=True)
    """Adam's learning rate; with a schedule, its highest value."""
    schedule: Literal["constant", "cosine", "stages"] = option("constant")
    """cosine: down to 0 at the end; stages: eight, stage i with 3^i parts of the run, at 10^(-i/7) of the rate."""
    warmup_epochs: float = option(0.0, NOT_NEGATIVE)
    """Epochs over which the learning rate grows from 0."""
    weight_decay: float = option(0.0, NOT_NEGATIVE, traced=True)
    """Decoupled weight decay (AdamW): a step shrinks weights by this times the learning rate."""
    clip_norm: float = option(0.0, NOT_NEGATIVE)
    """Scale gradients with a greater norm down to this norm; 0: never."""
    skip_norm: float = option(0.0, Range("from 0 to 1e30", lambda value: 0 <= value <= 1e30))
    """Skip the update of a step whose gradient has a greater norm; 0: never."""
    adam_b1: float = option(0.9, FRACTION)
    """Adam's decay of the first moment."""
    adam_b2: float = option(0.999, FRACTION)
    """Adam's decay of the second moment."""
    adam_eps: float = option(1e-8, POSITIVE)
    """Added to the root of Adam's second moment."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        if self.warmup_epochs > config.epochs:
            raise InputError(f"--warmup-epochs {self.warmup_epochs:g} is more than --epochs {config.epochs}")

    @property
    def by_length(self) -> bool:
        """See `Component`."""
        return self.schedule != "constant"

    def build(
        self, epochs: int, steps_per_epoch: int | None, hyperparameters: Hyperparameters
    ) -> optax.GradientTransformation:
        """See `Optimizer`."""
        rate = hyperparameters.get("learning_rate", self.learning_rate)
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        parts.append(_scale_by_adam(self.adam_b1, self.adam_b2, self.adam_eps))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(hyperparameters.get("weight_decay", self.weight_decay)))
        if self.schedule == "constant" and not self.warmup_epochs:
            parts.append(optax.scale(-rate))
        elif steps_per_epoch is None:
            raise TypeError("build_optimizer needs steps_per_epoch: schedule and warmup_epochs count in epochs")
        else:
            fraction = self.rate_schedule(epochs, steps_per_epoch)
            parts.append(optax.scale_by_schedule(lambda count: -rate * fraction(count)))
        chain = optax.chain(*parts)
        return _skipping(chain, self.skip_norm) if self.skip_norm else chain

    def rate_schedule(self, epochs: int, steps_per_epoch: int) -> Callable[[Array], Array]:
        """The learning rate at a step, as a fraction of the highest: from an int32 [] to a float32 []."""
        total, warmup = epochs * steps_per_epoch, self.warmup_epochs * steps_per_epoch
        # Stage i of Burda et al. (arXiv 1509.00519), appendix: 3^i parts of the 3,280, at 10^(-i/7).
        ends = [total * (3 ** (i + 1) - 1) / (3**STAGES - 1) for i in range(STAGES - 1)]

        def fraction(count: Array) -> Array:
            step = count.astype(jnp.float32)
            value = jnp.ones((), jnp.float32)
            if self.schedule == "cosine":
                done = jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
                value = 0.5 * (1 + jnp.cos(jnp.pi * done))
            elif self.schedule == "stages":
                stage = jnp.searchsorted(jnp.asarray(ends, jnp.float32), step, side="right").astype(jnp.float32)
                value = 10.0 ** (-stage / (STAGES - 1))
            if warmup:
                value = value * jnp.minimum((step + 1) / warmup, 1)
            return value

        return fraction


def _skipping(optimizer: optax.GradientTransformation, limit: float) -> optax.GradientTransformation:
    """`optimizer`, which leaves parameters and state as they are where the gradient's norm is not at most `limit`.

    Child (arXiv 2011.10650, section 4.1 and table 6).
    """

    def update(grads: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        squares: Any = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(grads))
        # False for NaN and infinity. With a second use of the sum, XLA would add it up again for every leaf.
        keep = jnp.sqrt(squares) <= limit
        updates, new = optimizer.update(grads, state, params)
        return jax.tree.map(lambda u: jnp.where(keep, u, 0), updates), jax.tree.map(
            lambda after, before: jnp.where(keep, after, before), new, state
        )

    return optax.GradientTransformation(optimizer.init, update)


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, except that the bias corrections ``1 - b**t`` are exact up to rounding.

    Optax rounds ``b**t`` before it subtracts. In float32 this changes the first steps by about 1e-5 of
    their size, and the loss after 200 steps by up to 6e-3; with ``-expm1(t * log(b))``, by 4e-7.
    """

    def update(grads: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)

        def direction(m: Array, v: Array) -> Array:
            t = count.astype(m.dtype)
            # Multiply by a scalar's reciprocal: XLA rewrites only some divisions so, and all programs must round alike.
            m_hat = m * (-1 / jnp.expm1(t * math.log(b1))) if b1 else m
            v_hat = v * (-1 / jnp.expm1(t * math.log(b2))) if b2 else v
            return m_hat / (jnp.sqrt(v_hat) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


class GivenOptimizer(Optimizer):
    """A user-defined optax optimiser. It has no options."""

    def __init__(self, transformation: optax.GradientTransformation):
        self.transformation = transformation

    def build(
        self, epochs: int, steps_per_epoch: int | None, hyperparameters: Hyperparameters
    ) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return self.transformation


OPTIMIZERS: Mapping[str, type[Optimizer]] = {"adam": Adam}


class AverageState(NamedTuple):
    """The state of `with_average`: the wrapped optimiser's, and the average of the parameters."""

    inner: optax.OptState
    average: Params
    updates: Array


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """`optimizer` with an exponential moving average of the parameters in its state.

    After step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` of the way to the parameters, so that the
    random initial ones do not count for long. Polyak and Juditsky (1992); the warm-up is TensorFlow's.

    Args:
      optimizer: computes the updates, which stay unchanged.
      decay: in (0, 1).
    """

    def init(params: Params) -> AverageState:
        return AverageState(optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, AverageState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        t = state.updates.astype(jnp.float32)
        rate = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
        average = jax.tree.map(
            lambda a, p: a + rate.astype(a.dtype) * (p - a), state.average, optax.apply_updates(params, updates)
        )
        return updates, AverageState(inner, average, optax.safe_increment(state.updates))

    return optax.GradientTransformation(init, update)


def evaluated(params: Params, opt_state: optax.OptState) -> Params:
    """The parameters to evaluate, sample and export with: their average if there is one."""
    return opt_state.average if isinstance(opt_state, AverageState) else params


def build_optimizer(
    config: Any, steps_per_epoch: int | None = None, hyperparameters: Hyperparameters | None = None
) -> optax.GradientTransformation:
    """The optimiser of a `jaxvae.Config`.

    Args:
      config: its optimiser, and whether the weights are averaged.
      steps_per_epoch: training steps per epoch, needed if the rate has a schedule or a warm-up, which count in epochs.
        The state's structure does not depend on it.
      hyperparameters: values to use in place of ``config.traced()``. They may be traced.

    Raises:
      TypeError: `config` needs `steps_per_epoch`, and it is missing.
    """
    optimizer: Any = config.parts.optimizer.build(config.epochs, steps_per_epoch, hyperparameters or {})
    built: optax.GradientTransformation = with_average(optimizer, config.ema) if config.ema else optimizer
    return built
