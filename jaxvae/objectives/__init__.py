"""What a model is trained on."""

from jaxvae.objectives.objectives import *  # noqa: F403
