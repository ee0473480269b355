"""Options: the fields of components. They are also flags of the command lines and keys of ``config.json``.

A component is a frozen dataclass. Each of its fields is declared by `option`, with its help text in a docstring below
it.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import sys
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxvae.errors import InputError


class Range(NamedTuple):
    """The values that an option accepts: in `words` that follow "must be", and as a test, `holds`."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Range("positive and finite", lambda value: math.isfinite(value) and value > 0)
NOT_NEGATIVE = Range("finite and not negative", lambda value: math.isfinite(value) and value >= 0)
FRACTION = Range("in [0, 1)", lambda value: 0 <= value < 1)
COUNT = Range("at least 0", lambda value: value >= 0)
MOST_CLASSES = 2**16
CLASSES = Range(f"from 0 to {MOST_CLASSES}", lambda value: 0 <= value <= MOST_CLASSES)
AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)


def option(default: Any, must: Range | None = None, traced: bool = False) -> Any:
    """A field of a component.

    Args:
      default: its default value.
      must: the values it accepts. None: all of its type.
      traced: whether it is a number that changes neither shapes nor branches of the compiled program. Models that
        differ only in such options train in one program.
    """
    return dataclasses.field(default=default, metadata={"must": must, "traced": traced})


class Option(NamedTuple):
    """An option as it is declared. `help` is one line."""

    name: str
    annotation: Any
    default: Any
    help: str
    must: Range | None
    traced: bool

    def check(self, value: Any) -> None:
        """Raise `InputError` for a value out of range."""
        if self.must is None:
            return
        try:
            held, shown = self.must.holds(value), words(value)
        except TypeError:  # From Python, a value may be of any type.
            held, shown = False, f"{value!r} ({type(value).__name__})"
        if not held:
            raise InputError(f"{flag(self.name)} must be {self.must.words}, not {shown}")


def options(kind: Any) -> tuple[Option, ...]:
    """The options of a component in the order of their declaration, those of base classes first."""
    return _options(kind)


@functools.cache
def _options(kind: Any) -> tuple[Option, ...]:
    if not dataclasses.is_dataclass(kind):
        return ()
    hints, helps = typing.get_type_hints(kind), _helps(kind)
    return tuple(
        Option(
            field.name,
            hints[field.name],
            field.default,
            helps.get(field.name, ""),
            field.metadata.get("must"),
            field.metadata.get("traced", False),
        )
        for field in dataclasses.fields(kind)
    )


def _helps(kind: Any) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of those it inherits from, on one line each."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if "__dataclass_fields__" in base.__dict__:
            found |= _helps_of_module(base.__module__).get(base.__name__, {})
    return found


@functools.cache
def _helps_of_module(module: str) -> dict[str, dict[str, str]]:
    """The docstrings below the fields of every class of a module, by the name of the class."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, SyntaxError, KeyError):  # The source is not kept, as in an interactive session.
        return {}
    return {node.name: _field_docs(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _field_docs(node: ast.ClassDef) -> dict[str, str]:
    return {
        field.target.id: " ".join(str(doc.value.value).split())
        for field, doc in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
    }


def with_traced(component: Any, hyperparameters: typing.Mapping[str, Any]) -> Any:
    """Replace those options of a component that `hyperparameters` names. The values may be traced."""
    own = {name: value for name, value in hyperparameters.items() if name in getattr(component, "__dict__", {})}
    return dataclasses.replace(component, **own) if own else component


def flag(name: str) -> str:
    """The command-line flag of an option: "batch_size" is "--batch-size"."""
    return "--" + name.replace("_", "-")


def words(value: Any) -> str:
    """An option's value as people write it: "512,256" for a tuple, "0.001" for 1e-3."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def one_of(choices: typing.Iterable[str]) -> str:
    """Choices in words: "a", "a or b", "a, b or c"."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
