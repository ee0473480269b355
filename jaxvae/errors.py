"""The one exception that means "what you gave is wrong", as opposed to "the program is"."""


class InputError(ValueError):
    """Bad input from the user: a flag, a field or a file.

    The message is a single line that names what is wrong. The command lines print it after
    ``error:`` and exit with code 2; library callers catch it as a `ValueError`.
    """
