"""The only module of sweeps with side effects: runs programs one after the other; metrics, checkpoints, signals."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae import config as configs
from jaxvae import data
from jaxvae.config import Config
from jaxvae.distributed import devices as parallel
from jaxvae.errors import Diverged, InputError, SaveError, say
from jaxvae.models.build import build_model
from jaxvae.objectives.build import measure_warning, selection_term
from jaxvae.run import console, records
from jaxvae.run import directory as run_dirs
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.run.lock import InUse, RunLock, check_free
from jaxvae.sweep import tables
from jaxvae.sweep.grid import (
    DIVERGED,
    FILE,
    PROGRAMS,
    SWEEP_FILES,
    Grid,
    load_sweep,
    programs_of,
    to_json,
)
from jaxvae.sweep.log import ProgramLog, member_words
from jaxvae.sweep.room import Room, room
from jaxvae.sweep.sharing import nobody_trains, programs_left, turn
from jaxvae.sweep.trainer import MembersState, MembersTrainer, common_config
from jaxvae.train.computer import splits
from jaxvae.train.loop import with_absolute_paths
from jaxvae.train.pipeline import Pipeline, Span, Values
from jaxvae.train.programs import steps_per_epoch
from jaxvae.train.signals import StopSignals, unless_stopped
from jaxvae.versions import run_versions, version_warnings


def sweep(
    grid: Grid,
    run_dir: Path | None = None,
    resume: bool = False,
    devices: int | None = None,
    members_per_program: int | None = None,
    join: bool = False,
) -> int | None:
    """Train every member of `grid`, into `run_dir`.

    Args:
      grid: what to train. Its dataset "auto" is resolved, and the resolved name recorded.
      run_dir: a directory that holds no run yet, created if needed; None: a new one. It gets sweep.json (the
        grid), members.csv (a row per member), summary.csv (mean and spread over the seeds), plots, and
        programs/N/ with metrics.jsonl, timing.jsonl and checkpoints.
      resume: go on from the newest undamaged checkpoints in `run_dir`.
      devices: how many share the members; None: all.
      members_per_program: most members in one program; None: as many as fit in memory.
      join: train it together with all processes that do the same: see `jaxvae.sweep.sharing`. The first makes it.

    Returns:
      None if all is done, or the number of the signal that stopped it, after a save.

    Raises:
      InputError: bad input, found before anything is compiled.
      SaveError: a checkpoint could not be saved. Those before it are intact.
      Diverged: no member is left. Everything is written.
    """
    if members_per_program is not None and members_per_program < 1:
        raise InputError(f"--members-per-program must be at least 1, not {members_per_program}")
    if join and run_dir is None:
        raise InputError("--join needs --run-dir: the directory that the processes share")
    members = grid.members()
    chosen = parallel.select_devices(devices)
    if run_dir is not None:
        begun = resume or (join and (run_dir / FILE).exists())
        run_dirs.check(run_dir, begun, SWEEP_FILES if begun or not join else ())
    if grid.config.stream == "always":
        raise InputError("--stream always: a sweep keeps its images on the device")
    images = data.load_for(replace(grid.config, stream="never"))
    grid = grid._replace(config=with_absolute_paths(data.for_run(grid.config, images)))
    images = data.prepared(images, grid.config)
    members = grid.members()
    for member in members:
        steps_per_epoch(member, len(images.train))
        build_model(member, images.image_shape)
    identity = data.identity(images)
    with ExitStack() as stack:
        if not resume:
            run_dir = run_dirs.make(run_dir, f"sweep-{grid.config.preset}")
        assert run_dir is not None
        stack.enter_context(RunLock(run_dir, shared=join))
        with turn(run_dir):
            programs = _begun(grid, run_dir, resume, join, images)
            what = configs.describe(grid.config, without=grid.axes)
            say(f"{len(members)} members of {what} on {images.name} ({images.source}) -> {run_dir}")
            if (warning := measure_warning(grid.config)) is not None:
                say(warning)
            if not programs:
                for numbers in programs_of(members):
                    most = members_per_program or _room_for(members[numbers[0]], len(numbers), images, chosen)
                    parts = -(-len(numbers) // most)
                    programs += [[int(n) for n in part] for part in np.array_split(numbers, parts)]
            if join and len(programs) == 1:
                say("the sweep has one program, so other processes will only wait: --members-per-program N makes more")
            with run_dirs.told(run_dir, InputError):
                run_dirs.write_whole(run_dir / FILE, to_json(grid, programs))
                run_dirs.write_skipped(run_dir, images.skipped)
        stop = stack.enter_context(StopSignals())
        stack.enter_context(run_dirs.told(run_dir, SaveError))
        for index in programs_left(run_dir, len(programs), stop):
            if index is None:
                return _stopped(stop.received, run_dir, join)
            title = f"program {index + 1}/{len(programs)}"
            directory = run_dir / PROGRAMS / str(index)
            program = _Program(directory, title, members, programs[index], images, identity, chosen)
            stopped_by = program.train(stop)
            with turn(run_dir):
                tables.write_tables(run_dir)
            if stopped_by is not None:
                return _stopped(stopped_by, run_dir, join)
        with turn(run_dir):
            rows = tables.write_tables(run_dir)
            tables.draw(run_dir, grid, rows)
        for line in tables.summary_lines(grid, rows):
            say(line)
        if all(row["status"].startswith(DIVERGED) for row in rows):
            raise Diverged(f"{run_dir}: every member diverged")
        say(f"done: {run_dir}")
    return None


def _stopped(number: int | None, run_dir: Path, join: bool) -> int | None:
    say(f"stopped; go on with --resume {'--join ' * join}--run-dir {run_dir}")
    return number


def _begun(grid: Grid, run_dir: Path, resume: bool, join: bool, images: data.ImageData) -> list[list[int]]:
    """The programs of a sweep that has begun, after a look at them; none of a new one. Raises `InputError`."""
    if not resume and not (join and (run_dir / FILE).exists()):
        run_dirs.check_empty(run_dir, SWEEP_FILES)
        return []
    before, programs = load_sweep(run_dir)
    if join and not resume and before != grid:
        raise InputError(f"--join: {run_dir} holds another sweep: start all processes with the same flags")
    if join and before != grid and not nobody_trains(run_dir, len(programs)):
        raise InputError(f"--resume: other processes train {run_dir} for --epochs {before.config.epochs}")
    _check_programs(run_dir, grid.members(), programs, images, "--resume" if resume else "--join")
    return programs


def _check_programs(
    run_dir: Path, members: Sequence[Config], programs: Sequence[Sequence[int]], images: data.ImageData, asked: str
) -> None:
    """Refuse, before anything is written, to go on with other images or with metrics that cannot be read.

    `asked` is the flag that asks for it.
    """
    identity = data.identity(images)
    for index, numbers in enumerate(programs):
        directory = run_dir / PROGRAMS / str(index)
        tables.member_records(directory)
        try:
            check_free(directory)
        except InUse:  # Another process has begun with it, and looked.
            continue
        if not (directory / "checkpoints").is_dir():
            continue
        with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
            if checkpoints.steps():
                found = checkpoints.read_record()
                if data.contradicted(found, identity):
                    raise InputError(f"{asked}: not the images that {directory} was trained on")
                config = members[numbers[0]]
                steps = steps_per_epoch(config, len(images.train))
                if found.get("steps_per_epoch") != steps:
                    old = found.get("steps_per_epoch")
                    raise InputError(f"{asked}: an epoch of {directory} has {old} steps, and would have {steps} now")
                run_dirs.check_epochs(checkpoints.steps()[-1], config.epochs, steps)


def _room_for(member: Config, count: int, images: data.ImageData, devices: Sequence[jax.Device]) -> int:
    """How many members fit in a program; also printed on stderr."""
    fits: Room = room(common_config([member]), images, devices, count)
    how = "compiled for one" if fits.compiled else "at most"
    say(
        f"{count} members could share a program; {fits.members} fit: {fits.member_bytes / 2**20:,.0f} MiB each "
        f"({how}), of {fits.free_bytes / 2**30:,.1f} GiB to use on each of {len(devices)} "
        f"{devices[0].device_kind} devices"
    )
    return fits.members


class _Program:
    """The members of one program, and their files. A `jaxvae.train.pipeline.Sink`.

    Args:
      directory: of the program.
      title: for the console.
      members: all of the sweep.
      numbers: of those in the program.
      images, identity: the images to train and test on, and their identity.
      devices: those that share the members.
    """

    def __init__(
        self,
        directory: Path,
        title: str,
        members: Sequence[Config],
        numbers: Sequence[int],
        images: data.ImageData,
        identity: Mapping[str, Any],
        devices: Sequence[jax.Device],
    ):
        self.failure: SaveError | None = None
        self._speed = 0.0
        own = [members[number] for number in numbers]
        self._directory, self._title, self._members, self._numbers = directory, title, members, numbers
        self._config = common_config(own)
        swept = {name: [getattr(member, name) for member in own] for name in self._config.traced()}
        seeds = [member.seed for member in own]
        self._trainer = MembersTrainer(self._config, images, seeds, swept, devices)
        self._record = {
            "image_shape": list(images.train.shape[1:]),
            "steps_per_epoch": self._trainer.steps_per_epoch,
            **identity,
        }

    def train(self, stop: StopSignals) -> int | None:
        """Train to the end, or until a signal; returns its number, or None."""
        trainer, config = self._trainer, self._config
        self._directory.mkdir(parents=True, exist_ok=True)
        total = config.epochs * trainer.steps_per_epoch
        with ExitStack() as stack:
            self._checkpoints = stack.enter_context(
                Checkpoints(self._directory / "checkpoints", keep=config.keep_checkpoints)
            )
            saved = self._checkpoints.restore(trainer.abstract_state())
            step = 0 if saved is None else saved.step
            # Lines past the resumed step belong to steps that will be taken again. If there are validation images,
            # the test images are evaluated only at the end.
            watched, *_ = splits(len(trainer.images.validation) > 0, last=False)
            final = ("test",) if watched != "test" and step < total else ()
            kept = [
                line
                for line in tables.member_records(self._directory)
                if line["step"] <= step and line["split"] not in final
            ]
            dead = {line["member"] for line in kept if line["split"] == DIVERGED}
            self._dead = np.array([number in dead for number in self._numbers])
            seen = {line["split"] for line in kept if line["step"] == step}
            evaluated = seen >= set(splits(len(trainer.images.validation) > 0, last=step == total))
            if (step >= total and evaluated) or self._dead.all():
                return None
            if not evaluated:  # The whole evaluation is repeated.
                kept = [line for line in kept if line["step"] < step or line["split"] in ("train", DIVERGED)]
            record = {} if saved is None else saved.record
            for warning in version_warnings(record.get("versions", {}), run_versions()):
                say(f"warning: {warning}")
            window = record.get("window")
            self._windows = records.Windows(config.log_every, trainer.steps_per_epoch, window)
            self._log = stack.enter_context(ProgramLog(self._directory, kept))
            self._console = stack.enter_context(console.Console(config.epochs, total, step, trainer.unit))
            devices = trainer.mesh.size
            self._console.say(
                f"{self._title}: {len(self._numbers)} members on {devices} devices, "
                f"{trainer.at_once} at a time on each; {trainer.steps_per_epoch:,} steps an epoch"
                + (f"; going on from step {step:,}" if step else "")
            )
            first = state = trainer.start(None if saved is None else saved.state)
            seconds = unless_stopped(lambda: trainer.compile(first), stop)
            if seconds is None:
                return stop.received
            self._log.time("compile", seconds=seconds)
            with Pipeline(trainer, self, stop) as pipeline:
                state, step = pipeline.run(state, step, total, evaluated)
            if self._checkpoints.latest_step() != step:
                self._save(state)
            self._checkpoints.wait()
        return pipeline.stopped_by

    @property
    def finished(self) -> bool:
        """Whether every member has diverged."""
        return bool(self._dead.all())

    def timed(self, span: Span) -> None:
        """See `jaxvae.train.pipeline.Sink`. Speeds are of all members together."""
        speed = len(self._numbers) * span.per_second
        self._log.time("steps", step=span.step, steps=span.steps, seconds=span.seconds, steps_per_second=speed)

    def steps(self, step: int, values: Values, speed: Span | None) -> None:
        """See `jaxvae.train.pipeline.Sink`."""
        self._checkpoints.check()
        self._speed = len(self._numbers) * speed.per_second if speed else 0.0
        diverged = self._trainer.host(values[DIVERGED])[:, 0]
        # A diverged member has nothing to average.
        terms = {
            name: np.nan_to_num(self._trainer.host(value), nan=0, posinf=0, neginf=0)
            for name, value in values.items()
            if name != DIVERGED
        }
        # A member's lines end with the step at which it diverged, wherever in the call that is.
        for end, means in self._windows.add(step, terms):
            self._note_diverged(np.where(diverged <= end, diverged, 0))
            for index in np.flatnonzero(~self._dead).tolist():
                line = {name: value[index] for name, value in means.items()}
                self._write(index, records.record(end, self._epoch(end), "train", self._trainer.unit, line))
        self._note_diverged(diverged)
        if not self.finished:
            alive = {name: value[~self._dead] for name, value in terms.items()}
            shown = records.record(step, self._epoch(step), "train", self._trainer.unit, alive)
            self._console.progress(shown, self._speed)

    def epoch(
        self, step: int, evaluations: Mapping[str, Values], pictures: object, checkpoint: MembersState | None
    ) -> None:
        """See `jaxvae.train.pipeline.Sink`."""
        # The next training step would most likely notice, too, but there may be none.
        finite = [np.isfinite(v).all(axis=1) for values in evaluations.values() for v in values.values()]
        self._note_diverged(np.where(np.all(finite, axis=0), 0, step))
        for split, values in evaluations.items():
            lines = {}
            for index in np.flatnonzero(~self._dead).tolist():
                own = {name: value[index] for name, value in values.items()}
                lines[index] = records.record(step, self._epoch(step), split, self._trainer.unit, own)
                self._write(index, lines[index])
            self._say_epoch(step, split, lines)
        # A signal before the evaluation had this step saved already.
        if checkpoint is not None and self._checkpoints.latest_step() != step:
            self._save(checkpoint)

    def _note_diverged(self, diverged: NDArray[Any]) -> None:
        """Flag the members that diverged at some step [M], 0 for those that did not."""
        unit = self._trainer.unit
        for index in np.flatnonzero((diverged > 0) & ~self._dead).tolist():
            number, at = self._numbers[index], int(diverged[index])
            self._console.say(f"member {number} ({member_words(self._members[number])}) diverged at step {at:,}")
            self._write(index, {"step": at, "epoch": self._epoch(at), "split": DIVERGED, "unit": unit, "at": at})
        self._dead |= diverged > 0

    def _write(self, index: int, line: records.Record) -> None:
        self._log.write(self._numbers[index], line)

    def _save(self, state: MembersState) -> None:
        self._log.sync()
        record = {**self._record, "versions": run_versions(), "window": self._windows.open()}
        self._checkpoints.save(self._trainer.host(state), record)

    def _epoch(self, step: int) -> int:
        return -(-step // self._trainer.steps_per_epoch)

    def _say_epoch(self, step: int, split: str, lines: Mapping[int, records.Record]) -> None:
        """Print a summary of the members' `lines`, which are by place in the program."""
        out = len(self._numbers) - len(lines)
        lost = f", {out} diverged" if out else ""
        said = "no member has a finite loss"
        if lines:
            term, higher = selection_term(self._config)
            values = {index: line[term] for index, line in lines.items()}
            numbers = list(values.values())
            said = (
                f"{split} {term} {np.mean(numbers):.4g} ({min(numbers):.4g} to {max(numbers):.4g}, "
                f"{len(numbers)} members{lost}) {self._trainer.unit}"
            )
            if split == "validation":  # Nothing is chosen by the test images.
                number = self._numbers[(max if higher else min)(values, key=lambda index: values[index])]
                said += f", best: member {number} ({member_words(self._members[number])})"
        self._console.say(
            f"{self._title}  epoch {self._epoch(step)}/{self._config.epochs}  step {step:,}  {said}  "
            f"{console.speed_words(self._speed)}"
        )
