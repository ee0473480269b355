"""Train autoencoders and variational autoencoders on images, fast, with JAX and Flax."""

from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import build_model
from jaxvae.models.vae import VAE, reparameterize
from jaxvae.objectives.build import OBJECTIVES, build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import Objective
from jaxvae.train.evaluation import make_evaluate
from jaxvae.train.step import TrainState, init_state, make_run_steps, make_train_step

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
