"""The configuration of a run: one frozen dataclass, its presets, and its JSON form.

Every field is a flag of ``python -m jaxvae.train`` (``batch_size`` is ``--batch-size``) and a key
of a run directory's ``config.json``.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxvae.errors import InputError, suggestion

Head = Literal["relu", "linear", "logvar", "exp"]
Likelihood = Literal["bernoulli", "gaussian", "gaussian-global", "gaussian-pixel", "logistic"]
Precision = Literal["default", "high", "highest"]
Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]
MAX_WIDTH = 2**16  # Of a layer; a wider one is a slip of the finger, and would hang while it is allocated.


def flag(field: str) -> str:
    """The command-line flag of a field: "batch_size" is "--batch-size"."""
    return "--" + field.replace("_", "-")


def _from_preset(kind: Any) -> Any:
    """Let the fields of `Config` that are not given take the values of the preset that is."""
    init = kind.__init__

    @functools.wraps(init)
    def filled(self: Any, preset: str = kind.preset, **given: Any) -> None:
        init(self, preset, **{**_overrides(preset), **given})

    kind.__init__ = filled
    return kind


@_from_preset
@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and how. What is not given takes the preset's value.

    Raises:
      InputError: a value is out of range, does not go with another, or has no effect (see `READ_WHEN`).
    """

    # The values here are those of "notes-vae"; `OVERRIDES` has those in which the other presets differ. A docstring
    # below a field is its help text. The command line needs it on one line.
    preset: str = "notes-vae"
    """notes-ae, notes-vae: the notes' models to the letter; vae: a usual VAE; iwae: after Burda et al."""

    # Data.
    dataset: str = "auto"
    """auto (mnist, or digits if offline), mnist, fashion_mnist, kmnist, digits, a .npy/.npz file, image folders."""
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
    """Activation function between layers."""
    init: Literal["pytorch", "glorot"] = "pytorch"
    """Initial weights of dense layers: as PyTorch's; or Glorot's, and the pixels' bias at the logit of their mean."""
    objective: Literal["mse", "notes-elbo", "elbo", "iwae", "dreg", "info", "beta-tc"] = "notes-elbo"
    """mse (autoencoder), notes-elbo (VAE): the notes', per pixel; the others in nats/image."""
    likelihood: Likelihood = "bernoulli"
    """Distribution of a pixel, for the objectives in nats/image."""
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
    """Of float32 products in training. highest: float32; high, default: TF32 (GPU); 3 passes, 1 of bfloat16 (TPU)."""

    # Objective.
    samples: int = 1
    """Latents drawn an image and step: the k of iwae and dreg."""
    beta: float = 1.0
    """Weight of the KL term (beta-tc: of its total correlation alone)."""
    kl_warmup_epochs: float = 0.0
    """Epochs over which that weight grows from 0 to --beta (beta-tc: the rest of the KL term weighs 1 throughout)."""
    kl_cycles: int = 1
    """Warm-ups of the KL term's weight, evenly over the run: cyclical annealing."""
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
    """Epochs over which the learning rate grows from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW): a step shrinks weights by this times the learning rate."""
    clip_norm: float = 0.0
    """Scale gradients of a greater norm down to this one; 0: never."""
    adam_b1: float = 0.9
    """Adam's decay of the first moment."""
    adam_b2: float = 0.999
    """Adam's decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    batch_size: int = 32
    """Images a step. The last, incomplete batch of an epoch is dropped."""
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
        self._check_what_is_read()
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
        if not self.is_vae:
            needs("--head relu or linear", named, self.head in ("relu", "linear"), "a code has no deviation")
        if self.objective in ("info", "beta-tc"):
            needs("--samples 1", named, self.samples == 1, "it takes one latent an image")
        if self.objective == "info":
            needs("--mmd-weight above 0", named, self.mmd_weight > 0, "without it, it is elbo")
        if self.architecture == "two-layer":
            why = "the others look at one latent layer"
            needs("--objective elbo or iwae", "--architecture two-layer", self.objective in ("elbo", "iwae"), why)
            needs("two --hidden widths", "--architecture two-layer", len(self.hidden) == 2, "one a layer")
        if self.objective in ("info", "beta-tc"):
            needs("--batch-size 2", named, self.batch_size > 1, "it compares samples")
        if self.architecture == "conv":
            needs("--hidden", "--architecture conv", len(self.hidden) > 0, "a layer's channels each")
        if self.warmup_epochs > self.epochs:
            raise InputError(f"--warmup-epochs {self.warmup_epochs:g} is more than --epochs {self.epochs}")
        if self.kl_warmup_epochs > self.epochs / self.kl_cycles:
            raise InputError(f"--kl-warmup-epochs {self.kl_warmup_epochs:g} is more than a cycle of the run has")
        if self.inputs != "grey" and self.in_nats and self.likelihood == "logistic":
            raise InputError("--likelihood logistic needs --inputs grey: it is of 256 levels")
        if self.dequantize:
            of_levels = self.in_nats and self.likelihood.startswith("gaussian") and self.inputs == "grey"
            needs("a gaussian --likelihood and --inputs grey", "--dequantize", of_levels, "it is of 256 levels")

    def _check_what_is_read(self) -> None:
        for name in _unread(self):
            value = getattr(self, name)
            raise InputError(f"{flag(name)} {words(value)} has no effect: it needs {unmet(self, name)}")

    @property
    def in_nats(self) -> bool:
        """Whether figures are in nats per image, rather than in the notes' scale, per pixel."""
        return self.objective in NATS

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

# The objectives in nats, all of which have a likelihood and a KL term.
NATS = ("elbo", "iwae", "dreg", "info", "beta-tc")
SET: tuple[Any, ...] = ()  # Any value but 0 or nothing.

# When a field, or one choice for a field, is read: when each of the fields named has one of the values given, and is
# read itself. All others are always read. What is not read must be the preset's, or `Config` refuses it.
READ_WHEN: Mapping[str | tuple[str, Any], Mapping[str, tuple[Any, ...]]] = types.MappingProxyType(
    {
        "validation_seed": {"validation": SET},
        "activation": {"hidden": SET},
        ("init", "pytorch"): {"architecture": ("mlp", "two-layer")},
        "likelihood": {"objective": NATS},
        "likelihood_std": {"likelihood": ("gaussian",)},
        "static_seed": {"inputs": ("static",)},
        "corruption": {"objective": ("mse",)},
        "samples": {"objective": NATS},
        "beta": {"objective": NATS},
        "kl_warmup_epochs": {"objective": NATS},
        "kl_cycles": {"kl_warmup_epochs": SET},
        "free_bits": {"objective": ("elbo", "info"), "architecture": ("mlp", "conv")},
        "mmd_weight": {"objective": ("info",)},
        "keep_best_checkpoints": {"validation": SET},
    }
)


def unmet(config: Any, name: str) -> str | None:
    """What would have to be chosen for the value of the field `name` to be read, as a flag; None: it is read."""
    for key in (name, (name, getattr(config, name))):
        for by, values in READ_WHEN.get(key, {}).items():
            value = getattr(config, by)
            if not (value in values if values else value):
                return (
                    f"{flag(by)} {', '.join(values[:-1])} or {values[-1]}"
                    if values[1:]
                    else " ".join([flag(by), *values])
                )
            if missing := unmet(config, by):
                return missing
    return None


def _unread(config: Any) -> list[str]:
    """The fields of `config` that are not read, and not their preset's value."""
    overrides = _overrides(config.preset)
    return [
        field.name
        for field in dataclasses.fields(Config)
        if getattr(config, field.name) != overrides.get(field.name, field.default) and unmet(config, field.name)
    ]


# What each preset has other than the values beside the fields of `Config`. "notes-ae" and "notes-vae" are the notes'
# two models to the letter but for the number of epochs; "vae" is what the field means by a VAE.
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


def _overrides(preset: str) -> Mapping[str, Any]:
    """The preset's entry in `OVERRIDES`. Raises `InputError` if there is none."""
    if preset not in OVERRIDES:
        near = suggestion(preset, OVERRIDES)
        raise InputError(f"--preset {preset}: unknown; choose from {', '.join(OVERRIDES)}{near}")
    return OVERRIDES[preset]


PRESETS: Mapping[str, Config] = types.MappingProxyType({name: Config(preset=name) for name in OVERRIDES})


def preset(name: str) -> Config:
    """The preset called `name`. Raises `InputError` if there is none."""
    return Config(preset=name)


def describe(config: Config, without: Collection[str] = ()) -> str:
    """What is trained, in words: "vae", or "notes-ae, changed: objective elbo, head linear".

    Left out are the seed, and what does not change what is trained: the fields that may change on resume.

    Args:
      config: of the run.
      without: other fields to leave out.
    """
    base = PRESETS[config.preset]
    names = [name for name in _changed(base, config) if name not in ("seed", *without)]
    names.sort(key=lambda name: name != "objective")  # It says most.
    changes = ", ".join(f"{name} {words(getattr(config, name))}" for name in names)
    return f"{config.preset}, changed: {changes}" if changes else config.preset


def words(value: Any) -> str:
    """A field's value as people write it: "512,256" for a tuple, "0.001" for 1e-3."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- config.json --------------------------------------------------------------------------------------------

FORMAT = 2  # Of config.json. Files before there were formats are of format 1.

# What a file of an older format means by a field that it lacks, where that is not its preset's value today: by the
# last format that meant it, then by preset (None: any). Whoever adds a field, or changes a value of a preset, raises
# `FORMAT` and writes down here what was before.
FORMERLY: Mapping[int, Mapping[str | None, Mapping[str, Any]]] = types.MappingProxyType(
    {
        1: {
            None: {"validation": 0.0, "validation_seed": 0, "dequantize": False, "matmul_precision": "default"},
        },
    }
)

# Fields that there are no more, by the last format that had them: the values without which a file means the same.
DROPPED: Mapping[int, Mapping[str, Callable[[Any], bool]]] = types.MappingProxyType(
    {
        # How calls were cut. It changed the number of steps an epoch where they did not divide into equal calls: that
        # number is in the record of every checkpoint, and a run that had another is not resumed.
        1: {"steps_per_call": lambda value: type(value) is int and value >= 1},
    }
)


def to_json(config: Config) -> str:
    """`config` as JSON text, a field a line, that `from_json` takes back to an equal `Config`."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(config)}, indent=2) + "\n"


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
        ok = type(value) is float or (type(value) is int and abs(value) < 2**1000)  # What a float holds.
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
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(annotation, "a text or null")


def from_json(text: str, origin: str = "config.json") -> Config:
    """The `Config` that `to_json` wrote, now or in an older version.

    Args:
      text: a JSON object. Of an older format, a field that it lacks takes the value that the version which wrote it
        had (`FORMERLY`), one that there is no more is left out (`DROPPED`), and so is one that nothing read.
      origin: the file's name, for messages.

    Raises:
      InputError: not a JSON object, a newer format, an unknown field, a value of the wrong type or out of range.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{origin} must hold a JSON object")
    written = values.pop("format", 1)
    if type(written) is not int or written < 1:
        raise InputError(f"{origin}: format must be a whole number of at least 1, not {json.dumps(written)}")
    if written > FORMAT:
        raise InputError(f"{origin} is of format {written}; this version of jaxvae reads formats up to {FORMAT}")
    hints = typing.get_type_hints(Config)
    for name in values.keys() - hints.keys():
        harmless = [fields[name] for last, fields in DROPPED.items() if written <= last and name in fields]
        if not harmless:
            raise InputError(f"{origin} has a field this version does not know: {name}{suggestion(name, hints)}")
        if not harmless[0](values[name]):
            raise InputError(f"{origin}: {name} must not be {json.dumps(values[name])}")
    given = {name: from_field(name, value, origin) for name, value in values.items() if name in hints}
    try:
        return Config(**(given if written == FORMAT else _from_older(given, written)))
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _from_older(given: Mapping[str, Any], written: int) -> dict[str, Any]:
    """The values of every field that a file of the older format `written` means. Raises `InputError`."""
    preset = given.get("preset", Config.preset)
    values = {field.name: field.default for field in dataclasses.fields(Config)} | dict(_overrides(preset))
    for last in sorted(FORMERLY, reverse=True):
        if written <= last:
            former = {**FORMERLY[last].get(None, {}), **FORMERLY[last].get(preset, {})}
            values |= {name: value for name, value in former.items() if name in values}
    values |= given
    if written == 1:
        # Taken for what they are called now: an autoencoder took "exp" for "linear", and info without a weight is elbo.
        if values["objective"] == "mse" and values["head"] == "exp":
            values["head"] = "linear"
        if values["objective"] == "info" and not values["mmd_weight"]:
            values["objective"] = "elbo"
    for name in _unread(types.SimpleNamespace(**values)):
        del values[name]
    return values


def load(path: Path) -> Config:
    """The `Config` in a file. Raises `InputError` if it cannot be read."""
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def differences(old: Config, new: Config) -> list[str]:
    """In what two configurations differ that may not change on resume: "field: old -> new" each."""
    return [f"{name}: {getattr(old, name)} -> {getattr(new, name)}" for name in _changed(old, new)]


def _changed(old: Config, new: Config) -> list[str]:
    """The fields, other than `RESUMABLE_FIELDS`, in which two configurations differ.

    The number of epochs counts too where what is trained depends on its length from the start.
    """
    by_length = any(config.schedule != "constant" or config.kl_cycles > 1 for config in (old, new))
    return [
        field.name
        for field in dataclasses.fields(Config)
        if (field.name not in RESUMABLE_FIELDS or (field.name == "epochs" and by_length))
        and getattr(old, field.name) != getattr(new, field.name)
    ]
