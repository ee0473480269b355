"""The presets: the values in which each differs from the defaults of the options, which are those of "notes-vae"."""

import types
from collections.abc import Mapping
from typing import Any

from jaxvae.errors import InputError, suggestion

# "notes-ae" and "notes-vae" are the two models of the notes, all but the number of epochs; "vae" is what the field
# means by a VAE.
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
        # stages, Adam's constants. Not theirs: images reshuffled, and a twelfth of them held out (they keep the file's
        # order, and hold out 400); second moments that start at 0 (1), Adam's eps added after the bias correction
        # (before it); rates that are not rounded; mean and deviation in one layer; active units of the test images
        # (500 training images). Their widths for two stochastic layers are --hidden 200 100. All of it is in
        # docs/iwae-preset.md.
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
    }
)


def overrides(preset: str) -> Mapping[str, Any]:
    """The preset's entry in `OVERRIDES`. Raises `InputError` if there is none."""
    if preset not in OVERRIDES:
        near = suggestion(preset, OVERRIDES)
        raise InputError(f"--preset {preset}: unknown; choose from {', '.join(OVERRIDES)}{near}")
    return OVERRIDES[preset]
