"""A small configuration of every kind of model and objective: every preset, prior, likelihood and network is in one."""

import dataclasses
from typing import Any

from jaxvae.config import PRESETS, Config

CODES: dict[str, Any] = {"latent_size": 10, "code_prior_width": 8, "code_prior_layers": 1}
VQ: dict[str, Any] = {**CODES, "codes": 12, "code_size": 4}
# A preset, what is changed, and an option that a sweep varies.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "notes-ae": ("notes-ae", {"corruption": 0.3}, "learning_rate"),
    "notes-vae": ("notes-vae", {}, "learning_rate"),
    "conv": ("vae", {"architecture": "conv", "hidden": (4, 8), "likelihood": "logistic"}, "beta"),
    "iwae": ("iwae", {}, "beta"),
    "dreg": ("vae", {"objective": "dreg", "samples": 3, "likelihood": "gaussian-pixel", "dequantize": True}, "beta"),
    "info": ("vae", {"objective": "info", "mmd_weight": 2.0, "prior": "mixture"}, "mmd_weight"),
    "beta-tc": ("vae", {"objective": "beta-tc", "beta": 4.0, "condition": "label", "prior": "label"}, "beta"),
    "factor": (
        "vae",
        {"objective": "factor", "beta": 3.0, "discriminator_width": 8, "discriminator_layers": 1},
        "beta",
    ),
    "capacity": ("vae", {"objective": "capacity", "capacity_epochs": 1.0, "likelihood": "gaussian"}, "capacity"),
    "rae": ("vae", {"objective": "rae", "ema": 0.9}, "code_l2"),
    "gaussian-global": ("vae", {"likelihood": "gaussian-global", "free_bits": 0.1}, "free_bits"),
    "realnvp": ("vae", {"prior": "realnvp", "flow_layers": 2, "flow_width": 8}, "beta"),
    "vamp": ("vamp", {"pseudo_inputs": 6, "ema": 0.9}, "beta"),
    "resnet": ("vae", {"architecture": "resnet", "blocks": 1, "latents": "spatial", "latent_size": 16}, "beta"),
    "two-layer": ("iwae", {"architecture": "two-layer", "hidden": (8, 6)}, "beta"),
    "ladder": ("ladder", {"latent_size": 10, "blocks": 1, "maps": 1}, "beta"),
    "vq-vae": ("vq-vae", VQ, "commitment"),
    "gradient": ("vq-vae", {**VQ, "codebook": "gradient"}, "commitment"),
    "fsq": ("fsq", {**CODES, "levels": (4, 3)}, "learning_rate"),
}


def config_of(kind: str) -> Config:
    preset, changes, _ = KINDS[kind]
    small = {"hidden": (8,), "latent_size": 3, "batch_size": 8, "validation": 0.0, "epochs": 2}
    seldom = {"log_every": 1, "image_every": 0, "checkpoint_every": 1}
    return dataclasses.replace(PRESETS[preset], **{**small, **seldom, **changes})
