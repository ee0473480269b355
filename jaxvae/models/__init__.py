"""Flax modules of autoencoders and VAEs."""

from jaxvae.models.models import *  # noqa: F403
