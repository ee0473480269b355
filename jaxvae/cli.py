"""What the command lines share: parsing by dataclass, one-line errors, exit codes.

Exit codes: 0 done; 2 bad input; 3 a loss is not finite; 4 a file of the run could not be written; 5 another process
of the job was lost, or failed; 6 out of memory; 128 + N stopped by signal N (129 for SIGHUP, 130 for
Ctrl-C, 143 for SIGTERM) with the state saved; 141 if the reader of stdout left before its end.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import jax
import tyro

from jaxvae import memory
from jaxvae.distributed import job as distributed
from jaxvae.distributed.watch import EXIT_JOB
from jaxvae.errors import InputError, JobError, SaveError, say, suggestion
from jaxvae.versions import package_versions

T = TypeVar("T")

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_NOT_SAVED = 4
EXIT_NO_MEMORY = 6


def parse(kind: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Parse `args` into a dataclass `kind`: one flag per field, help from its docstrings.

    Prints help and raises `SystemExit` for ``--help``; the versions, for ``--version``.

    Raises:
      InputError: an unknown flag or a wrong value, in one line, with the nearest valid one.
    """
    answer_version(args)
    refusal = io.StringIO()
    try:
        with contextlib.redirect_stderr(refusal):
            parsed: T = tyro.cli(
                tyro.conf.OmitArgPrefixes[kind],  # type: ignore
                args=args,
                prog=prog,
                description=f"{description}\n\n--version prints the versions of jaxvae, jax and jaxlib.",
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=_registry(),
            )
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        said = _unknown_flag(kind, args) or _reworded(_first_paragraph(refusal.getvalue()), _whole(kind))
        raise InputError(f"{said} (see {prog} --help)") from None


def _registry() -> tyro.constructors.ConstructorRegistry:
    """What tyro makes of types: an optional value is shown and parsed as what it is when it is given."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kinds = [kind for kind in typing.get_args(info.type) if kind is not type(None)]
        if type(None) not in typing.get_args(info.type) or len(kinds) != 1 or kinds[0] not in (int, str, Path):
            return None
        [kind] = kinds
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: kind(words[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    return registry


def answer_version(args: Sequence[str]) -> None:
    """If `args` ask for the versions, print them and raise `SystemExit`."""
    if "--version" in args:
        print("  ".join(f"{name} {version}" for name, version in package_versions().items()))
        raise SystemExit(EXIT_OK)


# The names of some flags in other projects.
ALIASES = {"lr": "learning-rate", "wd": "weight-decay", "bs": "batch-size"}


def _unknown_flag(kind: type, args: Sequence[str]) -> str | None:
    """A sentence about the first flag in `args` that the dataclass `kind` does not have, or None."""
    known = {"help", *(name for name, _ in _flags(kind))}
    for arg in args:
        name = arg[2:].partition("=")[0].replace("_", "-")
        if arg.startswith("--") and name and name not in known:
            alias = ALIASES.get(name, "")
            near = f"; did you mean --{alias}?" if alias in known else suggestion(name, known, "--")
            return f"--{name}: there is no such flag{near}"
    return None


def _whole(kind: type) -> set[str]:
    """The flags that take several whole numbers."""
    return {name for name, hint in _flags(kind) if tuple[int, ...] in (hint, *typing.get_args(hint))}


def _flags(kind: type) -> list[tuple[str, Any]]:
    """The flags of a dataclass and of the dataclasses in it, without their dashes, and their types."""
    found: list[tuple[str, Any]] = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found += _flags(cast(type, hint))
        elif tyro.conf.Positional not in typing.get_args(hint):
            found.append((name.replace("_", "-"), hint))
    return found


def _reworded(sentence: str, whole: Collection[str]) -> str:
    """tyro's sentence about a wrong value, reworded; for a flag with choices, with the nearest one.

    `whole` are the flags that take several whole numbers.
    """
    if found := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", sentence):
        value, name, listed = found.groups()
        choices = [choice.strip(" '") for choice in listed.split(",") if choice]
        return f"{name} {value}: choose from {', '.join(choices)}{suggestion(value, choices)}"
    if found := re.match(r"Error parsing (\S+): .*(int|float).*: '?(.*?)'?$", sentence):
        name, kind, value = found.groups()
        return f"{name} must be a {'whole ' if kind == 'int' else ''}number, not {value}"
    if found := re.match(r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", sentence):
        name, listed = found.groups()
        # The box around the sentence may have been wrapped after a comma.
        given = " ".join(re.sub(r", +", ",", each) for each in re.findall(r"'([^']*)'", listed))
        numbers = "whole numbers" if name.removeprefix("--") in whole else "numbers"
        return f"{name} must be {numbers} with spaces between them, not {given}"
    if found := re.match(r"Missing from .*?: ([A-Z_]+) (.*?) \(required\)", sentence):
        name, told = found.groups()
        first = told[:1].lower() if told[1:2].islower() or told[1:2] == " " else told[:1]
        return f"{name} is missing: {first}{told[1:].rstrip('.')}"
    return sentence


def _first_paragraph(box: str) -> str:
    """The sentence in the box that tyro draws around an error: below its title, above the next line or its end."""
    lines = (line.strip("│ ") for line in box.splitlines()[1:])
    # If the terminal cannot show a box, it has lines of dashes, and one below the title, too.
    inside = itertools.dropwhile(lambda line: not line.strip("─╰╯-"), lines)
    return " ".join(itertools.takewhile(lambda line: line.strip("─╰╯-"), inside)) or box.strip()


def device_count(text: str) -> int | None:
    """--devices as a number, None for all. Raises `InputError`."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or not int(text[:9]) > 0:
        raise InputError(f"--devices must be a number of at least 1, or all, not {text}")
    return int(text[:9])


def check_writable(flag: str, path: Path) -> None:
    """Refuse, before any work is done, a file that could not be written at the end.

    Raises:
      InputError: `path` is a directory, has no directory, or may not be written.
    """
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}") from None
    if not existed:
        path.unlink()


@contextlib.contextmanager
def saving(flag: str, path: Path) -> Iterator[None]:
    """Make a file that cannot be written after all a `SaveError`."""
    try:
        yield
    except OSError as error:
        raise SaveError(f"{flag} {path} cannot be written: {error.strerror or error}") from None


def save_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write `content` to the file of ``--json``, if there is one. Raises `SaveError`."""
    if path is not None:
        with saving("--json", path):
            path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class _Lost(Exception):
    """What was printed to stdout was lost."""


class _Output:
    """stdout or stderr, which may break: its reader leaves, its disk fills up, the terminal is closed.

    A broken stderr is ignored. stdout carries results: `_Lost` is raised. Unlike a file of `io`, this object does
    not close the stream when it is deleted.
    """

    def __init__(self, stream: TextIO | None, results: bool):
        self._stream: Any = stream
        self._results = results
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except OSError as error:
            # The rest of its buffer would fail again at exit, and so would what libraries print.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream = None
            if self._results:
                raise _Lost(error.strerror) from error

    def isatty(self) -> bool:
        return self._stream is not None and bool(self._stream.isatty())

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())


def run(command: Callable[[], int]) -> int:
    """Run a command and return its exit code. Errors with an exit code are one line on stderr; Ctrl-C gives 130.

    A broken stderr is ignored; results that stdout cannot take give an exit code.
    """
    # The command owns the process: what it computes must not depend on this setting of JAX (see `jaxvae.keys`).
    jax.config.update("jax_threefry_partitionable", True)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Takes the number. Else a file of the run would, and libraries would print into it.
            os.open(os.devnull, os.O_RDWR)
    with (
        contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout, results=True))),
        contextlib.redirect_stderr(cast(TextIO, _Output(sys.stderr, results=False))),
    ):
        try:
            try:
                return _run(command)
            finally:  # After --help, too, which leaves by `SystemExit`.
                sys.stdout.flush()
        except _Lost as error:
            if isinstance(error.__cause__, BrokenPipeError):
                return 128 + signal.SIGPIPE
            print(f"error: stdout cannot be written: {error}", file=sys.stderr)
            return EXIT_NOT_SAVED


def leave(code: int) -> NoReturn:
    """End the process, without waiting for a thread that cannot be stopped, such as one that compiles."""
    if any(thread.daemon for thread in threading.enumerate()):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(command: Callable[[], int]) -> int:
    try:
        code = command()
    except BaseException as error:
        told = _tell(error)
        distributed.leave(error, told)
        if told is None:
            raise
        return told
    distributed.leave()
    return code


def _tell(error: BaseException) -> int | None:
    """Print the line for an error and return its exit code; None for a bug, or for `SystemExit`."""
    if isinstance(error, InputError):
        line, code = f"error: {error}", EXIT_BAD_INPUT
    elif isinstance(error, SaveError):
        line, code = f"error: {error}", EXIT_NOT_SAVED
    elif isinstance(error, JobError):
        line, code = f"error: {error}", EXIT_JOB
    elif isinstance(error, OSError) and error.filename is not None:
        # A path from the command line that no file could have; errors of bugs name no path.
        line, code = f"error: {error.filename}: {error.strerror}", EXIT_BAD_INPUT
    elif (shortage := memory.shortage(error)) is not None:
        line, code = f"error: {shortage}", EXIT_NO_MEMORY
    elif isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", 128 + signal.SIGINT
    else:
        return None
    say(line)
    return code


def number(value: float) -> str:
    """`value` with three significant digits, but at least all of its whole part: 1,042, 12.3, 0.0512."""
    digits = 0 if not value else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"
