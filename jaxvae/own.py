"""User-defined components: imported by name, or passed from Python."""

import contextlib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvae.errors import InputError

GIVEN = "given"  # Stands for the module of an object that cannot be imported by name.

_given: dict[str, Any] = {}  # Objects that were passed from Python, by their names.


def is_own(name: str | None) -> bool:
    """Whether a name is that of a user-defined component: ``package.module:Name``."""
    return name is not None and ":" in name


def name_of(thing: Any) -> str:
    """``package.module:Name`` of a function or class, or of an object's class."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}:{kind.__qualname__}"


def give(thing: Any, name: str | None = None) -> str:
    """Remember an object in this process, so that `resolve` finds it. Returns its name."""
    name = name or name_of(thing)
    _given[name] = thing
    return name


@contextlib.contextmanager
def standing_in(things: Mapping[str, Any]) -> Iterator[None]:
    """Within it, objects stand in for those that these names name, but for what was passed from Python itself."""
    new = {name: thing for name, thing in things.items() if name not in _given}
    _given.update(new)
    try:
        yield
    finally:
        for name in new:
            del _given[name]


def resolve(name: str, flag: str) -> Any:
    """The object that ``package.module:Name`` names: one passed from Python, or one of the module.

    Args:
      name: the name. The current directory is on the import path.
      flag: the flag that holds the name, for messages.

    Raises:
      InputError: there is no such module, it cannot be imported, or it holds no such name.
    """
    if name in _given:
        return _given[name]
    module, _, attribute = name.partition(":")
    if not module or not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        if "<" in attribute:
            raise InputError(_given_in_python(flag, name))
        raise InputError(f"{flag} {name}: must be package.module:Name")
    if module == GIVEN:
        raise InputError(_given_in_python(flag, name))
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # The user's module may raise anything.
        raise InputError(f"{flag} {name}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            if module == "__main__":
                raise InputError(_given_in_python(flag, name))
            raise InputError(f"{flag} {name}: {module} holds no {attribute}")
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def blamed(components: Sequence[str]) -> Iterator[None]:
    """Around what calls the user's components, which may raise anything: an error in their code becomes one line.

    Args:
      components: with their flags, such as "--model mine:Net". None: every error stays as it is.

    Raises:
      InputError: it names the components, and the place in the user's file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        place = _place_in_users_code(error)
        if not components or place is None:
            raise
        said = " ".join(str(error).split("\n\n")[0].split())
        raise InputError(f"{' '.join(components)}: {place}: {type(error).__name__}: {said}") from error


def _place_in_users_code(error: Exception) -> str | None:
    """ "FILE, line N" of the innermost frame that is neither of this package nor of a library; None: there is none."""
    paths = sysconfig.get_paths()
    folders = (str(Path(__file__).parent), paths["stdlib"], paths["purelib"], paths["platlib"])
    others = tuple(os.path.join(folder, "") for folder in folders)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith((*others, "<frozen"))]
    return f"{users[-1].filename}, line {users[-1].lineno}" if users else None


def _given_in_python(flag: str, name: str) -> str:
    what = flag.removeprefix("--")
    return (
        f"{flag} {name}: it was given in Python and cannot be imported: pass it as {what}=... to jaxvae.load, "
        f"jaxvae.evaluate.evaluate_run or jaxvae.fit, or train with {flag} module:Name"
    )
