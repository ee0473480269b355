"""The evidence lower bound, in nats per image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxvae.errors import InputError
from jaxvae.models.networks import TwoLayer
from jaxvae.objectives.base import View
from jaxvae.options import AT_LEAST_1, NOT_NEGATIVE, option
from jaxvae.protocols import Objective, PosteriorSamples
from jaxvae.typing import Array, Batch, Terms

CLOSED_FORM = "a prior whose KL term has a closed form"


def check_deviation(config: Any) -> None:
    """Raise `InputError` if a standard deviation may be 0, where a KL term is not finite."""
    if config.head == "relu":
        raise InputError(
            f"--objective {config.objective} needs --head linear, logvar or exp: it has no finite value at a standard "
            "deviation of 0"
        )


@dataclass(frozen=True)
class InNats(Objective):
    """The base of all objectives in nats: they have a KL term, and its weight may be warmed up."""

    beta: float = option(1.0, NOT_NEGATIVE, traced=True)
    """Weight of the KL term (beta-tc, factor: of its total correlation alone)."""
    kl_warmup_epochs: float = option(0.0, NOT_NEGATIVE)
    """Epochs over which the weight of the KL term (beta-tc, factor: of its total correlation) grows to --beta."""
    kl_cycles: int = option(1, AT_LEAST_1)
    """Warm-ups of the KL term's weight, spread evenly over the run: cyclical annealing."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        check_deviation(config)
        if self.kl_warmup_epochs > config.epochs / self.kl_cycles:
            most = f"--epochs {config.epochs:g}" + (f" / --kl-cycles {self.kl_cycles}" if self.kl_cycles > 1 else "")
            raise InputError(f"--kl-warmup-epochs {self.kl_warmup_epochs:g} must be at most {most}")

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {} if self.kl_warmup_epochs else {"kl_cycles": "--kl-warmup-epochs"}

    @property
    def by_length(self) -> bool:
        """See `Component`."""
        return self.kl_cycles > 1

    def needs(self) -> Mapping[str, str]:
        """See `Objective`."""
        return {"steps_per_epoch": "kl_warmup_epochs counts in epochs"} if self.kl_warmup_epochs else {}

    def kl_weight(self, view: View) -> Array | float:
        """The KL term's weight: beta, or less during the warm-up.

        Linear warm-up (Sønderby et al., arXiv 1602.02282), repeated `kl_cycles` times (Fu et al., arXiv 1903.10145).
        """
        facts, warmup = view.loss.facts, self.kl_warmup_epochs
        if view.step is None or not warmup:
            return self.beta
        cycle = facts.epochs * facts.steps_per_epoch / self.kl_cycles
        inside = jnp.mod(view.step.astype(jnp.float32), jnp.float32(cycle))
        return self.beta * jnp.minimum(inside / (warmup * facts.steps_per_epoch), 1.0)


@dataclass(frozen=True)
class Samples(Objective):
    """An objective that may draw several latents for each image."""

    samples: int = option(1, AT_LEAST_1)
    """Latents drawn per image and step: the k of iwae and dreg."""

    @property
    def latents(self) -> int:
        """See `Objective`."""
        return self.samples


@dataclass(frozen=True)
class FreeBits(Objective):
    """An objective with a closed-form KL term per dimension, of which some nats may be free."""

    free_bits: float = option(0.0, NOT_NEGATIVE, traced=True)
    """Nats per image that a latent dimension may cost before its KL counts."""

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        if isinstance(config.parts.network, TwoLayer):
            return {"free_bits": "another --architecture"}
        return {} if config.parts.prior.closed_form else {"free_bits": "--prior normal or label"}


def free_bits_kl(kl: Float[Array, "B L"], free: Float[Array, ""] | float) -> Float[Array, " B"]:
    """The cost [B] of the KL per dimension [B, L]: a dimension below `free` nats counts as `free`.

    Kingma et al. (arXiv 1606.04934), appendix C.8, but per image rather than on the minibatch average, so that
    it does not depend on the rest of the batch.
    """
    return jnp.maximum(kl, free).sum(axis=-1)


def kl_and_cost(drawn: PosteriorSamples, free: Array | float) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """The KL term of each image, and its cost with `free` nats for each dimension, [B] each.

    Where it has no closed form, it is estimated from the latents, and nothing is free.
    """
    if drawn.kl is None:
        estimate = -(drawn.log_prior - drawn.log_posterior).mean(axis=1)
        return estimate, estimate
    return drawn.kl.sum(axis=-1), free_bits_kl(drawn.kl, free)


@dataclass(frozen=True)
class Elbo(InNats, FreeBits, Samples):
    """The evidence lower bound: Kingma and Welling, arXiv 1312.6114. With `beta`, Higgins et al. (ICLR 2017)."""

    hierarchical: ClassVar[bool] = True
    separate: ClassVar[bool] = True

    def idle(self, config: Any) -> Mapping[str, str]:
        """See `Component`."""
        return {**InNats.idle(self, config), **FreeBits.idle(self, config)}

    def terms(self, view: View, batch: Batch, keys: Key[Array, " B"]) -> Terms:
        """See `Objective`."""
        weight = self.kl_weight(view)
        drawn = view.draw(batch, keys, self.samples)
        recon = view.nll(drawn.pixels, batch["image"]).mean(axis=1)
        kl, cost = kl_and_cost(drawn, self.free_bits)
        return {"loss": recon + weight * cost, "recon": recon, "kl": kl, "bound": -(recon + kl)}
