"""Train autoencoders and variational autoencoders on images, fast, with JAX and Flax."""

from typing import TYPE_CHECKING, Any

from jaxvae import models, objectives, protocols
from jaxvae.config import PRESETS, Config
from jaxvae.data import ImageData
from jaxvae.errors import Diverged, InputError
from jaxvae.models import VAE, AutoEncoder, TwoLayerVAE, build_model, reparameterize
from jaxvae.objectives import OBJECTIVES, build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.options import option
from jaxvae.train.evaluation import make_evaluate
from jaxvae.train.step import TrainState, init_state, make_run_steps, make_train_step

if TYPE_CHECKING:
    from jaxvae.fitting import Fit, fit
    from jaxvae.trained import TrainedRun, load

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "VAE",
    "AutoEncoder",
    "Config",
    "Diverged",
    "Fit",
    "ImageData",
    "InputError",
    "TrainState",
    "TrainedRun",
    "TwoLayerVAE",
    "build_model",
    "build_objective",
    "build_optimizer",
    "fit",
    "init_state",
    "load",
    "make_evaluate",
    "make_run_steps",
    "make_train_step",
    "models",
    "objectives",
    "option",
    "protocols",
    "reparameterize",
]

# Imported when first used, since these need more than JAX, Flax and Optax.
_LATER = {"Fit": "fitting", "fit": "fitting", "TrainedRun": "trained", "load": "trained"}
_MODULES = ("evaluate", "fitting")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"jaxvae.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(f"jaxvae.{_LATER[name]}"), name)
    raise AttributeError(f"module 'jaxvae' has no attribute {name!r}")
