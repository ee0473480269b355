"""Exceptions that are shown to the user in one line. `jaxvae.cli` gives each an exit code."""

import difflib
import sys
from collections.abc import Iterable


def one_line(text: str) -> str:
    """`text` without control characters, so that text from a file or a flag cannot control the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Print one line to stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning, one line, to stderr."""
    say(f"warning: {text}")


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message, which asks whether the known word closest to `word` was meant. Empty if none is close."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


class InputError(ValueError):
    """Bad input from the user: a flag, a field or a file.

    The message is a single line that names what is wrong. The command lines print it after
    ``error:`` and exit with code 2; library callers catch it as a `ValueError`.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class SaveError(RuntimeError):
    """A file of the run could not be written; the checkpoints before it are intact. The message is a single line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class JobError(RuntimeError):
    """Another process of the job failed. The message is a single line that names it and its error."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class Diverged(RuntimeError):
    """A loss or a parameter is NaN or infinite. The message is a single line that names the step."""
