"""Capacity annealing: a KL term that is held at a number of nats, which grows while training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Key

from jaxvae.errors import InputError
from jaxvae.objectives.base import View
from jaxvae.objectives.elbo import CLOSED_FORM, check_deviation
from jaxvae.options import NOT_NEGATIVE, option
from jaxvae.protocols import Objective
from jaxvae.typing import Array, Batch, Terms


@dataclass(frozen=True)
class Capacity(Objective):
    """The evidence lower bound with a controlled capacity: Burgess et al. (arXiv 1804.03599), equation 8.

    ``-log p(x | z) + capacity_weight * |KL - C|`` for each image. C grows linearly from 0 to `capacity`.
    """

    capacity: float = option(25.0, NOT_NEGATIVE, traced=True)
    """Nats that capacity holds the KL term of an image at, in the end."""
    capacity_weight: float = option(10.0, NOT_NEGATIVE, traced=True)
    """Weight of the distance between the KL term and its capacity."""
    capacity_epochs: float = option(0.0, NOT_NEGATIVE)
    """Epochs over which the capacity grows from 0."""

    separate: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        check_deviation(config)
        if self.capacity_epochs > config.epochs:
            raise InputError(f"--capacity-epochs {self.capacity_epochs:g} must be at most --epochs {config.epochs:g}")
        if not config.parts.prior.closed_form:
            raise InputError(f"--objective {config.objective} needs {CLOSED_FORM}: --prior normal or label")

    def needs(self) -> Mapping[str, str]:
        """See `Objective`."""
        return {"steps_per_epoch": "capacity_epochs counts in epochs"} if self.capacity_epochs else {}

    def capacity_at(self, view: View) -> Array | float:
        """C, at the step of the view; in evaluation that of the end."""
        if view.step is None or not self.capacity_epochs:
            return self.capacity
        grown = view.step.astype(jnp.float32) / (self.capacity_epochs * view.loss.facts.steps_per_epoch)
        return self.capacity * jnp.minimum(grown, 1.0)

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        drawn = view.draw(batch, keys, 1)
        if drawn.kl is None:
            raise InputError(f"--objective capacity needs {CLOSED_FORM}")
        recon = view.nll(drawn.pixels, batch["image"]).mean(axis=1)
        kl = drawn.kl.sum(axis=-1)
        loss = recon + self.capacity_weight * jnp.abs(kl - self.capacity_at(view))
        return {"loss": loss, "recon": recon, "kl": kl, "bound": -(recon + kl)}
