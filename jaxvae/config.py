"""The configuration of a run: one flat dataclass, put together from what its components declare.

Every field is a flag of ``python -m jaxvae.train`` (``batch_size`` is ``--batch-size``) and a key of a run directory's
``config.json``. A likelihood, an objective and so on declare their own options: see `jaxvae.options`.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from typing_extensions import Doc

from jaxvae.components import SLOTS, Parts, kind_of, parts_of
from jaxvae.errors import InputError
from jaxvae.fields import GROUPS, HELD_OUT, Fields
from jaxvae.models.layers import Precision
from jaxvae.objectives.build import OBJECTIVES
from jaxvae.options import (
    Option,
    flag,
    one_of,
    options,
    words,
)
from jaxvae.own import is_own
from jaxvae.presets import OVERRIDES, overrides

# Fields that a user-defined model does not use, because it is complete.
_NOT_WITH_MODEL = ("architecture", "prior", "latent_size", "head", "condition", "compute_dtype")

_WITHOUT_MODEL = "no --model"

# Fields that may change when a run is resumed: its length, what it writes and when, the kernels of its steps, and the
# paths of the images. The images themselves are compared by digest.
RESUMABLE_FIELDS = frozenset(
    {"epochs", "dataset", "data_dir", "skip_bad", "stream", "log_every", "image_every", "track"}
    | {"checkpoint_every", "keep_checkpoints", "keep_best_checkpoints", "step_kernels"}
)


# Flags of the command lines that train. No option may have such a name.
_COMMAND_FLAGS = frozenset(
    {"config", "run_dir", "resume", "devices", "coordinator", "num_processes", "process_id", "no_compilation_cache"}
    | {"seeds", "members_per_program", "extract", "to", "help", "version", "rounds", "skip_first_step", "json"}
    | {"weights", "image_shape"}
)


class _Made(type):
    """A `Config` that names user-defined components gets a class that has their options as well."""

    def __call__(cls, preset: str = Fields.preset, **values: Any) -> Any:
        match values.get("image_size"):
            case (height, width):  # One form for each size, so that configurations compare.
                values["image_size"] = (height,) if height == width else (height, width)
        kind: Any = config_type({**overrides(preset), **values})
        # If a component is replaced by one of another kind, its options are dropped.
        for gone in cls.__dict__.get("__dataclass_fields__", {}).keys() - kind.__dataclass_fields__.keys():
            if gone in values and values.pop(gone) != cls.__dataclass_fields__[gone].default:  # type: ignore[attr-defined]
                raise InputError(f"{flag(gone)} has no effect: no chosen component reads it")
        return type.__call__(kind, preset, **values)


class _Config(metaclass=_Made):
    """What is trained, on what, and how. Fields that are not given take the preset's value.

    Raises:
      InputError: a value is out of range, conflicts with another, or has no effect.
    """

    def __post_init__(self) -> None:
        for declared in options_of(type(self)):
            declared.check(getattr(self, declared.name))
        if not HELD_OUT.holds(self.validation):  # type: ignore[attr-defined]
            raise InputError(f"--validation must be {HELD_OUT.words}, not {self.validation}")  # type: ignore[attr-defined]
        for part in self.parts[:-1]:
            part.check(self)
        self._check_layers()
        if self.reads_labels and not (self.is_vae and not self.parts.network.hierarchical):
            raise InputError(f"{self.labels_flag} needs a VAE with one layer of latents")
        if self.parts.model is not None and self.parts.objective.uses and not hasattr(self.parts.model, "draw"):
            raise InputError(
                f"--model {self.model} has no method draw, which --objective {self.objective} calls: "  # type: ignore[attr-defined]
                "it needs a loss of your own, --objective module:function (jaxvae.fit: objective=function)"
            )
        for name in unread(self):
            value, needed = words(getattr(self, name)), unmet(self, name)
            why = " with --model, which has its own" if needed == _WITHOUT_MODEL else f": it needs {needed}"
            raise InputError(f"{flag(name)} {value} has no effect{why}")

    def _check_layers(self) -> None:
        if self.parts.model is None and self.parts.network.hierarchical and not self.parts.objective.hierarchical:
            able = [key for key, kind in OBJECTIVES.items() if kind.hierarchical]
            named = f"--architecture {self.architecture}"  # type: ignore[attr-defined]
            raise InputError(f"{named} needs --objective {one_of(able)}: the others train one layer of latents")

    @functools.cached_property
    def parts(self) -> Parts:
        """The components, with their options."""
        return parts_of(values_of(self))

    def traced(self) -> dict[str, float]:
        """The traced hyperparameters: arguments of the compiled program, so that one program can sweep them."""
        return {o.name: getattr(part, o.name) for part in self.parts[:-1] for o in options(type(part)) if o.traced}

    @property
    def reads_labels(self) -> bool:
        """Whether the model needs the label of each image."""
        return _reads_labels(self)

    @property
    def labels_flag(self) -> str:
        """The flag by which it `reads_labels`."""
        return "--condition label" if self.condition == "label" else f"--prior {self.prior}"  # type: ignore[attr-defined]

    @property
    def is_vae(self) -> bool:
        """Whether the model has a distribution of latents."""
        return self.parts.objective.latent_model


def values_of(config: Any) -> dict[str, Any]:
    """The values of all fields by name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _declared(own: Mapping[str, tuple[str, ...]]) -> Iterator[Option]:
    """The options of `Config`, in order: those of components follow the field that names them."""
    seen: dict[str, Option] = {}
    for declared in options(Fields):
        if declared.name in SLOTS:
            names = (*SLOTS[declared.name], *own.get(declared.name, ()))
            declared = declared._replace(annotation=Literal[names])
        found = [declared]
        if declared.name in SLOTS:
            for name in names:
                kind = kind_of(declared.name, name)
                found += options(kind) if isinstance(kind, type) else ()
        for each in found:
            if each.name in _COMMAND_FLAGS:
                raise InputError(f"{flag(each.name)} is a flag of the command lines: rename the option")
            if each.name not in seen:
                seen[each.name] = each
                yield each
            elif each.annotation != seen[each.name].annotation or each.default != seen[each.name].default:
                raise InputError(f"{flag(each.name)} of a component is declared twice, with another type or default")


def own_widths(architecture: str | None) -> tuple[int, ...] | None:
    """A network's own default of `hidden`; None: the preset's."""
    if architecture is None or not (architecture in SLOTS["architecture"] or is_own(architecture)):
        return None  # It is refused elsewhere.
    kind: Any = kind_of("architecture", architecture)
    if not isinstance(kind, type) or all(o.name != "hidden" for o in options(kind)):
        return None
    widths: tuple[int, ...] | None = getattr(kind, "widths", None)
    return widths


def _from_preset(kind: Any) -> Any:
    """Let fields that are not given take the values of the preset."""
    init = kind.__init__

    @functools.wraps(init)
    def filled(self: Any, preset: str = Fields.preset, **given: Any) -> None:
        chosen = overrides(preset)
        values = {**chosen, **given}
        # The preset's widths are meant for its own network.
        meant = "hidden" in chosen and values.get("architecture") == chosen.get("architecture")
        if "hidden" not in given and not meant and (widths := own_widths(values.get("architecture"))):
            values["hidden"] = widths
        init(self, preset, **values)

    kind.__init__ = filled
    return kind


@functools.cache
def _config_type(own: tuple[tuple[str, str, Any], ...]) -> type:
    by_slot = {slot: tuple(name for s, name, _ in own if s == slot) for slot, _, _ in own}
    fields, group = [], ""
    for o in _declared(by_slot):
        group = GROUPS.get(o.name, group)
        metadata = {"must": o.must, "traced": o.traced, "group": group}
        fields.append(
            (o.name, Annotated[o.annotation, Doc(o.help)], dataclasses.field(default=o.default, metadata=metadata))
        )
    base = _config_type(()) if own else _Config
    kind = dataclasses.make_dataclass("Config", fields, bases=(base,), frozen=True)
    kind.__module__, kind.__doc__ = __name__, _Config.__doc__
    return _from_preset(kind)  # type: ignore[no-any-return]


def config_type(values: Mapping[str, Any]) -> type:
    """The class of configurations with these values: `Config`, or one with more options (see `_Made`)."""
    own = []
    for slot in SLOTS:
        name = values.get(slot)
        if isinstance(name, str) and is_own(name):
            kind = kind_of(slot, name)
            # The options as well, because the object that was given in Python under a name may change.
            own.append((slot, name, options(kind) if isinstance(kind, type) else ()))
    return _config_type(tuple(own))


def options_of(kind: Any) -> tuple[Option, ...]:
    """The options of a class of configurations, in order."""
    return _options_of(kind)


@functools.cache
def _options_of(kind: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(
        Option(f.name, hints[f.name], f.default, "", f.metadata["must"], f.metadata["traced"])
        for f in dataclasses.fields(kind)
    )


if TYPE_CHECKING:

    class Config(_Config):
        """What is trained, on what, and how."""

        __dataclass_fields__: ClassVar[dict[str, Any]]
        preset: str = "notes-vae"
        matmul_precision: Precision = "highest"

        def __init__(self, preset: str = ..., **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    Config = _config_type(())


def traced_of(kind: Any) -> tuple[str, ...]:
    """The options of a class of configurations that may differ between models trained in one program."""
    return tuple(o.name for o in options_of(kind) if o.traced)


TRACED = traced_of(Config)


def preset(name: str) -> Config:
    """The preset called `name`. Raises `InputError` if there is none."""
    return Config(preset=name)


def unread(config: Any) -> list[str]:
    """The fields of `config` that have no effect although they differ from their preset's value."""
    given = overrides(config.preset)
    return [
        o.name
        for o in options_of(config_type({slot: getattr(config, slot) for slot in SLOTS}))
        if getattr(config, o.name) != given.get(o.name, o.default) and unmet(config, o.name)
    ]


def _reads_labels(config: Any) -> bool:
    """See `Config.reads_labels`. The values of `config` may conflict with each other."""
    if config.parts.model is not None:
        return False  # It reads what it likes.
    prior: bool = "prior" in config.parts.objective.uses and config.parts.prior.reads_labels
    return prior or config.condition == "label"


def unmet(config: Any, name: str) -> str | None:
    """The flags with which the field `name` would have an effect; None: it has one."""
    parts = config.parts
    if config.model is not None and name in _NOT_WITH_MODEL:
        return _WITHOUT_MODEL
    if name in ("validation_seed", "keep_best_checkpoints"):
        return None if config.validation else "--validation"
    if name == "classes":  # A component of the user's own may read it, too.
        read = _reads_labels(config) or any(name in {o.name for o in options(type(part))} for part in parts[:-1])
        return None if read else "--condition label or --prior label"
    if name in parts.objective.ignores:
        able = (key for key, kind in OBJECTIVES.items() if name not in kind.ignores)
        return f"--objective {one_of(able)}"
    if parts.model is None and name in parts.network.ignores:
        return "another --architecture"
    if name == "resize":
        return None if config.image_size else "--image-size"
    if name in ("likelihood", "prior"):
        if name in parts.objective.uses:
            return None
        return f"--objective {one_of(key for key, kind in OBJECTIVES.items() if name in kind.uses)}"
    for slot, chosen in zip(SLOTS, parts, strict=False):
        own = {o.name for o in options(type(chosen))}
        owners = [key for key, kind in SLOTS[slot].items() if name in {o.name for o in options(kind)}]
        if name in own or owners:
            if missing := unmet(config, slot):
                return missing
            if name not in own:
                return f"{flag(slot)} {one_of(owners)}"
            needed: str | None = chosen.idle(config).get(name)
            return needed
    return None


def describe(config: Config, without: Collection[str] = ()) -> str:
    """What is trained, in words: "vae", or "notes-ae, changed: objective elbo, head linear".

    The seed is left out, and so are the fields that may change on resume: they do not change what is trained.

    Args:
      config: the configuration of the run.
      without: other fields to leave out.
    """
    base = PRESETS[config.preset]
    names = [name for name in changed(base, config) if name not in ("seed", *without)]
    if config.step_kernels != base.step_kernels:  # It changes the speed.
        names.append("step_kernels")
    names.sort(key=lambda name: name != "objective")  # The objective says most.
    changes = ", ".join(f"{name} {words(getattr(config, name))}" for name in names)
    return f"{config.preset}, changed: {changes}" if changes else config.preset


def differences(old: Config, new: Config) -> list[str]:
    """The differences of two configurations that may not change on resume, each as "field: old -> new"."""
    return [f"{name}: {getattr(old, name, None)} -> {getattr(new, name, None)}" for name in changed(old, new)]


def changed(old: Config, new: Config) -> list[str]:
    """The fields, other than `RESUMABLE_FIELDS`, in which two configurations differ.

    The number of epochs counts as well if training depends on the length of the run from the start.
    """
    by_length = any(part.by_length for config in (old, new) for part in config.parts[:-1])
    olds, news = values_of(old), values_of(new)
    defaults = {o.name: o.default for config in (old, new) for o in options_of(type(config))}
    return [
        name
        for name, default in defaults.items()
        if (name not in RESUMABLE_FIELDS or (name == "epochs" and by_length))
        and olds.get(name, default) != news.get(name, default)
    ]


PRESETS: Mapping[str, Config] = types.MappingProxyType({name: Config(preset=name) for name in OVERRIDES})
