"""The configuration of a run: one frozen dataclass, its presets, and its JSON form.

Every field is a flag of ``python -m jaxvae.train`` (``batch_size`` is ``--batch-size``) and a key
of a run directory's ``config.json``.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxvae.errors import InputError

Head = Literal["relu", "linear", "logvar", "exp"]
Likelihood = Literal["bernoulli", "gaussian", "gaussian-global", "gaussian-pixel", "logistic"]
Precision = Literal["default", "high", "highest"]
Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]
MAX_WIDTH = 2**16  # Of a layer; a wider one is a slip of the finger, and would hang while it is allocated.


def flag(field: str) -> str:
    """The command-line flag of a field: "batch_size" is "--batch-size"."""
    return "--" + field.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and how."""

    # A docstring below a field is its help text. The command line needs it on one line.
    preset: str = "notes-vae"
    """notes-ae, notes-vae: the notes' models to the letter; vae: what the field means by one; iwae: Burda et al.'s."""

    # Data.
    dataset: str = "auto"
    """mnist (auto: else digits), fashion_mnist, kmnist, digits, a .npy/.npz file, a folder of images."""
    data_dir: str | None = None
    """Directory of IDX files (.gz or not). Without it they are downloaded once, checksums verified."""
    validation: float = 0.0
    """Training images to hold out, to choose the best checkpoint by: a fraction below 1, or a number; 0: none."""
    validation_seed: int = 0
    """Draws which training images are held out."""

    # Model.
    hidden: tuple[int, ...] = (256, 64)
    """Widths of the encoder's hidden layers (conv: their channels); the decoder mirrors them."""
    latent_size: int = 10
    """Latent dimensions; for an autoencoder, the width of its code."""
    head: Head = "relu"
    """Beside the mean: deviation (relu), log-variance within +-10 (linear) or free (logvar), log-deviation (exp)."""
    architecture: Literal["mlp", "conv", "two-layer"] = "mlp"
    """mlp: dense; conv: stride-2 convolutions, any image size; two-layer: two stochastic layers of dense ones."""
    activation: Activation = "relu"
    """Between layers."""
    init: Literal["pytorch", "glorot"] = "pytorch"
    """Initial weights of dense layers: as PyTorch's; or Glorot's, and the pixels' bias at the logit of their mean."""
    objective: Literal["mse", "notes-elbo", "elbo", "iwae", "dreg", "info", "beta-tc"] = "notes-elbo"
    """mse (autoencoder), notes-elbo (VAE): the notes', per pixel; the others in nats/image."""
    likelihood: Likelihood = "bernoulli"
    """Of a pixel, for the objectives in nats/image."""
    likelihood_std: float = 0.1
    """Standard deviation of the likelihood gaussian, in units of intensity (0 to 1)."""
    inputs: Literal["grey", "dynamic", "static"] = "grey"
    """Pixels. dynamic: 0 or 1, drawn anew each time an image is seen; static: drawn once, by --static-seed."""
    static_seed: int = 0
    """Draws the pixels of --inputs static."""
    dequantize: bool = False
    """Add uniform noise of one grey level to the pixels, so that a Gaussian's density bounds a probability."""
    corruption: float = 0.0
    """Fraction of the pixels an autoencoder does not get to see: denoising."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers' products; parameters, losses and updates are always float32."""
    matmul_precision: Precision = "highest"
    """Float32 products in training: float32 (highest), or TF32 on GPUs and bfloat16 on TPUs, 3 passes (high) or 1."""

    # Objective.
    samples: int = 1
    """Latents drawn an image and step: the k of iwae and dreg."""
    beta: float = 1.0
    """Weight of the KL term (beta-tc: of its total correlation alone)."""
    kl_warmup_epochs: float = 0.0
    """Epochs over which that weight grows from 0 to --beta (beta-tc: the rest of the KL term weighs 1 throughout)."""
    kl_cycles: int = 1
    """How often that happens, evenly over the run: cyclical annealing."""
    free_bits: float = 0.0
    """Nats a latent dimension may cost an image before its KL counts."""
    mmd_weight: float = 0.0
    """Weight of the maximum mean discrepancy in info, times the number of pixels."""

    # Training.
    learning_rate: float = 1e-3
    """Adam's learning rate; where there is a schedule, its highest."""
    schedule: Literal["constant", "cosine", "stages"] = "constant"
    """cosine: down to 0 at the end; stages: eight, of 3^i parts of the run each, at 10^(-i/7) of the rate."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate grows from 0."""
    weight_decay: float = 0.0
    """Decoupled (AdamW), times the learning rate."""
    clip_norm: float = 0.0
    """Greatest norm of a gradient; 0: any."""
    adam_b1: float = 0.9
    """Adam's decay of the first moment."""
    adam_b2: float = 0.999
    """Adam's decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    batch_size: int = 32
    """Images a step. Of an epoch's shuffled images, those that do not fill a batch sit it out."""
    epochs: int = 20
    """Passes over the training images; the notes train for 1000."""
    seed: int = 0
    """Everything random follows from it: initial weights, order of the images, noise."""

    # Cadence: what is written and when. It does not change what is trained.
    log_every: int = 0
    """Steps that a train line of metrics.jsonl averages over; 0: all of an epoch."""
    image_every: int = 1
    """Epochs between pictures; 0: only at the end."""
    checkpoint_every: int = 5
    """Epochs between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep."""
    keep_best_checkpoints: int = 1
    """Best checkpoints by the validation images to keep besides, of those saved. None without --validation."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value out of range; types are for `from_json` and the command line."""
        positive = ("latent_size", "batch_size", "epochs", "keep_checkpoints", "samples", "kl_cycles")
        cadence = ("log_every", "image_every", "checkpoint_every", "keep_best_checkpoints")
        not_negative = (*cadence, "seed", "static_seed", "validation_seed")
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise InputError(f"{flag(name)} must not be negative, not {getattr(self, name)}")
        if self.seed >= 2**32:
            raise InputError(f"{flag('seed')} must be below 2^32, not {self.seed}")
        if not all(1 <= width <= MAX_WIDTH for width in self.hidden):
            raise InputError(f"{flag('hidden')} takes widths from 1 to {MAX_WIDTH}, not {list(self.hidden)}")
        if self.latent_size > MAX_WIDTH:
            raise InputError(f"{flag('latent_size')} must be at most {MAX_WIDTH}, not {self.latent_size}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"{flag('learning_rate')} must be positive and finite, not {self.learning_rate}")
        for name in (
            "kl_warmup_epochs",
            "free_bits",
            "mmd_weight",
            "warmup_epochs",
            "weight_decay",
            "clip_norm",
            "beta",
        ):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{flag(name)} must be finite and not negative, not {getattr(self, name)}")
        for name in ("likelihood_std", "adam_eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{flag(name)} must be positive and finite, not {getattr(self, name)}")
        for name in ("adam_b1", "adam_b2", "corruption"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} must be in [0, 1), not {getattr(self, name)}")
        if not (math.isfinite(self.validation) and self.validation >= 0):
            raise InputError(f"{flag('validation')} must be finite and not negative, not {self.validation}")
        if self.validation > 1 and self.validation % 1:
            raise InputError(f"{flag('validation')} must be below 1 or a whole number, not {self.validation}")
        self._check_what_goes_together()
        if not self.dataset:
            raise InputError("--dataset must not be empty")

    def _check_what_goes_together(self) -> None:
        def needs(what: str, of: str, ok: bool, why: str) -> None:
            if not ok:
                raise InputError(f"{of} needs {what}: {why}")

        named = f"--objective {self.objective}"
        if self.in_nats:
            why = "it has no finite value at a standard deviation of 0"
            needs("--head linear, logvar or exp", named, self.head != "relu", why)
        else:
            for name in ("likelihood", "samples", "beta", "kl_warmup_epochs", "free_bits", "kl_cycles"):
                default = getattr(Config, name)
                of = f"{flag(name)} {getattr(self, name)}"
                needs("an objective in nats", of, getattr(self, name) == default, f"{named} is the notes' own")
        if self.samples > 1:
            why = "the others take one latent an image"
            needs("--objective elbo, iwae or dreg", "--samples", self.objective in ("elbo", "iwae", "dreg"), why)
        if self.architecture == "two-layer":
            why = "the others look at one latent layer"
            needs("--objective elbo or iwae", "--architecture two-layer", self.objective in ("elbo", "iwae"), why)
            needs("--free-bits 0", "--architecture two-layer", self.free_bits == 0, "its KL is an estimate")
            needs("two --hidden widths", "--architecture two-layer", len(self.hidden) == 2, "one a layer")
        if self.objective in ("info", "beta-tc"):
            needs("--batch-size 2", named, self.batch_size > 1, "it compares samples")
        if self.free_bits:
            needs(
                "--objective elbo or info", "--free-bits", self.objective in ("elbo", "info"), "its KL is per dimension"
            )
        if self.likelihood_std != Config.likelihood_std:
            needs("--likelihood gaussian", "--likelihood-std", self.likelihood == "gaussian", "the others have no such")
        if self.architecture == "conv":
            needs("--hidden", "--architecture conv", len(self.hidden) > 0, "a layer's channels each")
        if self.warmup_epochs > self.epochs:
            raise InputError(f"--warmup-epochs {self.warmup_epochs:g} is more than --epochs {self.epochs}")
        if self.kl_warmup_epochs > self.epochs / self.kl_cycles:
            raise InputError(f"--kl-warmup-epochs {self.kl_warmup_epochs:g} is more than a cycle of the run has")
        if self.mmd_weight:
            needs("--objective info", "--mmd-weight", self.objective == "info", "the others have no such term")
        if self.corruption:
            needs("--objective mse", "--corruption", self.objective == "mse", "it is for autoencoders")
        if self.inputs != "grey" and self.likelihood == "logistic":
            raise InputError("--likelihood logistic needs --inputs grey: it is of 256 levels")
        if self.dequantize:
            of_levels = self.in_nats and self.likelihood.startswith("gaussian") and self.inputs == "grey"
            needs("a gaussian --likelihood and --inputs grey", "--dequantize", of_levels, "it is of 256 levels")
        if self.kl_cycles > 1:
            needs("--kl-warmup-epochs", "--kl-cycles", self.kl_warmup_epochs > 0, "what would be repeated")

    @property
    def in_nats(self) -> bool:
        """Whether figures are in nats per image, rather than in the notes' scale, per pixel."""
        return self.objective not in ("mse", "notes-elbo")

    def numbers(self) -> dict[str, float]:
        """The values of `SWEPT`."""
        return {name: getattr(self, name) for name in SWEPT}

    @property
    def is_vae(self) -> bool:
        """Whether the model is a `VAE` rather than an `AutoEncoder`."""
        return self.objective != "mse"


# What may differ between models that are trained in one program: numbers that change no shape and no branch.
SWEPT = ("learning_rate", "beta", "free_bits", "mmd_weight", "weight_decay")

# What may change when a run is resumed: how long it goes on, what it writes when, and where the
# images lie. The images themselves are compared by digest.
RESUMABLE_FIELDS = frozenset(
    {"epochs", "dataset", "data_dir", "log_every", "image_every"}
    | {"checkpoint_every", "keep_checkpoints", "keep_best_checkpoints"}
)

# The notes' two models to the letter but for the number of epochs, and what the field means by a VAE.
PRESETS: Mapping[str, Config] = types.MappingProxyType(
    {
        config.preset: config
        for config in (
            Config(preset="notes-ae", objective="mse", latent_size=20),
            Config(preset="notes-vae"),
            Config(
                preset="vae",
                validation=1 / 12,  # 5,000 of MNIST's 60,000
                objective="elbo",
                head="linear",
                hidden=(512, 256),
                latent_size=20,
                batch_size=128,
            ),
            # The one-layer model of Burda, Grosse and Salakhutdinov (arXiv 1509.00519), and their protocol
            # but for the length of training. They sum gradients over the batch, which is Adam's eps times 20.
            Config(
                preset="iwae",
                validation=1 / 12,
                objective="iwae",
                samples=5,
                head="exp",
                hidden=(200, 200),
                latent_size=50,
                activation="tanh",
                init="glorot",
                inputs="dynamic",
                batch_size=20,
                epochs=3280,
                schedule="stages",
                adam_b1=0.99,
                adam_eps=1e-4 / 20,
                image_every=50,
                checkpoint_every=50,
            ),
        )
    }
)


def preset(name: str) -> Config:
    """The preset called `name`. Raises `InputError` if there is none."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: unknown; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def to_json(config: Config) -> str:
    """`config` as JSON text, a field a line, that `from_json` takes back to an equal `Config`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_field(name: str, value: Any, origin: str) -> Any:
    """A field's value as it came from JSON; lists become tuples. Raises `InputError` where its type is wrong."""
    annotation = typing.get_type_hints(Config)[name]
    origin_type, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin_type is Literal:
        ok = value in args and isinstance(value, str)
    elif origin_type is tuple:
        ok = isinstance(value, list) and all(type(item) is args[0] for item in value)
        value = tuple(value) if ok else value
    elif annotation is float:
        ok = type(value) in (int, float)
        value = float(value) if ok else value
    else:
        ok = type(value) in (args or (annotation,))
    if not ok:
        raise InputError(f"{origin}: {name} must be {annotation_words(annotation)}, not {json.dumps(value)}")
    return value


def annotation_words(annotation: Any) -> str:
    """A field's type in words, for error messages."""
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return "a list of whole numbers"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(annotation, "a text or null")


def from_json(text: str, origin: str = "config.json") -> Config:
    """The `Config` that `to_json` wrote.

    Args:
      text: a JSON object. A field it lacks takes its preset's value, so that a file of an older
        version still loads.
      origin: the file's name, for messages.

    Raises:
      InputError: not a JSON object, an unknown field, a value of the wrong type or out of range.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{origin} must hold a JSON object")
    hints = typing.get_type_hints(Config)
    if unknown := sorted(values.keys() - hints.keys()):
        raise InputError(f"{origin} has a field this version does not know: {', '.join(unknown)}")
    checked = {name: from_field(name, value, origin) for name, value in values.items()}
    try:
        return dataclasses.replace(preset(checked.get("preset", Config.preset)), **checked)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def load(path: Path) -> Config:
    """The `Config` in a file. Raises `InputError` if it cannot be read."""
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def differences(old: Config, new: Config) -> list[str]:
    """The fields, other than `RESUMABLE_FIELDS`, in which two configurations differ: "field: old -> new".

    The number of epochs counts too where the run depends on its length from the start.
    """
    by_length = old.schedule != "constant" or old.kl_cycles > 1
    return [
        f"{field.name}: {getattr(old, field.name)} -> {getattr(new, field.name)}"
        for field in dataclasses.fields(Config)
        if (field.name not in RESUMABLE_FIELDS or (field.name == "epochs" and by_length))
        and getattr(old, field.name) != getattr(new, field.name)
    ]
