"""Training from start to end: the one place with effects.

The device is kept busy: a compiled call is dispatched, and while it runs the host fetches, writes
and draws what the call before it left.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from jaxvae import config as configs
from jaxvae import data, metrics, plots
from jaxvae.checkpoint import Checkpoints
from jaxvae.config import Config, flag
from jaxvae.errors import InputError
from jaxvae.train_step import TrainState, abstract_state
from jaxvae.trainer import Due, Trainer, schedule

Array = jax.Array

RUN_FILES = ("config.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "images", "tensorboard")


class Diverged(RuntimeError):
    """A loss or a parameter is NaN or infinite. The message names the step."""


def train(config: Config, run_dir: Path | None = None, resume: bool = False) -> int | None:
    """Train as `config` says, into `run_dir`.

    Args:
      config: what to train. Its dataset "auto" is resolved, and the resolved name recorded.
      run_dir: a directory that holds no run yet, created if need be; None: a new one,
        runs/PRESET-DATE-TIME. Gets `RUN_FILES`.
      resume: go on from the newest checkpoint of `run_dir`, with the configuration that is there
        but for the fields that may change.

    Returns:
      None if all epochs are done, or the number of the signal that stopped the run; its state is
      saved then.

    Raises:
      InputError: bad input, found before anything is compiled; the run directory is as it was.
      Diverged: a loss or a parameter is not finite. All checkpoints are from before that.
    """
    if run_dir is not None:
        _check_run_dir(run_dir, resume)
    images = data.load(config.dataset, config.data_dir)
    config = _with_absolute_paths(replace(config, dataset=images.name))
    plan = schedule(config, len(images.train))
    record = {
        "image_shape": list(images.train.shape[1:]),
        "steps_per_epoch": plan.steps_per_epoch,
        "train_images_sha256": data.digest(images.train),
        "test_images_sha256": data.digest(images.test),
    }
    trainer = Trainer(config, plan, images)
    if run_dir is None or not resume:
        run_dir = _claim_run_dir(run_dir, config)
        return _train(trainer, run_dir, record, None)
    old = configs.load(run_dir / "config.json")
    if changed := configs.differences(old, config):
        raise InputError(f"--resume: {run_dir} was started with another configuration: {'; '.join(changed)}")
    metrics.read_records(run_dir / "metrics.jsonl")
    state = None
    if (run_dir / "checkpoints").exists():
        with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
            if checkpoints.latest_step() is not None:
                if checkpoints.read_record() != record:
                    raise InputError(
                        f"--resume: {images.source}: not the images that {run_dir} was trained on "
                        f"(dataset: {old.dataset} -> {config.dataset})"
                    )
                state = checkpoints.restore(abstract_state(trainer.model, trainer.optimizer))
    _write_config(run_dir, config)
    return _train(trainer, run_dir, record, state)


def _train(trainer: Trainer, run_dir: Path, record: dict[str, Any], state: TrainState | None) -> int | None:
    """`train`, once all that could be wrong has been checked. `state` is None for a fresh run."""
    config, plan, images = trainer.config, trainer.plan, trainer.images
    total = config.epochs * plan.steps_per_epoch
    step = 0 if state is None else int(state.step)
    curves = run_dir / "images" / "curves.png"
    with (
        Checkpoints(run_dir / "checkpoints", config.keep_checkpoints) as checkpoints,
        metrics.RunLog(run_dir, step) as log,
        metrics.Console(config.epochs, total, step, trainer.objective.unit) as console,
    ):
        console.say(f"{config.preset} on {images.name} ({images.source}): {len(images.train):,} images")
        console.say(f"{jax.devices()[0].device_kind}, {plan.steps_per_epoch:,} steps an epoch -> {run_dir}")
        if step >= total:
            if log.records:
                plots.save_curves(curves, log.records)
            console.say(f"nothing to do: {step:,} steps are done already; raise {flag('epochs')} to go on")
            return None
        state = trainer.start(state)
        log.write_timing("compile", seconds=trainer.compile(state))
        writer = _Writer(trainer, run_dir, record, log, console, checkpoints)
        with _StopSignals(console) as stop, ThreadPoolExecutor(1) as watcher:
            pending: _CallResult | None = None
            while step < total and stop.received is None:
                dispatched = time.perf_counter()
                state, train_terms = trainer.run_steps(state)
                step += plan.steps_per_call
                # A thread of its own sees when results are ready, however long the host writes.
                trained = watcher.submit(_when_ready, train_terms)
                due = trainer.run_due(state, step, total)
                done = watcher.submit(_when_ready, due)
                result = _CallResult(step, train_terms, due, dispatched, trained, done)
                if pending is not None:
                    writer.write(pending)
                pending = result
            if pending is not None:
                writer.write(pending)
            if checkpoints.latest_step() != step:
                writer.save(state)
            if log.records:
                plots.save_curves(curves, log.records)
        if step < total and stop.received is not None:
            console.say(f"saved at step {step:,}; go on with --resume --run-dir {run_dir}")
            return stop.received
        console.say(f"done: {run_dir}")
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


class _StopSignals:
    """Notes SIGINT and SIGTERM, so that the run can save and stop; a second one ends it at once."""

    def __init__(self, console: metrics.Console) -> None:
        self.received: int | None = None
        self._console = console

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only; elsewhere the caller owns the signals.
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # Not by an exception: a save may be under way, whose threads would be waited for for ever.
            os._exit(128 + number)
        self.received = number
        # Not by `say`: the handler may have interrupted it.
        name = signal.Signals(number).name
        os.write(2, f"{name}: saving after this call; once more to end at once\n".encode())


class _Writer:
    """The host's side of a run: what a call left goes to the files and to the person watching."""

    def __init__(
        self,
        trainer: Trainer,
        run_dir: Path,
        record: dict[str, Any],
        log: metrics.RunLog,
        console: metrics.Console,
        checkpoints: Checkpoints,
    ):
        self._config, self._plan, self._shown = trainer.config, trainer.plan, trainer.shown
        self._unit = trainer.objective.unit
        self._run_dir, self._record = run_dir, record
        self._log, self._console, self._checkpoints = log, console, checkpoints
        self._device_free = 0.0

    def write(self, result: _CallResult) -> None:
        """Wait for the result of a call, and put it where it belongs. Raises `Diverged`."""
        seconds = result.trained.result() - max(result.dispatched, self._device_free)
        self._device_free = result.done.result()
        speed = self._plan.steps_per_call / seconds
        self._log.write_timing(
            "call",
            step=result.step,
            seconds=seconds,
            steps_per_second=speed,
            images_per_second=speed * self._config.batch_size,
        )
        first = result.step - self._plan.steps_per_call
        train = {name: np.asarray(values) for name, values in result.train.items()}
        bad = np.flatnonzero(~np.isfinite(train["loss"]))
        if bad.size:
            raise Diverged(f"the loss is {train['loss'][bad[0]]} at step {first + int(bad[0]) + 1:,}")

        epoch = -(-result.step // self._plan.steps_per_epoch)
        window = self._config.log_every or self._plan.steps_per_call
        for start in range(0, self._plan.steps_per_call, window):
            part = {name: values[start : start + window] for name, values in train.items()}
            step = first + min(start + window, self._plan.steps_per_call)
            self._log.write(metrics.record(step, epoch, "train", self._unit, part))
        train_line = metrics.record(result.step, epoch, "train", self._unit, train)
        self._console.progress(train_line, speed)
        if result.due.test is not None:
            test = {name: np.asarray(values) for name, values in result.due.test.items()}
            if not np.isfinite(test["loss"]).all():
                raise Diverged(f"the test loss is not finite at step {result.step:,}")
            test_line = metrics.record(result.step, epoch, "test", self._unit, test)
            self._log.write(test_line)
            self._console.epoch(train_line, test_line, speed)
        if result.due.pictures is not None:
            self._save_pictures(result.due.pictures, result.step, epoch)
        if result.due.checkpoint is not None:
            self.save(result.due.checkpoint)

    def save(self, state: TrainState) -> None:
        """Save a checkpoint. Raises `Diverged` rather than save a state that is not finite."""
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))):
            raise Diverged(f"a parameter is not finite at step {int(state.step):,}")
        self._checkpoints.save(state, self._record)

    def _save_pictures(self, pictures: Mapping[str, Array], step: int, epoch: int) -> None:
        for name, images in pictures.items():
            values = np.asarray(images)
            grid = (
                plots.reconstruction_grid(self._shown, values)
                if name == "reconstructions"
                else plots.image_grid(values)
            )
            plots.save_png(self._run_dir / "images" / f"{name}_epoch_{epoch:04}.png", grid, scale=2)
            self._log.write_picture(name, grid, step)


def _check_run_dir(run_dir: Path, resume: bool) -> None:
    """Refuse, before anything is read, a run directory that holds the wrong thing."""
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"--run-dir {run_dir} is not a directory")
    if resume and not (run_dir / "config.json").is_file():
        raise InputError(f"--resume: {run_dir} holds no run (no config.json)")
    found = [name for name in RUN_FILES if (run_dir / name).exists()]
    if found and not resume:
        raise InputError(
            f"--run-dir {run_dir} already holds a run ({found[0]}): add --resume to go on, or name another directory"
        )


def _claim_run_dir(run_dir: Path | None, config: Config) -> Path:
    """Make a fresh run directory, and make sure that no other process does."""
    try:
        if run_dir is None:
            name = time.strftime(f"{config.preset}-%Y%m%d-%H%M%S")
            for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
                run_dir = Path("runs") / (name + suffix)
                try:
                    run_dir.mkdir(parents=True)
                    break
                except FileExistsError:
                    continue
        assert run_dir is not None
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.json").open("x").close()
        _write_config(run_dir, config)
        (run_dir / "images").mkdir(exist_ok=True)
    except FileExistsError:
        raise InputError(f"--run-dir {run_dir} already holds a run") from None
    except OSError as error:
        raise InputError(f"--run-dir {run_dir} cannot be written: {error.strerror}") from None
    return run_dir


def _write_config(run_dir: Path, config: Config) -> None:
    # The old file stays whole until the new one is.
    fresh = run_dir / "config.json.tmp"
    fresh.write_text(configs.to_json(config), encoding="utf-8")
    fresh.replace(run_dir / "config.json")


def _with_absolute_paths(config: Config) -> Config:
    """`config`, with paths that mean the same wherever the run is resumed from."""
    named = config.dataset in data.DATASETS
    return replace(
        config,
        dataset=config.dataset if named else os.path.abspath(config.dataset),
        data_dir=os.path.abspath(config.data_dir) if config.data_dir else None,
    )
