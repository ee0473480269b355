"""All commands under one name: ``python -m jaxvae COMMAND``, or ``jaxvae COMMAND`` where it is installed."""

import importlib
import sys
from collections.abc import Sequence

from jaxvae import cli
from jaxvae.errors import InputError, suggestion

COMMANDS = {
    "train": ("jaxvae.train.__main__", "train an autoencoder or a VAE"),
    "evaluate": ("jaxvae.evaluate", "measure a run on its test images"),
    "encode": ("jaxvae.encode", "write the latents of images, and draw a map of them"),
    "generate": ("jaxvae.generate", "draw images from a run"),
    "compare": ("jaxvae.compare", "show runs side by side"),
    "explore": ("jaxvae.explore.__main__", "open a local page on a run's latents"),
    "movie": ("jaxvae.movie", "make a GIF of a run's training"),
    "export": ("jaxvae.export.__main__", "write a run's model as a web page, ONNX, StableHLO or weights"),
    "sweep": ("jaxvae.sweep.__main__", "train a grid of models in one program"),
    "benchmark": ("jaxvae.benchmark", "measure training on this machine"),
    "data": ("jaxvae.data.__main__", "say what a dataset holds, and how to train on it"),
    "torch_weights": ("jaxvae.torch_weights", "move weights to PyTorch and back"),
    "completion": ("jaxvae.completion", "print a script that completes commands and flags in a shell"),
}


def usage() -> str:
    """The list of commands, one per line."""
    lines = [f"  {name:14} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: jaxvae COMMAND ... (each with --help)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands and return its exit code (see `jaxvae.cli`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        cli.answer_version(args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return cli.EXIT_OK
    command, *rest = args
    command = command.replace("-", "_")
    if command not in COMMANDS:
        near = suggestion(command, COMMANDS)
        raise InputError(f"{args[0]}: no such command; choose from {', '.join(COMMANDS)}{near}")
    module, _ = COMMANDS[command]
    code: int = importlib.import_module(module).main(rest)
    return code


def script() -> None:
    """The console command ``jaxvae``."""
    cli.leave(cli.run(main))


if __name__ == "__main__":
    script()
