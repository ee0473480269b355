"""Flax modules of autoencoders and VAEs, and the components that they are made of."""

from jaxvae.models.autoencoder import AutoEncoder, AutoEncoderOutput
from jaxvae.models.build import Model, build_model, can_sample, reconstruct, sample
from jaxvae.models.two_layer import TwoLayerVAE
from jaxvae.models.vae import VAE, LatentModel, VAEOutput, reparameterize

__all__ = [
    "VAE",
    "AutoEncoder",
    "AutoEncoderOutput",
    "LatentModel",
    "Model",
    "TwoLayerVAE",
    "VAEOutput",
    "build_model",
    "can_sample",
    "reconstruct",
    "reparameterize",
    "sample",
]
