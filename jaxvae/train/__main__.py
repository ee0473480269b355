"""Train an autoencoder or a VAE: ``python -m jaxvae.train``."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxvae import cli, compilation_cache, config_file
from jaxvae import config as configs
from jaxvae.components import SLOTS
from jaxvae.config import Config
from jaxvae.distributed import job as distributed
from jaxvae.errors import Diverged, InputError, say
from jaxvae.options import flag
from jaxvae.own import is_own
from jaxvae.presets import overrides
from jaxvae.train import loop

T = TypeVar("T")

DESCRIPTION = """Train an autoencoder or a variational autoencoder on images.

Most runs need few flags: --preset vae, --dataset FOLDER, --epochs and --run-dir; --architecture, --hidden,
--likelihood and --latent-size for the model; --batch-size and --learning-rate; --resume to go on.

Without flags, it trains the notes' VAE on MNIST. --preset sets the defaults of the other flags: add it to --help to
see them."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where to keep the run."""

    config: Config
    run_dir: Path | None = None
    """Directory of the run, created if needed. Default: a new one, runs/PRESET-DATE-TIME."""
    resume: bool = False
    """Resume the run in --run-dir from its newest checkpoint, with its configuration."""
    devices: str = "all"
    """How many devices of each process share each batch: a number, or all."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if several processes train together. Not needed under Slurm and the like."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """Number of this process among them, from 0."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parse the command line. Raises `InputError`."""
    prog = "python -m jaxvae.train"
    known = peek(argv)
    base, run_dir = configs.preset(known.preset or Config.preset), known.run_dir
    if known.resume:
        if run_dir is None:
            raise InputError("--resume needs --run-dir: the run to go on with")
        if not (run_dir / "config.json").is_file():
            raise InputError(f"--resume: {run_dir} holds no run (no config.json)")
        base = config_file.load(run_dir / "config.json")
    base = with_own(base, known)
    return cli.parse(arguments_of(Arguments, base), argv, prog=prog, description=DESCRIPTION, default=Arguments(base))


def peek(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that decide which other flags there are, and their defaults. Raises `InputError`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    for slot in SLOTS:
        parser.add_argument(flag(slot))
    try:
        known, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    return known


def with_own(base: Config, known: argparse.Namespace) -> Config:
    """`base`, with the options of the user's own components in `known`, at their defaults."""
    own = {slot: name for slot in SLOTS if is_own(name := getattr(known, slot))}
    if not own:
        return base
    kind = configs.config_type({**configs.values_of(base), **own})
    extended: Any = object.__new__(kind)
    # Not checked: the flags that complete it are parsed later.
    values = {o.name: getattr(base, o.name, o.default) for o in configs.options_of(kind)}
    extended.__dict__.update(values)
    found: Config = extended
    return found


def arguments_of(kind: type[T], base: Config) -> type[T]:
    """The dataclass `kind`, with a `config` of the class of `base`."""
    if type(base) is Config:
        return kind
    return dataclasses.make_dataclass(kind.__name__, [("config", type(base))], bases=(kind,), frozen=True)


def flags_of(config: Config) -> list[str]:
    """The flags that make `config`."""
    given, flags = overrides(config.preset), ["--preset", config.preset]
    for o in configs.options_of(type(config)):
        value = getattr(config, o.name)
        if o.name != "preset" and value != given.get(o.name, o.default):
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            flags += [flag(o.name), *map(str, values)]
    return flags


def advice(config: Config) -> str:
    """What to try after a run diverged."""
    clip = f"a lower --clip-norm than {config.clip_norm:g}" if config.clip_norm else "--clip-norm 1"
    return f"start a new run with a lower --learning-rate than {config.learning_rate:g}, or {clip}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    devices = cli.device_count(arguments.devices)
    distributed.join(arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.run_dir)
    compilation_cache.use(not arguments.no_compilation_cache)
    try:
        _, stopped_by = loop.train(arguments.config, arguments.run_dir, arguments.resume, devices)
    except Diverged as error:
        said = [str(error), *getattr(error, "__notes__", []), advice(arguments.config)]
        say(f"error: {'; '.join(said)}")
        return cli.EXIT_DIVERGED
    return cli.EXIT_OK if stopped_by is None else 128 + stopped_by


if __name__ == "__main__":
    cli.leave(cli.run(main))
