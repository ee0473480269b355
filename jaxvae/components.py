"""The components of a run by their names: built-in and user-defined ones."""

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import optax
from flax import linen as nn

from jaxvae.errors import InputError, suggestion
from jaxvae.models.build import PRIORS
from jaxvae.models.likelihoods import LIKELIHOODS
from jaxvae.models.networks import NETWORKS
from jaxvae.noise import INPUTS
from jaxvae.objectives.base import FunctionObjective
from jaxvae.objectives.build import OBJECTIVES
from jaxvae.optimizer import OPTIMIZERS, GivenOptimizer
from jaxvae.options import flag, options
from jaxvae.own import is_own, resolve
from jaxvae.protocols import Inputs, Likelihood, Network, Objective, Optimizer, Prior

# The built-in components of a run, by the field that names them. A field may also name a user-defined one.
SLOTS: Mapping[str, Mapping[str, type]] = types.MappingProxyType(
    {
        "inputs": INPUTS,
        "architecture": NETWORKS,
        "objective": OBJECTIVES,
        "likelihood": LIKELIHOODS,
        "prior": PRIORS,
        "optimizer": OPTIMIZERS,
    }
)


class Parts(NamedTuple):
    """The components of a run, with their options; `model` is a user-defined model, or None."""

    inputs: Inputs
    network: Network
    objective: Objective
    likelihood: Likelihood
    prior: Prior
    optimizer: Optimizer
    model: nn.Module | None


def kind_of(slot: str, name: str) -> Any:
    """The component that a field names: its class, or the object that the user gave.

    Raises:
      InputError: there is no such component, or it cannot be used.
    """
    if name in SLOTS[slot]:
        return SLOTS[slot][name]
    if not is_own(name):
        near = suggestion(name, SLOTS[slot])
        raise InputError(f"{flag(slot)} {name}: unknown; choose from {', '.join(SLOTS[slot])}{near}")
    found = resolve(name, flag(slot))
    if slot == "optimizer" and isinstance(found, optax.GradientTransformation):
        return GivenOptimizer(found)
    if slot == "objective" and isinstance(found, types.FunctionType):
        _check_loss(found, f"{flag(slot)} {name}")
        return FunctionObjective(found)
    protocol = typing.get_type_hints(Parts)["network" if slot == "architecture" else slot]
    _check_component(found if isinstance(found, type) else type(found), protocol, f"{flag(slot)} {name}")
    return found


def _check_loss(function: types.FunctionType, named: str) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
        fits = next(iter(signature.parameters)) != "batch"
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"{named}: must take (output, batch), not {signature}")


# The members that a component must define, or the alternatives to them, by its protocol.
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "Inputs": ("pixels", "observe"),
    "Network": ("encoder", "decoder"),
    "Objective": ("terms",),
    "Likelihood": ("nll", "continuous"),
    "Prior": ("module or module_with",),
    "Optimizer": ("build",),
}


def _check_component(kind: Any, protocol: Any, named: str) -> None:
    if protocol not in kind.__mro__:
        raise InputError(f"{named}: must inherit from {protocol.__module__}.{protocol.__name__}")
    if "__dataclass_fields__" not in kind.__dict__ or not kind.__dataclass_params__.frozen:
        raise InputError(f"{named}: must be a dataclass(frozen=True)")
    for method in _REQUIRED[protocol.__name__]:
        if all(getattr(kind, name, None) is getattr(protocol, name, None) for name in method.split(" or ")):
            raise InputError(f"{named}: must define {method}")


def parts_of(values: Mapping[str, Any]) -> Parts:
    """The components that the values of all fields describe. Raises `InputError`."""
    built: list[Any] = []
    for slot in SLOTS:
        kind = kind_of(slot, values[slot])
        built.append(kind(**{o.name: values[o.name] for o in options(kind)}) if isinstance(kind, type) else kind)
    model = values["model"]
    if model is not None:
        if not is_own(model):
            raise InputError(f"--model {model}: must be package.module:Name")
        found = resolve(model, "--model")
        if not isinstance(found, nn.Module) and not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise InputError(f"--model {model}: must be a flax.linen.Module")
        model = found if isinstance(found, nn.Module) else found()
    return Parts(*(*built, model))
