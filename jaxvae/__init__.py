"""Train autoencoders and variational autoencoders on images, fast, with JAX and Flax."""

from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.models import VAE, AutoEncoder, build_model, reparameterize
from jaxvae.objectives import OBJECTIVES, Objective
from jaxvae.train_step import (
    TrainState,
    build_optimizer,
    init_state,
    make_evaluate,
    make_run_steps,
    make_train_step,
)
from jaxvae.variational import build_objective

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "VAE",
    "AutoEncoder",
    "Config",
    "InputError",
    "Objective",
    "TrainState",
    "build_model",
    "build_objective",
    "build_optimizer",
    "init_state",
    "make_evaluate",
    "make_run_steps",
    "make_train_step",
    "reparameterize",
]
