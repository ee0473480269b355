"""``config.json``: a `Config` as JSON, and the meaning of files of older formats."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxvae.components import parts_of
from jaxvae.config import Config, config_type, unread, values_of
from jaxvae.errors import InputError, suggestion
from jaxvae.own import is_own
from jaxvae.presets import overrides

FORMAT = 9  # Of config.json. Files from before formats existed have format 1.

# The former values of fields that an older file may lack, where they are not the preset's value today. They are listed
# by the last format that had them, then by preset (None: any). Whoever adds a field, or changes a value of a preset,
# must raise `FORMAT` and add the former value here.
FORMERLY: Mapping[int, Mapping[str | None, Mapping[str, Any]]] = types.MappingProxyType(
    {
        1: {
            None: {"validation": 0.0, "validation_seed": 0, "dequantize": False, "matmul_precision": "default"},
        },
        2: {None: {"model": None, "prior": "normal", "optimizer": "adam", "ema": 0.0}},
        3: {
            None: {"blocks": 2, "latents": "dense"}
            | {"image_size": (), "resize": "crop", "channels": None, "skip_bad": False}
        },
        4: {None: {"step_kernels": "plain", "flip": False}},
        5: {None: {"condition": "none", "classes": 0}},
        6: {None: {"stream": "auto"}},
        7: {
            None: {"code_prior_layers": 2, "code_prior_width": 64, "codes": 512, "code_size": 64}
            | {"codebook": "average", "commitment": 0.25, "levels": (8, 8, 8), "maps": 4, "skip_norm": 0.0}
            | {"mixture_components": 50, "pseudo_inputs": 500, "flow_layers": 6, "flow_width": 64}
            | {"capacity": 25.0, "capacity_weight": 10.0, "capacity_epochs": 0.0, "code_l2": 0.01, "decoder_l2": 1e-4}
            | {"track": "none"}
        },
        8: {None: {"discriminator_width": 1000, "discriminator_layers": 6}},
    }
)

# Removed fields, by the last format that had them, each with a test of its value: if it holds, the field is ignored.
DROPPED: Mapping[int, Mapping[str, Callable[[Any], bool]]] = types.MappingProxyType(
    {
        # Steps per compiled call. It changed the steps per epoch if they did not divide into equal calls. Checkpoints
        # record the steps per epoch, and a run with another number is not resumed.
        1: {"steps_per_call": lambda value: type(value) is int and value >= 1},
    }
)


def to_json(config: Config) -> str:
    """`config` as JSON text, one field per line. `from_json` turns it into an equal `Config` again."""
    return json.dumps({"format": FORMAT, **values_of(config)}, indent=2) + "\n"


def from_field(name: str, value: Any, origin: str, kind: type = Config) -> Any:
    """A field's value from its JSON value; lists become tuples. Raises `InputError` if its type is wrong."""
    annotation = typing.get_type_hints(kind)[name]
    origin_type, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin_type is Literal:
        ok = value in args and isinstance(value, str)
    elif origin_type is tuple:
        ok = isinstance(value, list) and all(type(item) is args[0] for item in value)
        value = tuple(value) if ok else value
    elif annotation is float:
        ok = type(value) is float or (type(value) is int and abs(value) < 2**1000)  # In a float's range.
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
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    kinds = [kind for kind in typing.get_args(annotation) if kind in names]
    return " or ".join([*(names[kind] for kind in kinds), "null"]) if kinds else "another value"


def from_json(text: str, origin: str = "config.json", to_use: bool = False) -> Config:
    """The `Config` that `to_json` wrote, in this version or an older one.

    Args:
      text: a JSON object. In an older format, a missing field takes its value of that time (`FORMERLY`). Removed fields
        (`DROPPED`) are ignored, and so are fields without an effect.
      origin: the file's name, for messages.
      to_use: see `load`.

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
    if to_use and isinstance(values.get("optimizer"), str) and is_own(values["optimizer"]):
        del values["optimizer"]
    kind = config_type({name: value for name, value in values.items() if isinstance(value, str)})
    hints = typing.get_type_hints(kind)
    for name in values.keys() - hints.keys():
        harmless = [fields[name] for last, fields in DROPPED.items() if written <= last and name in fields]
        if not harmless:
            raise InputError(f"{origin} has a field this version does not know: {name}{suggestion(name, hints)}")
        if not harmless[0](values[name]):
            raise InputError(f"{origin}: {name} must not be {json.dumps(values[name])}")
    given = {name: from_field(name, value, origin, kind) for name, value in values.items() if name in hints}
    try:
        return Config(**(given if written == FORMAT else _from_older(given, written)))
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _from_older(given: Mapping[str, Any], written: int) -> dict[str, Any]:
    """The values of all fields for a file of the older format `written`. Raises `InputError`."""
    preset = given.get("preset", Config.preset)
    values = {field.name: field.default for field in dataclasses.fields(config_type(given))} | dict(overrides(preset))
    for last in sorted(FORMERLY, reverse=True):
        if written <= last:
            former = {**FORMERLY[last].get(None, {}), **FORMERLY[last].get(preset, {})}
            values |= {name: value for name, value in former.items() if name in values}
    values |= given
    if written == 1:
        # Translated to today's names: an autoencoder took "exp" for "linear", and info without a weight is elbo.
        if values["objective"] == "mse" and values["head"] == "exp":
            values["head"] = "linear"
        if values["objective"] == "info" and not values["mmd_weight"]:
            values["objective"] = "elbo"
    for name in unread(_Unchecked(values)):
        del values[name]
    return values


class _Unchecked(types.SimpleNamespace):
    """The values of all fields and the components that they describe. They may conflict with each other."""

    def __init__(self, values: Mapping[str, Any]):
        super().__init__(**values, parts=parts_of(values))


def load(path: Path, to_use: bool = False) -> Config:
    """The `Config` in a file. Raises `InputError` if it cannot be read.

    Args:
      path: the file.
      to_use: whether the model is only used, not trained further. Then a user-defined optimiser is not imported.
    """
    return from_json(_text(path), str(path), to_use)


def names(path: Path) -> dict[str, Any]:
    """The values in a file, unchecked. Raises `InputError` if it cannot be read."""
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    return values if isinstance(values, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
