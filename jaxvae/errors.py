"""The exceptions that are told to the user in one line, and the exit code of each in `jaxvae.cli`."""

import difflib
import sys
from collections.abc import Iterable


def one_line(text: str) -> str:
    """`text` without a character that controls a terminal, whatever a file or a flag had put into it."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Tell the person watching: one line on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Warn the person watching: one line on stderr."""
    say(f"warning: {text}")


def suggestion(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that ends a message: whether the known word nearest to `word` was meant. Empty where none is near."""
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
