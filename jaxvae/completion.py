"""Complete commands and flags in a shell: ``jaxvae completion bash``."""

import dataclasses
import importlib
import sys
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

import tyro

from jaxvae import cli, flags
from jaxvae.__main__ import COMMANDS
from jaxvae.config import Config

DESCRIPTION = """Print a script that completes the commands and flags of `jaxvae` in a shell.

Write it to a file that the shell reads: bash: ~/.local/share/bash-completion/completions/jaxvae; zsh: _jaxvae in a
directory of $fpath; fish: ~/.config/fish/completions/jaxvae.fish; tcsh: a file that ~/.tcshrc sources. Write it again
after an update."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """For which shell."""

    shell: Annotated[Literal["bash", "zsh", "fish", "tcsh"], tyro.conf.Positional]
    """The shell."""


def print_script(shell: str) -> None:
    """Print the script for `shell`: one of those that `Arguments` takes."""
    kinds = [_subcommand(name, importlib.import_module(module).Arguments) for name, (module, _) in COMMANDS.items()]
    whole: Any = Union[tuple(kinds)]  # noqa: UP007
    tyro.cli(
        whole,
        prog="jaxvae",
        args=["--tyro-write-completion", shell, "-"],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _subcommand(name: str, kind: Any) -> Any:
    if kinds := typing.get_args(kind):
        named: Any = Union[tuple(_subcommand(each.__name__.lower(), each) for each in kinds)]  # noqa: UP007
        kind = dataclasses.make_dataclass(name, [("command", named)])
    elif "config" in typing.get_type_hints(kind):
        kind = flags.grouped(kind, Config)
    return Annotated[kind, tyro.conf.subcommand(name)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    asked = cli.parse(Arguments, args, prog="python -m jaxvae.completion", description=DESCRIPTION)
    print_script(asked.shell)
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
