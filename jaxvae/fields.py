"""The fields of a configuration that belong to no component, and those that name the components."""

import dataclasses
import math
from typing import Literal, TypeAlias

from jaxvae.models.autoencoder import Head
from jaxvae.models.layers import Precision
from jaxvae.models.networks import MAX_WIDTH
from jaxvae.options import AT_LEAST_1, CLASSES, COUNT, FRACTION, NOT_NEGATIVE, Range, option

Resize: TypeAlias = Literal["crop", "pad", "stretch"]
Stream: TypeAlias = Literal["auto", "always", "never"]
Track: TypeAlias = Literal["none", "wandb", "mlflow", "trackio"]
MAX_SIDE = 2**14  # Of an image, in pixels.
_SEED = Range("at least 0 and below 2^32", lambda value: 0 <= value < 2**32)
_IMAGE_SIZE = Range(
    f"one or two numbers from 1 to {MAX_SIDE}",
    lambda value: len(value) <= 2 and all(1 <= side <= MAX_SIDE for side in value),
)
HELD_OUT = Range("below 1 or a whole number", lambda value: math.isfinite(value) and (value <= 1 or not value % 1))

# The first option of each group, and the group's name. An option of a component is in the group of what names it.
GROUPS = {
    "dataset": "data",
    "model": "model",
    "objective": "objective",
    "optimizer": "training",
    "log_every": "output",
}


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields that belong to no component. `Config` has the options of components after the field that names them."""

    preset: str = option("notes-vae")
    """notes-ae, notes-vae: exactly the notes' models; vae: a usual VAE; iwae: after Burda et al.; vamp: after Tomczak
    and Welling; ladder: a hierarchical VAE; vq-vae, fsq: discrete latents."""

    # Data.
    dataset: str = option("auto", Range("a name or a path, not empty", bool))
    """auto (mnist, or digits if offline), mnist, fashion_mnist, kmnist, emnist/SPLIT, binarized_mnist, omniglot,
    caltech101_silhouettes, dsprites, cifar10, cifar100, svhn_cropped, digits, hf:NAME (Hugging Face), a .npy/.npz file,
    a folder of pictures, of .npy files, or prepared by TensorFlow Datasets."""
    data_dir: str | None = option(None)
    """Directory of the files of a dataset with a name. Without it, they are downloaded once and verified."""
    image_size: tuple[int, ...] = option((), _IMAGE_SIZE)
    """Height and width of all images, or one number for squares. Default: images must have one size, and keep it."""
    resize: Resize = option("crop")
    """How --image-size is reached. crop: the middle; pad: all, with black bars; stretch: all, distorted."""
    channels: int | None = option(None, Range("1 or 3", lambda value: value in (None, 1, 3)))
    """1: grey, 3: colour. Default: as the images are; of a folder, 1 if all pictures are grey, else 3."""
    skip_bad: bool = option(False)
    """Leave out picture files that cannot be read, instead of refusing them."""
    stream: Stream = option("auto")
    """always: bring images to the device block by block; never: keep them there; auto: stream what does not fit. The
    results are the same."""
    validation: float = option(0.0, NOT_NEGATIVE)
    """Training images to hold out for choosing the best checkpoint: a fraction below 1, or a number; 0: none."""
    validation_seed: int = option(0, COUNT)
    """Seed that draws which training images are held out."""
    inputs: str = option("grey")
    """Pixels. dynamic: 0 or 1, drawn again each time an image is seen; static: drawn once, with --static-seed."""
    flip: bool = option(False)
    """Turn each image left to right with probability 1/2 whenever it is trained on: for photographs, not for digits."""

    # Model.
    model: str | None = option(None)
    """package.module:Name of your own Flax module. It replaces all options that describe a model."""
    architecture: str = option("mlp")
    """mlp: dense; gated: dense, with gated layers; conv: stride-2 convolutions; resnet: with residual blocks;
    two-layer: two stochastic layers; ladder: any number, from the top down."""
    latent_size: int = option(10, Range(f"from 1 to {MAX_WIDTH}", lambda value: 1 <= value <= MAX_WIDTH))
    """Latent dimensions; for an autoencoder, the width of its code."""
    head: Head = option("relu")
    """What the encoder gives besides the mean. relu: the standard deviation, after a ReLU; linear: the log-variance,
    within +-10; logvar: the same, unbounded; exp: the log standard deviation. An autoencoder's code: relu or linear."""
    condition: Literal["none", "label"] = option("none")
    """label: encoder and decoder get the label of an image too, and images of a class can be drawn."""
    classes: int = option(0, CLASSES)
    """How many labels a conditional model knows; 0: as many as the images have."""
    compute_dtype: Literal["float32", "bfloat16"] = option("float32")
    """Dtype of the layers' matrix products; parameters, losses and updates are always float32."""
    matmul_precision: Precision = option("highest")
    """Precision of float32 products in training. highest: float32; high: TF32 on a GPU, three bfloat16 passes on a TPU;
    default: TF32 on a GPU, one bfloat16 pass on a TPU."""
    step_kernels: Literal["plain", "pallas"] = option("plain")
    """What computes a step. plain: XLA's kernels; pallas: five of our own, for narrow dense models in small batches on
    a GPU: on an H100 twice as fast for notes-vae at batch 32, but slower for vae at batch 128."""

    # Objective.
    objective: str = option("notes-elbo")
    """mse (autoencoder), notes-elbo (VAE): the notes' losses, per pixel; rae: a regularised autoencoder; the others
    are in nats/image, vq and fsq with discrete latents."""
    likelihood: str = option("bernoulli")
    """Distribution of a pixel, for the objectives in nats/image."""
    prior: str = option("normal")
    """Distribution of the latents, for the objectives in nats/image. normal: N(0, I); label: one Gaussian for each
    label, learned; mixture: of Gaussians, learned; vamp: of the posteriors of learned images; realnvp: a flow."""

    # Training.
    optimizer: str = option("adam")
    """Optimiser: adam, or package.module:Name of your own optax optimiser."""
    ema: float = option(0.0, FRACTION)
    """Decay of an exponential moving average of the weights, used to evaluate, sample and export; 0: no average."""
    batch_size: int = option(32, AT_LEAST_1)
    """Images per step. The last, incomplete batch of an epoch is dropped."""
    epochs: int = option(20, AT_LEAST_1)
    """Passes over the training images; the notes train for 1000."""
    seed: int = option(0, _SEED)
    """Seed of everything random: initial weights, order of the images, noise."""

    # Cadence: what is written and when. It does not change what is trained.
    log_every: int = option(0, COUNT)
    """Steps that a train line of metrics.jsonl averages over; 0: a whole epoch."""
    track: Track = option("none")
    """Send metrics and pictures to an experiment tracker, too: Weights & Biases, MLflow or Trackio."""
    image_every: int = option(1, COUNT)
    """Epochs between pictures; 0: only at the end."""
    checkpoint_every: int = option(5, COUNT)
    """Epochs between checkpoints; 0: only at the end."""
    keep_checkpoints: int = option(3, AT_LEAST_1)
    """How many of the newest checkpoints to keep."""
    keep_best_checkpoints: int = option(1, COUNT)
    """How many more checkpoints to keep: those best on the validation images. Without --validation: none."""
