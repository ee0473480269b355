"""The exceptions that are told to the user in one line, and the exit code of each in `jaxvae.cli`."""


class InputError(ValueError):
    """Bad input from the user: a flag, a field or a file.

    The message is a single line that names what is wrong. The command lines print it after
    ``error:`` and exit with code 2; library callers catch it as a `ValueError`.
    """


class SaveError(RuntimeError):
    """A file of the run could not be written; the checkpoints before it are intact."""
