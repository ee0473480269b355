"""The one place of a sweep with effects: its programs one after the other, figures, checkpoints, signals."""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxvae import config as configs
from jaxvae import data, metrics, parallel, tables
from jaxvae import run_dir as run_dirs
from jaxvae.checkpoint import Checkpoints
from jaxvae.config import SWEPT, Config
from jaxvae.errors import InputError, SaveError, one_line
from jaxvae.grid import (
    AXES,
    DIVERGED,
    FILE,
    PROGRAMS,
    SWEEP_FILES,
    Grid,
    cell,
    load_sweep,
    programs_of,
    to_json,
)
from jaxvae.lock import RunLock
from jaxvae.loop import StopSignals, with_absolute_paths
from jaxvae.members import MembersState, MembersTrainer, Room, common_config, room
from jaxvae.trainer import schedule
from jaxvae.variational import measure_warning


def sweep(
    grid: Grid,
    run_dir: Path | None = None,
    resume: bool = False,
    devices: int | None = None,
    members_per_program: int | None = None,
) -> int | None:
    """Train every member of `grid`, into `run_dir`.

    Args:
      grid: what to train. Its dataset "auto" is resolved, and the resolved name recorded.
      run_dir: a directory that holds no run yet, created if need be; None: a new one. It gets sweep.json (the
        grid), members.csv (a row a member), summary.csv (mean and spread over the seeds), plots, and
        programs/N/ with metrics.jsonl, timing.jsonl and checkpoints.
      resume: go on from the newest undamaged checkpoints in `run_dir`.
      devices: to share the members; None: all there are.
      members_per_program: most members of one program; None: as many as fit the memory.

    Returns:
      None if all is done, or the number of the signal that stopped it; its state is saved then.

    Raises:
      InputError: bad input, found before anything is compiled.
      SaveError: a checkpoint could not be saved. Those before it are intact.
    """
    if members_per_program is not None and members_per_program < 1:
        raise InputError(f"--members-per-program must be at least 1, not {members_per_program}")
    members = grid.members()
    chosen = parallel.select_devices(devices)
    if run_dir is not None:
        run_dirs.check(run_dir, resume, SWEEP_FILES)
    images = data.load(grid.config.dataset, grid.config.data_dir)
    grid = grid._replace(config=with_absolute_paths(dataclasses.replace(grid.config, dataset=images.name)))
    if grid.config.inputs == "static":
        images = data.binarized(images, grid.config.static_seed)
    members = grid.members()
    for member in members:
        schedule(member, len(images.train))
    digests = {"train_images_sha256": data.digest(images.train), "test_images_sha256": data.digest(images.test)}
    with ExitStack() as stack:
        if resume:
            assert run_dir is not None
            stack.enter_context(RunLock(run_dir))
            _, programs = load_sweep(run_dir)
            _check_images(run_dir, len(programs), digests)
        else:
            run_dir = run_dirs.make(run_dir, f"sweep-{grid.config.preset}")
            stack.enter_context(RunLock(run_dir))
            run_dirs.check_empty(run_dir, SWEEP_FILES)
            programs = []
        say(f"{len(members)} members of {grid.config.preset} on {images.name} ({images.source}) -> {run_dir}")
        if (warning := measure_warning(grid.config)) is not None:
            say(warning)
        if not programs:
            for numbers in programs_of(members):
                most = members_per_program or _room_for(members[numbers[0]], len(numbers), images, chosen)
                parts = -(-len(numbers) // most)
                programs += [[int(n) for n in part] for part in np.array_split(numbers, parts)]
        with run_dirs.told(run_dir, InputError):
            run_dirs.write_whole(run_dir / FILE, to_json(grid, programs))
        stop = stack.enter_context(StopSignals())
        stack.enter_context(run_dirs.told(run_dir, SaveError))
        for index, numbers in enumerate(programs):
            title = f"program {index + 1}/{len(programs)}"
            program = _Program(run_dir / PROGRAMS / str(index), title, members, numbers, images, digests, chosen)
            stopped_by = program.train(stop)
            rows = tables.write_tables(run_dir)
            if stopped_by is not None:
                say(f"saved; go on with --resume --run-dir {run_dir}")
                return stopped_by
        tables.draw(run_dir, grid, rows)
        for line in tables.summary_lines(grid, rows):
            say(line)
        say(f"done: {run_dir}")
    return None


def _check_images(run_dir: Path, programs: int, digests: Mapping[str, str]) -> None:
    """Refuse, before anything is written, to go on with other images, or with figures that cannot be read."""
    for index in range(programs):
        directory = run_dir / PROGRAMS / str(index)
        tables.member_records(directory)
        if not (directory / "checkpoints").is_dir():
            continue
        with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
            if checkpoints.steps():
                found = checkpoints.read_record()
                if any(found.get(name) != digest for name, digest in digests.items()):
                    raise InputError(f"--resume: not the images that {directory} was trained on")


def _room_for(member: Config, count: int, images: data.ImageData, devices: Sequence[jax.Device]) -> int:
    """How many members a program takes, said on stderr."""
    fits: Room = room(common_config([member]), schedule(member, len(images.train)), images, devices)
    say(
        f"{count} members could share a program; {fits.members} fit: {fits.member_bytes / 2**20:,.0f} MiB each "
        f"(compiled for one), of {fits.free_bytes / 2**30:,.1f} GiB to use on each of {len(devices)} "
        f"{devices[0].device_kind} devices"
    )
    return fits.members


class _CallResult(NamedTuple):
    """What a call that ended at `step` left on the device, to be fetched while the next one runs."""

    step: int
    train: Mapping[str, jax.Array]
    diverged: jax.Array
    test: Mapping[str, jax.Array] | None
    checkpoint: MembersState | None


class _Program:
    """The members of one program, and their files.

    Args:
      directory: of the program.
      title: for the person watching.
      members: all of the sweep.
      numbers: of those in the program.
      images, digests: what they train and are tested on, and what tells them from others.
      devices: which share the members.
    """

    def __init__(
        self,
        directory: Path,
        title: str,
        members: Sequence[Config],
        numbers: Sequence[int],
        images: data.ImageData,
        digests: Mapping[str, str],
        devices: Sequence[jax.Device],
    ):
        own = [members[number] for number in numbers]
        self._directory, self._title, self._members, self._numbers = directory, title, members, numbers
        self._config = common_config(own)
        self._plan = schedule(self._config, len(images.train))
        swept = {name: [getattr(member, name) for member in own] for name in SWEPT}
        seeds = [member.seed for member in own]
        self._trainer = MembersTrainer(self._config, self._plan, images, seeds, swept, devices)
        self._record = {
            "image_shape": list(images.train.shape[1:]),
            "steps_per_epoch": self._plan.steps_per_epoch,
            **digests,
        }

    def train(self, stop: StopSignals) -> int | None:
        """Train to the end, or until a signal; its number, or None."""
        trainer, plan, config = self._trainer, self._plan, self._config
        self._directory.mkdir(parents=True, exist_ok=True)
        total = config.epochs * plan.steps_per_epoch
        with ExitStack() as stack:
            checkpoints = stack.enter_context(
                Checkpoints(self._directory / "checkpoints", keep=config.keep_checkpoints)
            )
            saved = checkpoints.restore(trainer.abstract_state())
            step = 0 if saved is None else saved.step
            # Lines past the step from which it goes on are of steps that will be taken again.
            kept = [line for line in tables.member_records(self._directory) if line["step"] <= step]
            dead = {line["member"] for line in kept if line["split"] == DIVERGED}
            self._dead = np.array([number in dead for number in self._numbers])
            if step >= total or self._dead.all():
                return None
            self._log = stack.enter_context(_Log(self._directory, kept))
            self._console = stack.enter_context(metrics.Console(config.epochs, total, step, trainer.unit))
            watcher = stack.enter_context(ThreadPoolExecutor(1))
            devices = trainer.mesh.size
            self._console.say(
                f"{self._title}: {len(self._numbers)} members on {devices} devices, "
                f"{trainer.at_once} at a time on each; {plan.steps_per_epoch:,} steps an epoch"
                + (f"; going on from step {step:,}" if step else "")
            )
            state = trainer.start(None if saved is None else saved.state)
            # In a thread of its own, so that this one can be told to end at once.
            self._log.time("compile", seconds=watcher.submit(trainer.compile, state).result())
            self._free = time.perf_counter()
            pending: _CallResult | None = None
            while step < total and not stop.received and not self._dead.all():
                state, terms = trainer.run_steps(state)
                step += plan.steps_per_call
                epoch, inside = divmod(step, plan.steps_per_epoch)
                ends = not inside and (
                    step == total or (config.checkpoint_every > 0 and epoch % config.checkpoint_every == 0)
                )
                result = _CallResult(
                    step,
                    terms,
                    jax.numpy.copy(state.diverged),
                    trainer.evaluate(state) if not inside else None,
                    trainer.copy(state) if ends else None,
                )
                if pending is not None:
                    self._take(pending, checkpoints)
                pending = result
            if pending is not None:
                self._take(pending, checkpoints)
            if checkpoints.latest_step() != step:
                self._log.sync()
                checkpoints.save(trainer.host(state), self._record)
            checkpoints.wait()
        return stop.received if step < total and not self._dead.all() else None

    def _take(self, result: _CallResult, checkpoints: Checkpoints) -> None:
        """Wait for the result of a call, and put it where it belongs."""
        plan, unit, host = self._plan, self._trainer.unit, self._trainer.host
        train, diverged = host(dict(result.train)), host(result.diverged)
        now = time.perf_counter()
        seconds, self._free = now - self._free, now
        speed = len(self._numbers) * plan.steps_per_call / seconds
        self._log.time("call", step=result.step, seconds=seconds, steps_per_second=speed)
        epoch = -(-result.step // plan.steps_per_epoch)
        first, window = result.step - plan.steps_per_call, self._config.log_every or plan.steps_per_call
        test = None if result.test is None else host(dict(result.test))
        if test is not None:
            # The next training step would most likely find out too, but there may be none.
            diverged = np.where((diverged == 0) & ~np.isfinite(test["loss"]).all(axis=1), result.step, diverged)
        for index in np.flatnonzero((diverged > 0) & ~self._dead).tolist():
            number, at = self._numbers[index], int(diverged[index])
            self._console.say(f"member {number} ({_words(self._members[number])}) diverged at step {at:,}")
            self._log.write(number, {"step": result.step, "epoch": epoch, "split": DIVERGED, "unit": unit, "at": at})
        self._dead |= diverged > 0
        alive: list[int] = np.flatnonzero(~self._dead).tolist()
        for index in alive:
            for start in range(0, plan.steps_per_call, window):
                part = {name: values[index, start : start + window] for name, values in train.items()}
                end = first + min(start + window, plan.steps_per_call)
                self._log.write(self._numbers[index], metrics.record(end, epoch, "train", unit, part))
        if alive:
            means = {name: values[alive] for name, values in train.items()}
            self._console.progress(metrics.record(result.step, epoch, "train", unit, means), speed)
        if test is not None:
            losses = {}
            for index in alive:
                line = metrics.record(result.step, epoch, "test", unit, {k: v[index] for k, v in test.items()})
                losses[self._numbers[index]] = line["loss"]
                self._log.write(self._numbers[index], line)
            self._say_epoch(result.step, epoch, losses, speed)
        if result.checkpoint is not None:
            self._log.sync()
            checkpoints.save(self._trainer.host(result.checkpoint), self._record)

    def _say_epoch(self, step: int, epoch: int, losses: Mapping[int, float], speed: float) -> None:
        out = len(self._numbers) - len(losses)
        lost = f", {out} diverged" if out else ""
        said = "no member has a finite loss"
        if losses:
            best = min(losses, key=lambda number: losses[number])
            values = list(losses.values())
            said = (
                f"test loss {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g}, {len(values)} members{lost})"
                f" {self._trainer.unit}, least: member {best} ({_words(self._members[best])})"
            )
        self._console.say(
            f"{self._title}  epoch {epoch}/{self._config.epochs}  step {step:,}  {said}  {speed:,.0f} steps/s"
        )


class _Log:
    """The JSONL files of a program: of the figures there are, `kept` stay, and new lines follow."""

    def __init__(self, directory: Path, kept: Sequence[metrics.Record]):
        path = directory / "metrics.jsonl"
        run_dirs.write_whole(path, "".join(metrics.json_line(line) for line in kept))
        self._metrics = path.open("a", encoding="utf-8")
        self._timing = (directory / "timing.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._timing.close()

    def write(self, member: int, line: metrics.Record) -> None:
        self._metrics.write(metrics.json_line({"member": member, **line}))
        self._metrics.flush()

    def sync(self) -> None:
        """Have the figures on the disk before the checkpoint that goes with them, should the power fail."""
        os.fsync(self._metrics.fileno())

    def time(self, event: str, **values: float) -> None:
        self._timing.write(metrics.json_line({"event": event, **values}))
        self._timing.flush()


def _words(member: Config) -> str:
    """A member's seed and numbers, where they are not the preset's."""
    base = configs.PRESETS[member.preset]
    changed = [name for name in AXES if getattr(member, name) != getattr(base, name)]
    return ", ".join([f"{name} {cell(getattr(member, name))}" for name in changed] + [f"seed {member.seed}"])


def say(text: str) -> None:
    """Tell the person watching."""
    print(one_line(text), file=sys.stderr, flush=True)
