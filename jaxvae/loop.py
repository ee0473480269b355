"""Training from start to end: the one place with effects.

The device is kept busy: a compiled call is dispatched, and while it runs the host fetches, writes
and draws what the call before it left.

In a job of several processes all of them compute, and come to the same decisions from the same
figures; process 0 alone has files and a voice.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from jaxvae import config as configs
from jaxvae import data, distributed, metrics, parallel, plots
from jaxvae import run_dir as run_dirs
from jaxvae.checkpoint import Checkpoints, Saved
from jaxvae.config import Config, flag
from jaxvae.errors import InputError, SaveError
from jaxvae.lock import RunLock
from jaxvae.train_step import TrainState
from jaxvae.trainer import Due, Schedule, Trainer, schedule

Array = jax.Array

FAILED = 255  # Said among the processes of a job in place of a signal: a file could not be written.

RUN_FILES = ("config.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "images", "tensorboard")


class Diverged(RuntimeError):
    """A loss or a parameter is NaN or infinite. The message names the step."""


def train(config: Config, run_dir: Path | None = None, resume: bool = False, devices: int | None = None) -> int | None:
    """Train as `config` says, into `run_dir`.

    Args:
      config: what to train. Its dataset "auto" is resolved, and the resolved name recorded.
      run_dir: a directory that holds no run yet, created if need be; None: a new one,
        runs/PRESET-DATE-TIME. Gets `RUN_FILES`.
      resume: go on from the newest undamaged checkpoint of `run_dir`, with the configuration that
        is there but for the fields that may change.
      devices: of every process, to share each batch; None: all there are.

    Returns:
      None if all epochs are done, or the number of the signal that stopped the run; its state is
      saved then.

    Raises:
      InputError: bad input, found before anything is compiled; the run directory is as it was.
      Diverged: a loss or a parameter is not finite. All checkpoints are from before that.
      SaveError: a checkpoint could not be saved. Those before it are intact.
    """
    trainer, record = distributed.agreed(
        lambda: _prepare(config, run_dir, resume, devices),
        lambda prepared: {
            **asdict(prepared[0].config),
            **prepared[1],
            "run_dir": str(run_dir),
            "resume": resume,
            "devices": devices,
        },
    )
    with ExitStack() as stack:
        files = distributed.on_lead(lambda: stack.enter_context(_RunFiles(trainer, run_dir, resume, record)))
        return _train(trainer, files)


def _prepare(config: Config, run_dir: Path | None, resume: bool, devices: int | None) -> tuple[Trainer, dict[str, Any]]:
    """Check all that can be checked without writing, and read the images. Every process does."""
    if run_dir is not None:
        run_dirs.check(run_dir, resume, RUN_FILES)
    images = data.load(config.dataset, config.data_dir)
    config = with_absolute_paths(replace(config, dataset=images.name))
    if config.inputs == "static":
        images = data.binarized(images, config.static_seed)
    if resume:
        assert run_dir is not None
        old = configs.load(run_dir / "config.json")
        if changed := configs.differences(old, config):
            raise InputError(f"--resume: {run_dir} was started with another configuration: {'; '.join(changed)}")
    plan = schedule(config, len(images.train))
    record = {
        "image_shape": list(images.train.shape[1:]),
        "steps_per_epoch": plan.steps_per_epoch,
        "train_images_sha256": data.digest(images.train),
        "test_images_sha256": data.digest(images.test),
    }
    return Trainer(config, plan, images, parallel.data_parallel(parallel.select_devices(devices))), record


def _train(trainer: Trainer, files: "_RunFiles | None") -> int | None:
    """`train`, once all that could be wrong has been checked. `files` are None but on process 0."""
    saved = files.saved if files is not None else None
    step = int(max(distributed.gather(-1 if saved is None else saved.step)))
    state: TrainState | None = None
    if step >= 0:
        state = distributed.from_lead(
            saved.state
            if saved is not None
            else jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), trainer.abstract_state())
        )
    step = max(step, 0)
    total = trainer.config.epochs * trainer.plan.steps_per_epoch
    if step >= total:
        if files is not None:
            files.draw_curves()
            files.say(f"nothing to do: {step:,} steps are done already; raise {flag('epochs')} to go on")
        return None
    with StopSignals() as stop, ThreadPoolExecutor(1) as watcher:
        state = trainer.start(state)
        # In a thread of its own, so that this one can be told to end at once.
        seconds = watcher.submit(trainer.compile, state).result()
        if files is not None:
            files.log.write_timing("compile", seconds=seconds)
        pending: _CallResult | None = None
        stopped_by = stop.agreed(trainer)
        while step < total and not stopped_by:
            dispatched = time.perf_counter()
            state, train_terms = trainer.run_steps(state)
            step += trainer.plan.steps_per_call
            # A thread of its own sees when results are ready, however long the host writes.
            trained = watcher.submit(_when_ready, train_terms)
            due = trainer.run_due(state, step, total)
            done = watcher.submit(_when_ready, due)
            result = _CallResult(step, train_terms, due, dispatched, trained, done)
            if pending is not None:
                _take(pending, trainer.plan, files, stop)
            pending = result
            stopped_by = stop.agreed(trainer)
        if pending is not None:
            _take(pending, trainer.plan, files, stop)
        _check_finite(state, step)

        def finish() -> None:
            if stop.failure is not None:
                raise stop.failure
            if files is not None:
                files.finish(state, step)

        # The other processes wait: one that has left is taken for dead, and all are ended.
        distributed.on_lead(finish)
    if step < total:
        if files is not None:
            files.say(f"saved at step {step:,}; go on with --resume --run-dir {files.run_dir}")
        return stopped_by
    if files is not None:
        files.say(f"done: {files.run_dir}")
    return None


class _CallResult(NamedTuple):
    """What a call that ended at `step` left on the device, to be fetched while the next one runs.

    And on the clock: when the call was dispatched, when its steps were done, and when all that was
    due after it was.
    """

    step: int
    train: Mapping[str, Array]
    due: Due
    dispatched: float
    trained: "Future[float]"
    done: "Future[float]"


def _when_ready(values: Any) -> float:
    jax.block_until_ready(values)
    return time.perf_counter()


def _take(result: _CallResult, plan: Schedule, files: "_RunFiles | None", stop: "StopSignals") -> None:
    """Wait for the result of a call, and put it where it belongs.

    Raises:
      Diverged: in every process alike.
      SaveError: where this is the only process; in a job all are told to stop first.
    """
    first = result.step - plan.steps_per_call
    train = {name: np.asarray(values) for name, values in result.train.items()}
    bad = np.flatnonzero(~np.isfinite(train["loss"]))
    if bad.size:
        raise Diverged(f"the loss is {train['loss'][bad[0]]} at step {first + int(bad[0]) + 1:,}")
    test = None
    if result.due.test is not None:
        test = {name: np.asarray(values) for name, values in result.due.test.items()}
        if not np.isfinite(test["loss"]).all():
            raise Diverged(f"the test loss is not finite at step {result.step:,}")
    if result.due.checkpoint is not None:
        _check_finite(result.due.checkpoint, result.step)
    if files is None or stop.failure is not None:
        return
    try:
        files.write(result, train, test)
    except SaveError as error:
        if jax.process_count() == 1:
            raise
        stop.failure = error


def _check_finite(state: TrainState, step: int) -> None:
    """Raise `Diverged` for a state that nobody would want to go on from."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))):
        raise Diverged(f"a parameter is not finite at step {step:,}")


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP, so that the run can save and stop; a second one ends it at once.

    Attributes:
      received: the first signal, or None.
      failure: what keeps this process from going on, which is to be told to the others of its job.
    """

    def __init__(self) -> None:
        self.failure: SaveError | None = None
        self.received: int | None = None
        self._said: Array | None = None

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only; elsewhere the caller owns the signals.
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As nohup leaves it.
                numbers.append(signal.SIGHUP)
            self._old = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # Not by an exception: a save may be under way, whose threads would be waited for for ever.
            os._exit(128 + number)
        self.received = number
        # Not by the console: the handler may have interrupted it.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # The terminal may be gone.
            os.write(2, f"{name}: saving after this call; once more to end at once\n".encode())

    def agreed(self, trainer: Trainer) -> int | None:
        """The signal to stop at, the same in every process that asks as often; None: go on.

        In a job, that a process was told travels with one call and is read with the next, so that
        no process waits for another.
        """
        if jax.process_count() == 1:
            return self.received
        number = self.received or 0 if self.failure is None else FAILED
        said, self._said = self._said, trainer.greatest(number)
        return None if said is None else int(said) or None


class _RunFiles:
    """The host's side of a run: its files, and the person watching. A context manager.

    Args:
      trainer: what computes the run.
      run_dir: None: a new one.
      resume: whether to go on with what is in `run_dir`; `saved` is what it holds, if anything.
      record: what the run's checkpoints say they belong to.

    Raises:
      InputError: the directory is in use, is of another run, cannot be written, or holds nothing
        that can be read.
    """

    def __init__(self, trainer: Trainer, run_dir: Path | None, resume: bool, record: dict[str, Any]):
        self._config, self._plan, self._shown = trainer.config, trainer.plan, trainer.shown
        self._images, self._unit, self._record = trainer.images, trainer.objective.unit, record
        self._like, self._requested, self._resume = trainer.abstract_state(), run_dir, resume
        self._hardware = _hardware(trainer.placement.batch.mesh.size)
        self._device_free = 0.0

    def __enter__(self) -> Self:
        config, plan = self._config, self._plan
        with ExitStack() as stack:
            if self._resume:
                assert self._requested is not None
                self.run_dir = self._requested
                stack.enter_context(RunLock(self.run_dir))
                metrics.read_records(self.run_dir / "metrics.jsonl")
                self.saved: Saved[TrainState] | None = self._restore()
            else:
                self.run_dir = run_dirs.make(self._requested, config.preset)
                stack.enter_context(RunLock(self.run_dir))
                run_dirs.check_empty(self.run_dir, RUN_FILES)
                self.saved = None
            with run_dirs.told(self.run_dir, InputError):
                (self.run_dir / "images").mkdir(exist_ok=True)
                run_dirs.write_whole(self.run_dir / "config.json", configs.to_json(config))
            step = 0 if self.saved is None else self.saved.step
            self._checkpoints = stack.enter_context(
                Checkpoints(self.run_dir / "checkpoints", config.keep_checkpoints, config.keep_best_checkpoints)
            )
            self.log = stack.enter_context(metrics.RunLog(self.run_dir, step))
            total = config.epochs * plan.steps_per_epoch
            self._console = stack.enter_context(metrics.Console(config.epochs, total, step, self._unit))
            self._stack = stack.pop_all()
        self.say(f"{config.preset} on {self._images.name} ({self._images.source}): {len(self._images.train):,} images")
        self.say(f"{self._hardware}, {plan.steps_per_epoch:,} steps an epoch -> {self.run_dir}")
        if self._resume:
            self.say(f"going on from step {step:,}" if self.saved else "no checkpoint was saved: starting anew")
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _restore(self) -> Saved[TrainState] | None:
        with Checkpoints(self.run_dir / "checkpoints") as checkpoints:
            if checkpoints.latest_step() is not None:
                found = checkpoints.read_record()
                if changed := [name for name, value in self._record.items() if found.get(name) != value]:
                    old, new = configs.load(self.run_dir / "config.json").dataset, self._config.dataset
                    differs = f"dataset: {old} -> {new}" if old != new else f"another {', '.join(changed)}"
                    raise InputError(
                        f"--resume: {self._images.source}: not the images that {self.run_dir} was trained on"
                        f" ({differs})"
                    )
            return checkpoints.restore(self._like)

    def say(self, text: str) -> None:
        """Tell the person watching."""
        self._console.say(text)

    def write(self, result: _CallResult, train: Mapping[str, Any], test: Mapping[str, Any] | None) -> None:
        """Put what a call left, on the host by now, into the files and before the person watching.

        Raises:
          SaveError: a file could not be written.
        """
        with run_dirs.told(self.run_dir, SaveError):
            self._write(result, train, test)

    def _write(self, result: _CallResult, train: Mapping[str, Any], test: Mapping[str, Any] | None) -> None:
        seconds = result.trained.result() - max(result.dispatched, self._device_free)
        self._device_free = result.done.result()
        speed = self._plan.steps_per_call / seconds
        self.log.write_timing(
            "call",
            step=result.step,
            seconds=seconds,
            steps_per_second=speed,
            images_per_second=speed * self._config.batch_size,
        )
        first = result.step - self._plan.steps_per_call
        epoch = -(-result.step // self._plan.steps_per_epoch)
        window = self._config.log_every or self._plan.steps_per_call
        for start in range(0, self._plan.steps_per_call, window):
            part = {name: values[start : start + window] for name, values in train.items()}
            step = first + min(start + window, self._plan.steps_per_call)
            self.log.write(metrics.record(step, epoch, "train", self._unit, part))
        train_line = metrics.record(result.step, epoch, "train", self._unit, train)
        self._console.progress(train_line, speed)
        test_loss = None
        if test is not None:
            test_line = metrics.record(result.step, epoch, "test", self._unit, test)
            test_loss = test_line["loss"]
            self.log.write(test_line)
            self._console.epoch(train_line, test_line, speed)
        if result.due.pictures is not None:
            self._save_pictures(result.due.pictures, result.step, epoch)
        if result.due.checkpoint is not None:
            self._save(result.due.checkpoint, test_loss)

    def _save(self, state: TrainState, test_loss: float | None = None) -> None:
        start = time.perf_counter()
        self.log.sync()
        self._checkpoints.save(state, self._record, test_loss)
        self.log.write_timing("save", step=int(state.step), blocked_seconds=time.perf_counter() - start)

    def _save_pictures(self, pictures: Mapping[str, Array], step: int, epoch: int) -> None:
        for name, images in pictures.items():
            values = np.asarray(images)
            grid = (
                plots.reconstruction_grid(self._shown, values)
                if name == "reconstructions"
                else plots.image_grid(values)
            )
            plots.save_png(self.run_dir / "images" / f"{name}_epoch_{epoch:04}.png", grid, scale=2)
            self.log.write_picture(name, grid, step)

    def draw_curves(self) -> None:
        """Draw the run's figures so far."""
        if self.log.records:
            plots.save_curves(self.run_dir / "images" / "curves.png", self.log.records)

    def finish(self, state: TrainState, step: int) -> None:
        """Save `state` if that has not been done, wait until it is, and draw the curves. Raises `SaveError`."""
        with run_dirs.told(self.run_dir, SaveError):
            if self._checkpoints.latest_step() != step:
                self._save(state)
            self.draw_curves()
            self._checkpoints.wait()


def _hardware(devices: int) -> str:
    kind: str = jax.devices()[0].device_kind
    processes = jax.process_count()
    return kind + (f" x {devices}" if devices > 1 else "") + (f" in {processes} processes" if processes > 1 else "")


def with_absolute_paths(config: Config) -> Config:
    """`config`, with paths that mean the same wherever the run is resumed from."""
    named = config.dataset in data.DATASETS
    return replace(
        config,
        dataset=config.dataset if named else os.path.abspath(config.dataset),
        data_dir=os.path.abspath(config.data_dir) if config.data_dir else None,
    )
