"""Training from start to end: the one place with effects.

The device is kept busy: a compiled call is dispatched, and while it runs the host fetches, writes
and draws what the call before it left.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae import config as configs
from jaxvae import data, metrics, models, plots
from jaxvae.checkpoint import Checkpoints
from jaxvae.config import Config, flag
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.objectives import OBJECTIVES
from jaxvae.train_step import (
    TrainState,
    build_optimizer,
    init_state,
    intensities,
    make_evaluate,
    make_run_steps,
    make_train_step,
)

Array = jax.Array

SHOWN = 32  # Test images in a picture of reconstructions: one batch of the notes.
SAMPLED = 64  # Samples from the prior in a picture.


class Diverged(RuntimeError):
    """A training loss is NaN or infinite. The message names the step."""


class Schedule(NamedTuple):
    """How a run is cut into compiled calls, as a function of the configuration and the data's size alone."""

    steps_per_call: int
    calls_per_epoch: int

    @property
    def steps_per_epoch(self) -> int:
        return self.steps_per_call * self.calls_per_epoch


def schedule(config: Config, num_images: int) -> Schedule:
    """Equal calls of at most `steps_per_call` steps, so that one program serves the whole run.

    Where the steps of an epoch do not divide into equal calls, the few left over are left out:
    the images are shuffled anew every epoch, so none is left out for good.

    Raises:
      InputError: a batch is larger than the training set.
    """
    steps = num_images // config.batch_size
    if steps == 0:
        raise InputError(f"--batch-size {config.batch_size} is larger than the {num_images} training images")
    calls = -(-steps // config.steps_per_call)
    return Schedule(steps // calls, calls)


class _CallResult(NamedTuple):
    """What a call left on the device, to be fetched while the next one runs. None where it was not due."""

    step: int
    train: Mapping[str, Array]
    test: Mapping[str, Array] | None
    pictures: Mapping[str, Array] | None
    checkpoint: TrainState | None


class _StopSignals:
    """Notes SIGINT and SIGTERM, so that the run can save and stop; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "_StopSignals":
        # Python allows handlers in the main thread only; elsewhere the caller owns the signals.
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()


def train(config: Config, run_dir: Path, resume: bool = False) -> int | None:
    """Train as `config` says, into `run_dir`.

    Args:
      config: what to train. Its dataset "auto" is resolved, and the resolved name recorded.
      run_dir: created if it is not there. Gets config.json, metrics.jsonl, timing.jsonl,
        checkpoints/, images/ and tensorboard/.
      resume: go on from the newest checkpoint of `run_dir`, with the configuration that is there
        but for the fields that may change.

    Returns:
      None if all epochs are done, or the number of the signal that stopped the run; its state is
      saved then.

    Raises:
      InputError: bad input, found before anything is compiled.
      Diverged: a loss is not finite. The last checkpoint is from before that.
    """
    _check_run_dir(run_dir, resume)
    images = data.load(config.dataset, config.data_dir)
    config = replace(
        config, dataset=images.name, data_dir=os.path.abspath(config.data_dir) if config.data_dir else None
    )
    plan = schedule(config, len(images.train))
    if resume:
        _check_resumable(run_dir, config)
    _make_run_dir(run_dir, config)

    total = config.epochs * plan.steps_per_epoch
    record = {
        "image_shape": list(images.train.shape[1:]),
        "train_images_sha256": hashlib.sha256(images.train.data).hexdigest(),
    }
    with (
        _StopSignals() as stop,
        Checkpoints(run_dir / "checkpoints", config.keep_checkpoints) as checkpoints,
    ):
        if resume and checkpoints.latest_step() is not None:
            saved = checkpoints.read_record()
            if saved != record:
                raise InputError(f"--resume: {images.source} are not the images that {run_dir} was trained on")
        trainer = _Trainer(config, plan, images)
        state = trainer.state
        if resume and checkpoints.latest_step() is not None:
            state = checkpoints.restore(state)
        step = int(state.step)
        unit = trainer.objective.unit
        with (
            metrics.RunLog(run_dir, step) as log,
            metrics.Console(config.epochs, total, step, unit) as console,
        ):
            console.say(f"{config.preset} on {images.name} ({images.source}): {len(images.train):,} images")
            console.say(f"{jax.devices()[0].device_kind}, {plan.steps_per_epoch:,} steps an epoch -> {run_dir}")
            if step >= total:
                console.say(f"nothing to do: {step:,} steps are done already; raise {flag('epochs')} to go on")
                return None
            log.write_timing("compile", seconds=trainer.compile(state))
            writer = _Writer(config, plan, run_dir, record, unit, trainer.shown, log, console, checkpoints)
            pending: _CallResult | None = None
            while step < total and stop.received is None:
                state, pending, previous = *trainer.run_call(state, step, total), pending
                step += plan.steps_per_call
                if previous is not None:
                    writer.write(previous)
            if pending is not None:
                writer.write(pending)
            checkpoints.save(state, record)
            if stop.received is None:
                plots.save_curves(run_dir / "images" / "curves.png", log.records)
                console.say(f"done: {run_dir}")
            else:
                name = signal.Signals(stop.received).name
                console.say(f"stopped by {name} at step {step:,}, saved; go on with --resume --run-dir {run_dir}")
            return stop.received


class _Trainer:
    """The device's side of a run: its programs, compiled once, and what they work on."""

    def __init__(self, config: Config, plan: Schedule, images: data.ImageData):
        self.config, self.plan = config, plan
        _, height, width, channels = images.train.shape
        self.model = models.build_model(config, (height, width, channels))
        self.objective = OBJECTIVES[config.objective]
        optimizer = build_optimizer(config)
        self.state = jax.jit(lambda key: init_state(self.model, optimizer, key))(self._key("init"))
        self.train_images = jnp.asarray(images.train)
        self.test_images = jnp.asarray(images.test)
        self.shown = images.test[:SHOWN]
        step = make_train_step(self.model, self.objective, optimizer)
        self._run_steps: Any = jax.jit(
            make_run_steps(step, config.batch_size, plan.steps_per_epoch, plan.steps_per_call),
            donate_argnums=0,
        )
        self._evaluate: Any = jax.jit(make_evaluate(self.model, self.objective))
        self._draw: Any = jax.jit(self._pictures)
        self._copy: Any = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def _key(self, purpose: Any) -> Array:
        return purpose_key(self.config.seed, purpose)

    def compile(self, state: TrainState) -> float:
        """Compile the training program; the seconds it took."""
        start = time.perf_counter()
        keys = self._key("shuffle"), self._key("train-noise")
        self._run_steps = self._run_steps.lower(state, self.train_images, *keys).compile()
        return time.perf_counter() - start

    def run_call(self, state: TrainState, step: int, total: int) -> tuple[TrainState, _CallResult]:
        """Dispatch the call that starts at `step`, and what is due after it. Waits for nothing."""
        keys = self._key("shuffle"), self._key("train-noise")
        state, train = self._run_steps(state, self.train_images, *keys)
        step += self.plan.steps_per_call
        epoch, inside = divmod(step, self.plan.steps_per_epoch)

        def due(every: int) -> bool:
            return not inside and (step == total or (every > 0 and epoch % every == 0))

        return state, _CallResult(
            step=step,
            train=train,
            test=self._evaluate(state.params, self.test_images, self._key("test-noise")) if not inside else None,
            pictures=self._draw(state.params) if due(self.config.image_every) else None,
            # A copy, since the state itself is donated to the next call.
            checkpoint=self._copy(state) if due(self.config.checkpoint_every) else None,
        )

    def _pictures(self, params: Any) -> dict[str, Array]:
        key = self._key("pictures")
        pictures = {
            "reconstructions": models.reconstruct(self.model, params, intensities(jnp.asarray(self.shown)), key)
        }
        if isinstance(self.model, models.VAE):
            pictures["samples"] = models.sample(self.model, params, key, SAMPLED)
        return pictures


class _Writer:
    """The host's side of a run: what a call left goes to the files and to the person watching."""

    def __init__(
        self,
        config: Config,
        plan: Schedule,
        run_dir: Path,
        record: dict[str, Any],
        unit: str,
        shown: NDArray[np.uint8],
        log: metrics.RunLog,
        console: metrics.Console,
        checkpoints: Checkpoints,
    ):
        self._config, self._plan, self._run_dir, self._record = config, plan, run_dir, record
        self._unit, self._shown = unit, shown
        self._log, self._console, self._checkpoints = log, console, checkpoints
        self._clock = time.perf_counter()

    def write(self, result: _CallResult) -> None:
        """Wait for the result of a call, and put it where it belongs. Raises `Diverged`."""
        train = {name: np.asarray(values) for name, values in result.train.items()}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        speed = self._plan.steps_per_call / seconds
        self._log.write_timing(
            "call",
            step=result.step,
            seconds=seconds,
            steps_per_second=speed,
            images_per_second=speed * self._config.batch_size,
        )
        first = result.step - self._plan.steps_per_call
        bad = np.flatnonzero(~np.isfinite(train["loss"]))
        if bad.size:
            raise Diverged(f"the loss is {train['loss'][bad[0]]} at step {first + int(bad[0]) + 1:,}")

        epoch = -(-result.step // self._plan.steps_per_epoch)
        window = self._config.log_every or self._plan.steps_per_call
        for start in range(0, self._plan.steps_per_call, window):
            part = {name: values[start : start + window] for name, values in train.items()}
            step = first + min(start + window, self._plan.steps_per_call)
            self._log.write(metrics.record(step, epoch, "train", self._unit, part))
        self._console.progress(result.step, epoch, metrics.words(self._log.records[-1]), speed)
        if result.test is not None:
            train_line = metrics.record(result.step, epoch, "train", self._unit, train)
            test_values = {name: np.asarray(values) for name, values in result.test.items()}
            test_line = metrics.record(result.step, epoch, "test", self._unit, test_values)
            self._log.write(test_line)
            self._console.epoch(train_line, test_line, speed)
        if result.pictures is not None:
            self._save_pictures(result.pictures, result.step, epoch)
        if result.checkpoint is not None:
            self._checkpoints.save(result.checkpoint, self._record)

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
    holds_run = (run_dir / "config.json").exists()
    if resume and not holds_run:
        raise InputError(f"--resume: {run_dir} holds no run (no config.json)")
    if holds_run and not resume:
        raise InputError(f"--run-dir {run_dir} already holds a run: add --resume to go on, or name another")


def _check_resumable(run_dir: Path, config: Config) -> None:
    changed = configs.differences(configs.load(run_dir / "config.json"), config)
    if changed:
        raise InputError(f"--resume: {run_dir} was started with another configuration: {'; '.join(changed)}")


def _make_run_dir(run_dir: Path, config: Config) -> None:
    path = run_dir / "config.json"
    fresh = path.with_suffix(".json.tmp")
    try:
        (run_dir / "images").mkdir(parents=True, exist_ok=True)
        fresh.write_text(configs.to_json(config), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise InputError(f"--run-dir {run_dir} cannot be written: {error.strerror}") from None
