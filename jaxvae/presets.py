"""The presets: the values in which each differs from the options' defaults. The defaults are the preset "notes-vae"."""

import types
from collections.abc import Mapping
from typing import Any

from jaxvae.errors import InputError, suggestion

# "notes-ae" and "notes-vae" are the two models of the notes, except for the number of epochs. "vae" is a VAE as usual
# in the literature.
OVERRIDES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "notes-ae": {"objective": "mse", "latent_size": 20},
        "notes-vae": {},
        "vae": {
            "validation": 1 / 12,  # 5,000 of MNIST's 60,000
            "objective": "elbo",
            "head": "linear",
            "hidden": (512, 256),
            "latent_size": 20,
            "batch_size": 128,
        },
        # After Burda, Grosse and Salakhutdinov (arXiv 1509.00519) and their code: the one-layer model, the rate's
        # stages, Adam's constants. The differences, with theirs in parentheses: images are reshuffled (the file's
        # order), and a twelfth of them is held out (400); second moments start at 0 (at 1); Adam's eps is added after
        # the bias correction (before it); rates are not rounded (rounded); mean and deviation are one layer (two);
        # active units are those of the test images (of 500 training images). Their widths for two stochastic layers
        # are --hidden 200 100. All differences are in docs/iwae-preset.md.
        "iwae": {
            "validation": 1 / 12,
            "objective": "iwae",
            "samples": 5,
            "head": "exp",
            "hidden": (200, 200),
            "latent_size": 50,
            "activation": "tanh",
            "init": "glorot",
            "inputs": "dynamic",
            "batch_size": 20,
            "epochs": 3280,
            "schedule": "stages",
            "adam_b1": 0.99,
            "adam_eps": 1e-4 / 20,  # They sum gradients over the batch, which multiplies eps by its size.
            "image_every": 50,
            "checkpoint_every": 50,
        },
        # After Tomczak and Welling (arXiv 1705.07120) and their code: its one-layer model for dynamically binarised
        # MNIST, without the early stop. They warm the KL term up for 100 epochs: add --kl-warmup-epochs 100 to a run
        # that is long enough. The other differences, with theirs in parentheses: a twelfth of the images is held out
        # (a sixth); Adam (with the gradient of each array scaled to a norm of 1 first); a log-variance is within
        # +-10 (from -6 to 2); pseudo-inputs start between training images and their mean (at an intensity of 0.05).
        "vamp": {
            "validation": 1 / 12,
            "objective": "elbo",
            "prior": "vamp",
            "architecture": "gated",
            "head": "linear",
            "hidden": (300, 300),
            "latent_size": 40,
            "inputs": "dynamic",
            "batch_size": 100,
            "epochs": 2000,
            "learning_rate": 5e-4,
            "image_every": 50,
            "checkpoint_every": 50,
        },
        "ladder": {
            "validation": 1 / 12,
            "objective": "elbo",
            "architecture": "ladder",
            "hidden": (64, 128),
            "head": "linear",
            "activation": "gelu",
            "skip_norm": 1000.0,
            "batch_size": 128,
        },
        "vq-vae": {
            "validation": 1 / 12,
            "objective": "vq",
            "architecture": "conv",
            "hidden": (32, 64),
            "latents": "spatial",
            "codes": 256,
            "code_size": 16,
            "batch_size": 128,
        },
        "fsq": {
            "validation": 1 / 12,
            "objective": "fsq",
            "architecture": "conv",
            "hidden": (32, 64),
            "latents": "spatial",
            "levels": (8, 6, 5),
            "batch_size": 128,
        },
    }
)


def overrides(preset: str) -> Mapping[str, Any]:
    """The preset's entry in `OVERRIDES`. Raises `InputError` if there is none."""
    if preset not in OVERRIDES:
        near = suggestion(preset, OVERRIDES)
        raise InputError(f"--preset {preset}: unknown; choose from {', '.join(OVERRIDES)}{near}")
    return OVERRIDES[preset]
