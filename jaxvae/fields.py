"""The fields of a configuration that belong to no component, and those that name the components."""

import dataclasses
import math
from typing import Literal

from jaxvae.models.autoencoder import Head
from jaxvae.models.layers import Precision
from jaxvae.models.networks import MAX_WIDTH
from jaxvae.options import AT_LEAST_1, COUNT, FRACTION, NOT_NEGATIVE, Range, option

_SEED = Range("at least 0 and below 2^32", lambda value: 0 <= value < 2**32)
HELD_OUT = Range("below 1 or a whole number", lambda value: math.isfinite(value) and (value <= 1 or not value % 1))


@dataclasses.dataclass(frozen=True)
class Fields:
    """What is no component's. Below each field that names a component, `Config` has the options of all of them."""

    preset: str = option("notes-vae")
    """notes-ae, notes-vae: the notes' models to the letter; vae: a usual VAE; iwae: after Burda et al."""

    # Data.
    dataset: str = option("auto", Range("a name or a path, not empty", bool))
    """auto (mnist, or digits if offline), mnist, fashion_mnist, kmnist, digits, a .npy/.npz file, image folders."""
    data_dir: str | None = option(None)
    """Directory of IDX files (.gz or not). Without it they are downloaded once, checksums verified."""
    validation: float = option(0.0, NOT_NEGATIVE)
    """Training images to hold out, to choose the best checkpoint by: a fraction below 1, or how many; 0: none."""
    validation_seed: int = option(0, COUNT)
    """Draws which training images are held out."""
    inputs: str = option("grey")
    """Pixels. dynamic: 0 or 1, drawn anew each time an image is seen; static: drawn once, by --static-seed."""

    # Model.
    model: str | None = option(None)
    """package.module:Name of a Flax module of your own, in place of all that describes a model."""
    architecture: str = option("mlp")
    """mlp: dense; conv: stride-2 convolutions; resnet: with residual blocks; two-layer: two stochastic layers."""
    latent_size: int = option(10, Range(f"from 1 to {MAX_WIDTH}", lambda value: 1 <= value <= MAX_WIDTH))
    """Latent dimensions; for an autoencoder, the width of its code."""
    head: Head = option("relu")
    """Beside the mean, the encoder gives: relu: the deviation, after a ReLU; linear: the log-variance, within +-10;
    logvar: the same, unbounded; exp: the log-deviation. An autoencoder's code: relu or linear."""
    compute_dtype: Literal["float32", "bfloat16"] = option("float32")
    """Arithmetic of the layers' products; parameters, losses and updates are always float32."""
    matmul_precision: Precision = option("highest")
    """Of float32 products in training. highest: float32; high: TF32 on a GPU, three bfloat16 passes on a TPU; default:
    TF32 on a GPU, one bfloat16 pass on a TPU."""

    # Objective.
    objective: str = option("notes-elbo")
    """mse (autoencoder), notes-elbo (VAE): the notes', per pixel; the others in nats/image."""
    likelihood: str = option("bernoulli")
    """Distribution of a pixel, for the objectives in nats/image."""
    prior: str = option("normal")
    """Distribution of the latents, for the objectives in nats/image."""

    # Training.
    optimizer: str = option("adam")
    """What makes the updates; or package.module:Name of an optax optimiser of your own."""
    ema: float = option(0.0, FRACTION)
    """Evaluate, draw and export an exponential moving average of the weights with this decay; 0: the weights."""
    batch_size: int = option(32, AT_LEAST_1)
    """Images a step. The last, incomplete batch of an epoch is dropped."""
    epochs: int = option(20, AT_LEAST_1)
    """Passes over the training images; the notes train for 1000."""
    seed: int = option(0, _SEED)
    """Everything random follows from it: initial weights, order of the images, noise."""

    # Cadence: what is written and when. It does not change what is trained.
    log_every: int = option(0, COUNT)
    """Steps that a train line of metrics.jsonl averages over; 0: all of an epoch."""
    image_every: int = option(1, COUNT)
    """Epochs between pictures; 0: only at the end."""
    checkpoint_every: int = option(5, COUNT)
    """Epochs between checkpoints; 0: only at the end."""
    keep_checkpoints: int = option(3, AT_LEAST_1)
    """Newest checkpoints to keep."""
    keep_best_checkpoints: int = option(1, COUNT)
    """Best checkpoints by the validation images to keep besides, of those saved. None without --validation."""
