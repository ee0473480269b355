"""The flags of a configuration, which several commands share: in groups, with the preset's values as defaults."""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from typing_extensions import Doc

from jaxvae import cli
from jaxvae import config as configs
from jaxvae.components import SLOTS
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.fields import GROUPS
from jaxvae.options import flag, options
from jaxvae.own import is_own
from jaxvae.presets import overrides


class Command(Protocol):
    """The dataclass of a command that takes a configuration."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def config(self) -> Config: ...


T = TypeVar("T", bound=Command)

# The options that most people need. The help begins with them and with the command's own.
FIRST = frozenset(
    {"preset", "dataset", "architecture", "hidden", "latent_size", "likelihood"}
    | {"learning_rate", "batch_size", "epochs"}
)
# Flags of the commands about devices, processes and compilation.
DEVICE = ("devices", "coordinator", "num_processes", "process_id", "no_compilation_cache")


def peek(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that decide which other flags there are, and their defaults. Raises `InputError`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    for slot in SLOTS:
        parser.add_argument(flag(slot))
    try:
        known, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    return known


def defaults(base: Config, known: argparse.Namespace) -> Config:
    """`base`, with what follows from the components in `known`: a network's own widths, and options of the user's own.

    These are the defaults of the flags.
    """
    if known.architecture != base.architecture and (widths := configs.own_widths(known.architecture)):
        base = dataclasses.replace(base, hidden=widths)
    own = {slot: name for slot in SLOTS if is_own(name := getattr(known, slot))}
    if not own:
        return base
    kind = configs.config_type({**configs.values_of(base), **own})
    extended: Any = object.__new__(kind)
    # Not checked: the flags that complete it are parsed later.
    values = {o.name: getattr(base, o.name, o.default) for o in configs.options_of(kind)}
    extended.__dict__.update(values)
    found: Config = extended
    return found


def parse(default: T, argv: Sequence[str], *, prog: str, description: str) -> T:
    """The arguments of a command: `default`, with what `argv` changes.

    Each option of the class of `default.config` is a flag, and so is each other field. See `cli.parse`, which raises.
    """
    kind = type(default.config)
    own = [field.name for field in dataclasses.fields(default) if field.name != "config"]
    values = configs.values_of(default.config) | {name: getattr(default, name) for name in own}
    shape = grouped(type(default), kind)
    # A flag that is set already, as on resume, is no flag to tyro, but may be repeated.
    done = {flag(name) for name, value in values.items() if value is True}
    rest = [word for word in argv if word.replace("_", "-") not in done]
    given = _flat(cli.parse(shape, rest, prog=prog, description=description, default=_filled(shape, values)))
    config = kind(**{o.name: given[o.name] for o in configs.options_of(kind)})
    return dataclasses.replace(default, config=config, **{name: given[name] for name in own})


def grouped(command: type, config: type) -> Any:
    """A dataclass with the fields of `command` and the options of `config`, in the groups of the help."""
    boxes: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in (*GROUPS.values(), "device")}}
    hints = typing.get_type_hints(command, include_extras=True)
    for o in options(command):
        if o.name != "config":
            boxes["device" if o.name in DEVICE else ""][o.name] = Annotated[hints[o.name], Doc(o.help)]
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        boxes["" if field.name in FIRST else field.metadata["group"]][field.name] = hints[field.name]
    first = boxes.pop("")
    groups = {name: dataclasses.make_dataclass(name, fields.items()) for name, fields in boxes.items() if fields}
    return dataclasses.make_dataclass(command.__name__, [*first.items(), *groups.items()])


def _filled(kind: Any, values: Mapping[str, Any]) -> Any:
    """An instance of a dataclass that `grouped` made."""
    fields = dataclasses.fields(kind)
    groups = {f.name: _filled(f.type, values) for f in fields if dataclasses.is_dataclass(f.type)}
    return kind(**{f.name: groups[f.name] if f.name in groups else values[f.name] for f in fields})


def _flat(instance: Any) -> dict[str, Any]:
    """The values in an instance that `_filled` made, by name."""
    found = dict[str, Any]()
    for name, value in vars(instance).items():
        found |= _flat(value) if dataclasses.is_dataclass(value) else {name: value}
    return found


def flags_of(config: Config) -> list[str]:
    """The flags that make `config`."""
    given, flags = dict(overrides(config.preset)), ["--preset", config.preset]
    if widths := configs.own_widths(config.architecture):
        given["hidden"] = widths
    for o in configs.options_of(type(config)):
        value = getattr(config, o.name)
        if o.name != "preset" and value != given.get(o.name, o.default):
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            flags += [flag(o.name), *map(str, values)]
    return flags
