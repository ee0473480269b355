"""Train a grid of models at once: ``python -m jaxvae.sweep``.

Members that differ in seed and in traced hyperparameters (`jaxvae.config.TRACED`) train in one program. `OUTER`
fields change shapes and need several programs, run one after the other.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxvae import cli, compilation_cache, flags
from jaxvae import config as configs
from jaxvae.config import Config
from jaxvae.errors import Diverged, InputError, say
from jaxvae.machine import cores
from jaxvae.options import flag
from jaxvae.sweep.extract import extract
from jaxvae.sweep.grid import FILE, OUTER, Axes, Grid, axes_of, load_sweep
from jaxvae.sweep.loop import sweep
from jaxvae.train.__main__ import advice

DESCRIPTION = """Train many models at once, in one program: a grid of seeds and hyperparameters.

--seeds N trains every setting with N seeds. Each of --learning-rate, --beta, --free-bits, --mmd-weight,
--weight-decay, --latent-size, --batch-size and --samples takes several values. --hidden takes several settings,
each written with commas: --hidden 512,256 256,128. All other flags are those of jaxvae.train, but --image-every and
--keep-best-checkpoints have no effect: no pictures of members are drawn, and their newest checkpoints are kept."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where to keep the sweep."""

    config: Config
    run_dir: Path | None = None
    """Directory of the sweep, created if needed. Default: a new one, runs/sweep-PRESET-DATE-TIME."""
    resume: bool = False
    """Resume the sweep in --run-dir, with its grid, from its newest checkpoints."""
    seeds: int = 1
    """Seeds per setting: --seed, --seed + 1, and so on."""
    devices: str = "all"
    """How many devices share the members: a number, or all. On a CPU, each core is a device."""
    members_per_program: int | None = None
    """Most members in one program. Default: as many as fit in memory."""
    join: bool = False
    """Train the sweep together with other processes, on any machines that share --run-dir. Start each with the same
    command: it takes programs that no other has. --members-per-program says how large they are."""
    extract: str | None = None
    """Copy one member of the sweep in --run-dir to a run in --to: a number, or best, by the validation images."""
    to: Path | None = None
    """Directory of the run that --extract makes, for jaxvae.evaluate, jaxvae.generate and jaxvae.train --resume."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def parse(argv: Sequence[str]) -> tuple[Arguments, Axes]:
    """Parse the command line: `Arguments`, with the first value of every axis in its config, and the axes.

    Raises:
      InputError: in one line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    kind = type(flags.defaults(configs.PRESETS[Config.preset], flags.peek(argv)))
    names = axes_of(kind)
    _refuse_untraced(argv, kind, names)
    for name in names:
        parser.add_argument(flag(name), f"--{name}", dest=name, nargs="+")
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    base, axes = configs.preset(known.preset or Config.preset), dict[str, Any]()
    given = {name: values for name in names if (values := getattr(known, name)) is not None}
    seeds = 1
    if known.resume:
        if known.run_dir is None:
            raise InputError("--resume needs --run-dir: the sweep to go on with")
        grid, _ = load_sweep(known.run_dir)
        base, axes, seeds = grid.config, grid.axes, len(grid.seeds)
        if given:
            raise InputError(
                f"--resume: the grid is that of {known.run_dir / FILE}; leave out {flag(next(iter(given)))}"
            )
    tokens = list(rest)
    for name, values in given.items():
        axes[name] = [_value(name, text) for text in _settings(name, values)]
        if len(set(axes[name])) < len(axes[name]):
            raise InputError(f"{flag(name)} has a value twice: {' '.join(values)}")
        first = axes[name][0]
        tokens += [flag(name), *map(str, first if isinstance(first, tuple) else [first])]
    tokens += ["--preset", known.preset] if known.preset else []
    tokens += ["--run-dir", str(known.run_dir)] if known.run_dir else []
    tokens += ["--resume"] if known.resume else []
    base = flags.defaults(base, flags.peek(argv))
    default = Arguments(base, seeds=seeds)
    arguments = flags.parse(default, tokens, prog="python -m jaxvae.sweep", description=DESCRIPTION)
    if arguments.config.track != "none":
        raise InputError("--track has no effect in a sweep: its members are compared in tables; --extract makes a run")
    if arguments.seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {arguments.seeds}")
    if known.resume:
        if changed := configs.differences(base, arguments.config):
            raise InputError(f"--resume: {known.run_dir} has another configuration: {'; '.join(changed)}")
        if arguments.seeds != seeds:
            raise InputError(f"--resume: {known.run_dir} has {seeds} seeds, not {arguments.seeds}")
    return arguments, axes


def _refuse_untraced(argv: Sequence[str], kind: Any, axes: Sequence[str]) -> None:
    """Raise `InputError` for several values of an option that takes only one."""
    single = [
        o
        for o in configs.options_of(kind)
        if o.name not in axes and o.annotation is not bool and typing.get_origin(o.annotation) is not tuple
    ]
    options = {flag(o.name) for o in single}
    for at, word in enumerate(argv[:-2]):
        values = list(itertools.takewhile(lambda value: not value.startswith("--"), argv[at + 1 :]))
        if word in options and len(values) > 1:
            swept = ", ".join(map(flag, axes))
            raise InputError(f"{word} takes one value: it is not among the options that are swept: {swept}")


def _settings(name: str, values: Sequence[str]) -> list[str]:
    """Widths without commas are one setting, as in jaxvae.train; with commas, each value is one."""
    if name == "hidden" and not any("," in value for value in values):
        return [",".join(values)]
    return list(values)


def _value(name: str, text: str) -> Any:
    """One value of an axis. Raises `InputError`."""
    try:
        if name == "hidden":
            return tuple(int(width) for width in text.split(",") if width)
        return float(text) if name not in OUTER else int(text)
    except ValueError:
        raise InputError(
            f"{flag(name)}: {text} is not {'a number' if name not in OUTER else 'a whole number'}"
        ) from None


def use_every_core() -> None:
    """On a CPU, make each core a device, so that each trains its own members; not if XLA_FLAGS is set.

    Call this before JAX starts; it has no effect on an accelerator.
    """
    if "XLA_FLAGS" not in os.environ and jax.config.jax_num_cpu_devices < 0:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", cores())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    arguments, axes = parse(sys.argv[1:] if argv is None else argv)
    if arguments.extract is None and arguments.to is not None:
        raise InputError("--to goes with --extract: which member to put there")
    if arguments.extract is not None:
        if arguments.resume or arguments.join:
            raise InputError(f"--extract trains nothing: leave out {'--resume' if arguments.resume else '--join'}")
        if arguments.run_dir is None or arguments.to is None:
            raise InputError("--extract needs --run-dir, the sweep, and --to, the run to make")
        number = extract(arguments.run_dir, arguments.extract, arguments.to)
        say(f"member {number} of {arguments.run_dir} -> {arguments.to}")
        return cli.EXIT_OK
    devices = cli.device_count(arguments.devices)
    use_every_core()
    compilation_cache.use(not arguments.no_compilation_cache)
    seeds = [arguments.config.seed + number for number in range(arguments.seeds)]
    grid = Grid(arguments.config, axes, seeds)
    try:
        stopped_by = sweep(
            grid, arguments.run_dir, arguments.resume, devices, arguments.members_per_program, arguments.join
        )
    except Diverged as error:
        say(f"error: {error}: {advice(arguments.config)}")
        return cli.EXIT_DIVERGED
    return cli.EXIT_OK if stopped_by is None else 128 + stopped_by


if __name__ == "__main__":
    cli.leave(cli.run(main))
