"""Train autoencoders and variational autoencoders on images, fast, with JAX and Flax."""

from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.models.models import VAE, AutoEncoder, build_model, reparameterize
from jaxvae.objectives.objectives import OBJECTIVES, Objective
from jaxvae.objectives.variational import build_objective
from jaxvae.train.evaluation import make_evaluate
from jaxvae.train.optimizer import build_optimizer
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
