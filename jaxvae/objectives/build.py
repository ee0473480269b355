"""The objectives by name, and the loss of a configuration."""

from collections.abc import Mapping
from typing import Any

from jaxvae.objectives.base import Facts, Loss
from jaxvae.objectives.beta_tc import BetaTc
from jaxvae.objectives.capacity import Capacity
from jaxvae.objectives.elbo import Elbo
from jaxvae.objectives.factor import Factor
from jaxvae.objectives.fsq import Fsq
from jaxvae.objectives.info import Info
from jaxvae.objectives.iwae import Dreg, Iwae
from jaxvae.objectives.notes import Mse, NotesElbo
from jaxvae.objectives.rae import Rae
from jaxvae.objectives.vq import Vq
from jaxvae.options import with_traced
from jaxvae.protocols import Objective
from jaxvae.typing import Array

OBJECTIVES: Mapping[str, type[Objective]] = {
    "mse": Mse,
    "notes-elbo": NotesElbo,
    "elbo": Elbo,
    "iwae": Iwae,
    "dreg": Dreg,
    "info": Info,
    "beta-tc": BetaTc,
    "factor": Factor,
    "vq": Vq,
    "fsq": Fsq,
    "capacity": Capacity,
    "rae": Rae,
}


def build_objective(
    config: Any,
    steps_per_epoch: int | None = None,
    num_images: int | None = None,
    hyperparameters: Mapping[str, Array | float] | None = None,
) -> Loss:
    """The loss of a `jaxvae.Config`.

    Args:
      config: its objective, likelihood and inputs.
      steps_per_epoch: training steps per epoch, needed if the objective counts in epochs.
      num_images: the number of training images, needed if the objective depends on it.
      hyperparameters: values to use in place of ``config.traced()``. They may be traced.

    Raises:
      TypeError: an argument that `config` needs is missing.
    """
    parts, traced = config.parts, hyperparameters or {}
    objective, likelihood, inputs = (
        with_traced(part, traced) for part in (parts.objective, parts.likelihood, parts.inputs)
    )
    given = {"steps_per_epoch": steps_per_epoch, "num_images": num_images}
    for name, why in objective.needs().items():
        if given[name] is None:
            raise TypeError(f"build_objective needs {name}: {why}")
    # The objective does not read what it does not need.
    facts = Facts(config.epochs, steps_per_epoch or 0, num_images or 0)
    return Loss(objective, likelihood, inputs, config.matmul_precision, facts, config.flip)


def loss_of(config: Any) -> Loss:
    """The loss of a `jaxvae.Config` outside a run, for the names of its metrics and what they mean."""
    return build_objective(config, 0, 0)


def measure_warning(config: Any) -> str | None:
    """A warning if the bound of a configuration is a density, which must not be taken for a probability; else None."""
    loss = loss_of(config)
    if not loss.has_bound or loss.measure != "density":
        return None
    return (
        f"warning: --likelihood {config.likelihood} gives densities of discrete pixels, which have no upper bound "
        "and are not probabilities; --dequantize (with --inputs grey) makes them lower bounds on probabilities"
    )


def selection_term(config: Any) -> tuple[str, bool]:
    """The evaluation term that selects the best model, and whether higher is better: see `Loss.selection_term`."""
    return loss_of(config).selection_term


def selection_cost(config: Any, metrics: Mapping[str, float]) -> float | None:
    """The metric that `selection_term` names, negated if higher is better, so that lower is better; None without it."""
    term, higher = selection_term(config)
    value = metrics.get(term)
    return -value if higher and value is not None else value
