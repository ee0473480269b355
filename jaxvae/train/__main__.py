"""Train an autoencoder or a VAE: ``python -m jaxvae.train``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxvae import cli, compilation_cache, config_file, flags
from jaxvae import config as configs
from jaxvae.config import Config
from jaxvae.distributed import job as distributed
from jaxvae.errors import Diverged, InputError, say
from jaxvae.train import loop

DESCRIPTION = """Train an autoencoder or a variational autoencoder on images.

Without flags, it trains the VAE of the study notes that jaxvae began with, on MNIST; --preset vae is the usual one. A
preset sets the defaults of the other flags: add it to --help to see them. --architecture, --likelihood, --inputs,
--prior, --objective and --optimizer also take one of your own: package.module:Name."""


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
    known = flags.peek(argv)
    base, run_dir = configs.preset(known.preset or Config.preset), known.run_dir
    if known.resume:
        if run_dir is None:
            raise InputError("--resume needs --run-dir: the run to go on with")
        if not (run_dir / "config.json").is_file():
            raise InputError(f"--resume: {run_dir} holds no run (no config.json)")
        base = config_file.load(run_dir / "config.json")
    return flags.parse(Arguments(flags.defaults(base, known)), argv, prog=prog, description=DESCRIPTION)


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
