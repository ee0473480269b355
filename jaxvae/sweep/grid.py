"""A sweep's grid: which models it trains, which of them share a program, and the file that says so."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxvae import config_file
from jaxvae.config import Config, traced_of, values_of
from jaxvae.errors import InputError

FIRST = ("learning_rate", "beta")
OUTER = ("latent_size", "hidden", "batch_size", "samples")
FILE = "sweep.json"
PROGRAMS = "programs"
SWEEP_FILES = (FILE, "config.json", "checkpoints", PROGRAMS)
DIVERGED = "diverged"

Axes = dict[str, list[Any]]


def axes_of(kind: Any) -> tuple[str, ...]:
    """The options of a configuration class that a sweep can vary, in the order in which members are numbered."""
    traced = traced_of(kind)
    first = tuple(name for name in FIRST if name in traced)
    return (*first, *(name for name in traced if name not in first), *OUTER)


class Grid(NamedTuple):
    """What is swept: every combination of the values of `axes`, and of `seeds`, on top of `config`."""

    config: Config
    axes: Axes
    seeds: list[int]

    def members(self) -> list[Config]:
        """The configuration of every member, the seed varying fastest. Raises `InputError`."""
        names, found = list(self.axes), []
        for values in itertools.product(*self.axes.values()):
            for seed in self.seeds:
                changes = {**dict(zip(names, values, strict=True)), "seed": seed}
                found.append(dataclasses.replace(self.config, **changes))
        return found

    def varied(self) -> list[str]:
        """The axes that have more than one value."""
        return [name for name, values in self.axes.items() if len(values) > 1]


def shape_of(config: Config) -> tuple[Any, ...]:
    """What all members of a program must have in common: all but the seed and the traced hyperparameters."""
    traced = traced_of(type(config))
    common = [value for name, value in values_of(config).items() if name not in (*traced, "seed")]
    # Without decay the optimiser's state has another structure.
    return (*common, config.weight_decay > 0)


def programs_of(members: Sequence[Config]) -> list[list[int]]:
    """Groups of members that can share a program, by their numbers, in order."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, member in enumerate(members):
        groups.setdefault(shape_of(member), []).append(number)
    return list(groups.values())


def to_json(grid: Grid, programs: Sequence[Sequence[int]]) -> str:
    """What `load_sweep` reads: the grid, and the members of each program."""
    content = {
        "config": json.loads(config_file.to_json(grid.config)),
        "axes": grid.axes,
        "seeds": grid.seeds,
        "programs": programs,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def load_sweep(run_dir: Path) -> tuple[Grid, list[list[int]]]:
    """The grid of a sweep's directory, and the members of each of its programs.

    Raises:
      InputError: it holds no sweep, or one that cannot be read.
    """
    path = run_dir / FILE
    if not path.is_file():
        raise InputError(f"{run_dir} holds no sweep (no {FILE})")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = json.loads(text)
        config = config_file.from_json(json.dumps(content["config"]), str(path))
        axes = {
            str(name): [_value(name, value, path, type(config)) for value in values]
            for name, values in content["axes"].items()
        }
        seeds, programs = list(content["seeds"]), [list(numbers) for numbers in content["programs"]]
        whole = not any(type(number) is not int for numbers in (seeds, *programs) for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: it is not what a sweep writes") from None
    grid = Grid(config, axes, seeds)
    if not whole or not all(len(set(values)) == len(values) > 0 for values in (seeds, *axes.values())):
        raise InputError(f"{path}: a list is empty, or holds a value twice or one that is not a number")
    try:
        members = grid.members()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if programs and sorted(number for numbers in programs for number in numbers) != list(range(len(members))):
        raise InputError(f"{path}: its programs do not hold every member once")
    if any(len({shape_of(members[number]) for number in numbers}) != 1 for numbers in programs):
        raise InputError(f"{path}: a program holds no members, or members of several shapes")
    return grid, programs


def _value(name: str, value: Any, path: Path, kind: type) -> Any:
    """A value of an axis, from JSON. Raises `InputError`."""
    if name not in axes_of(kind):
        raise InputError(f"{path} has an axis this version does not know: {name}")
    return config_file.from_field(name, value, str(path), kind)


def cell(value: Any) -> Any:
    """An axis's value as a table's cell."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
