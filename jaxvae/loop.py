"""Training from start to end: the one place with effects.

The device is kept busy: a compiled call is dispatched, and while it runs the host fetches, writes
and draws what the call before it left.

In a job of several processes all of them compute, and come to the same decisions from the same
figures; process 0 alone has files and a voice.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxvae import config as configs
from jaxvae import data, distributed, metrics, parallel, plots
from jaxvae import run_dir as run_dirs
from jaxvae.checkpoint import Checkpoints, Saved
from jaxvae.config import Config, flag
from jaxvae.errors import InputError, SaveError
from jaxvae.lock import RunLock
from jaxvae.pipeline import Pipeline, Span, Values
from jaxvae.signals import StopSignals, unless_stopped
from jaxvae.train_step import TrainState
from jaxvae.trainer import Trainer, splits, steps_per_epoch
from jaxvae.variational import measure_warning, selection_cost
from jaxvae.versions import run_versions, version_warnings

Array = jax.Array

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
    images = data.prepared(images, config)
    if resume:
        assert run_dir is not None
        old = configs.load(run_dir / "config.json")
        if changed := configs.differences(old, config):
            raise InputError(f"--resume: {run_dir} was started with another configuration: {'; '.join(changed)}")
    record = {
        "image_shape": list(images.train.shape[1:]),
        "steps_per_epoch": steps_per_epoch(config, len(images.train)),
        **data.digests(images),
    }
    trainer = Trainer(config, images, parallel.data_parallel(parallel.select_devices(devices)))
    trainer.check_fits()
    return trainer, record


def _train(trainer: Trainer, files: "_RunFiles | None") -> int | None:
    """`train`, once all that could be wrong has been checked. `files` are None but on process 0."""
    saved = files.saved if files is not None else None
    said = distributed.gather([-1 if saved is None else saved.step, files is not None and files.evaluated()])
    step, evaluated = max(step for step, _ in said), any(evaluated for _, evaluated in said)
    state: TrainState | None = None
    if step >= 0:
        state = distributed.from_lead(
            saved.state
            if saved is not None
            else jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), trainer.abstract_state())
        )
    step = max(step, 0)
    total = trainer.config.epochs * trainer.steps_per_epoch
    if step >= total and evaluated:
        if files is not None:
            files.draw_curves()
            files.say(f"nothing to do: {step:,} steps are done already; raise {flag('epochs')} to go on")
        return None
    sink = _RunSink(files)
    with StopSignals(distributed.request_stop) as stop, Pipeline(trainer, sink, stop) as pipeline:
        state = trainer.start(state)
        first: TrainState = state
        # One process of a job cannot leave the others, so there a signal is heeded after the compilation.
        heeded = stop if jax.process_count() == 1 else StopSignals()
        seconds = unless_stopped(lambda: trainer.compile(first), heeded)
        if seconds is None:
            if files is not None:
                files.say("stopped before a step was taken: there is nothing to save")
            return stop.received
        sink.compiled(seconds)
        if jax.process_count() > 1:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
            sink.collective_seconds = parallel.collective_seconds(size, trainer.placement)
        state, step = pipeline.run(state, step, total, evaluated)
        _check_finite(state, step)

        def finish() -> None:
            if sink.failure is not None:
                raise sink.failure
            if files is not None:
                files.finish(state, step)

        # The other processes wait: one that has left is taken for dead, and all are ended.
        distributed.on_lead(finish)
    if pipeline.stopped_by is not None:
        if files is not None:
            files.say(f"saved at step {step:,}; go on with --resume --run-dir {files.run_dir}")
        return pipeline.stopped_by
    if files is not None:
        files.say(f"done: {files.run_dir}")
    return None


class _RunSink:
    """What becomes of a run's results: looked at in every process, written by the one that has files."""

    finished = False

    def __init__(self, files: "_RunFiles | None"):
        self._files = files
        self.failure: SaveError | None = None
        self.collective_seconds: float | None = None  # Of a step, in a job of several processes.

    def compiled(self, seconds: float) -> None:
        if self._files is not None:
            self._files.log.write_timing("compile", seconds=seconds)

    def timed(self, span: Span) -> None:
        self._write(lambda files: files.write_speed(span))
        if self._files is not None and self.collective_seconds is not None:
            advice = parallel.communication_advice(self.collective_seconds, span.seconds / span.steps)
            self.collective_seconds = None  # Once is enough.
            if advice is not None:
                self._files.say(advice)

    def steps(self, step: int, values: Values, speed: Span | None) -> None:
        """Raises `Diverged` in every process alike, and `SaveError` as `_write` does."""
        bad = np.flatnonzero(~np.isfinite(values["loss"]))
        if bad.size:
            first = step - len(values["loss"])
            raise Diverged(f"the loss is {values['loss'][bad[0]]} at step {first + int(bad[0]) + 1:,}")
        self._write(lambda files: files.write_steps(step, values, speed))

    def epoch(
        self,
        step: int,
        evaluations: Mapping[str, Values],
        pictures: Mapping[str, Array] | None,
        checkpoint: TrainState | None,
    ) -> None:
        """Raises as `steps` does."""
        for split, values in evaluations.items():
            if not np.isfinite(values["loss"]).all():
                raise Diverged(f"the {split} loss is not finite at step {step:,}")
        if checkpoint is not None:
            _check_finite(checkpoint, step)
        self._write(lambda files: files.write_epoch(step, evaluations, pictures, checkpoint))

    def _write(self, action: Callable[["_RunFiles"], None]) -> None:
        """Raises `SaveError` where this is the only process; in a job all are told to stop first."""
        if self._files is None or self.failure is not None:
            return
        try:
            with run_dirs.told(self._files.run_dir, SaveError):
                action(self._files)
        except SaveError as error:
            if jax.process_count() == 1:
                raise
            self.failure = error


def _check_finite(state: TrainState, step: int) -> None:
    """Raise `Diverged` for a state that nobody would want to go on from."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))):
        raise Diverged(f"a parameter is not finite at step {step:,}")


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
        self._config, self._steps_per_epoch = trainer.config, trainer.steps_per_epoch
        self._images, self._unit, self._record = trainer.images, trainer.objective.unit, record
        self._like, self._requested, self._resume = trainer.abstract_state(), run_dir, resume
        self._hardware = _hardware(trainer.placement.batch.mesh.size)
        self._versions, self._warnings = run_versions(), list[str]()
        self._watched, *_ = splits(len(self._images.validation) > 0, last=False)
        self._epoch_speed: Span | None = None  # Of the spans that ended in this epoch.

    def __enter__(self) -> Self:
        config = self._config
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
            step = 0 if self.saved is None else self.saved.step
            run_dirs.check_epochs(step, config.epochs, self._steps_per_epoch)
            with run_dirs.told(self.run_dir, InputError):
                (self.run_dir / "images").mkdir(exist_ok=True)
                run_dirs.write_whole(self.run_dir / "config.json", configs.to_json(config))
            self._checkpoints = stack.enter_context(
                Checkpoints(self.run_dir / "checkpoints", config.keep_checkpoints, config.keep_best_checkpoints)
            )
            total = config.epochs * self._steps_per_epoch
            final = ("test",) if self._watched != "test" and step < total else ()
            self.log = stack.enter_context(metrics.RunLog(self.run_dir, step, final))
            window = None if self.saved is None else self.saved.record.get("window")
            self._windows = metrics.Windows(config.log_every, self._steps_per_epoch, window)
            self._console = stack.enter_context(metrics.Console(config.epochs, total, step, self._unit))
            self._stack = stack.pop_all()
        what = configs.describe(config)
        self.say(f"{what} on {self._images.name} ({self._images.source}): {len(self._images.train):,} images")
        self.say(f"{self._hardware}, {self._steps_per_epoch:,} steps an epoch -> {self.run_dir}")
        if (warning := measure_warning(config)) is not None:
            self._warnings.append(warning)
        for warning in self._warnings:
            self.say(warning)
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
                warnings = version_warnings(found.get("versions", {}), self._versions)
                self._warnings += [f"warning: {warning}" for warning in warnings]
            return checkpoints.restore(self._like)

    def say(self, text: str) -> None:
        """Tell the person watching."""
        self._console.say(text)

    def evaluated(self) -> bool:
        """Whether the end of the epoch that ends at the step saved has been seen to."""
        step = 0 if self.saved is None else self.saved.step
        seen = {line["split"] for line in self.log.records if line["step"] == step}
        last = step == self._config.epochs * self._steps_per_epoch
        return seen >= set(splits(len(self._images.validation) > 0, last))

    def write_speed(self, span: Span) -> None:
        """Write how long some steps took."""
        so_far = self._epoch_speed or Span(0, 0, 0.0)
        self._epoch_speed = Span(span.step, so_far.steps + span.steps, so_far.seconds + span.seconds)
        speed = span.per_second
        images = speed * self._config.batch_size
        self.log.write_timing(
            "steps",
            step=span.step,
            steps=span.steps,
            seconds=span.seconds,
            steps_per_second=speed,
            images_per_second=images,
        )

    def write_steps(self, step: int, values: Values, speed: Span | None) -> None:
        """Write the averages that the steps up to `step` complete, and show how far the run has come."""
        self._checkpoints.check()
        for end, means in self._windows.add(step, values):
            self.log.write(metrics.record(end, self._epoch(end), "train", self._unit, means))
        shown = metrics.record(step, self._epoch(step), "train", self._unit, values)
        self._console.progress(shown, speed.per_second if speed else 0.0)

    def write_epoch(
        self,
        step: int,
        evaluations: Mapping[str, Values],
        pictures: Mapping[str, Array] | None,
        checkpoint: TrainState | None,
    ) -> None:
        """Write and show what the end of an epoch left."""
        lines = [
            metrics.record(step, self._epoch(step), split, self._unit, values) for split, values in evaluations.items()
        ]
        seen = {line["split"] for line in self.log.records if line["step"] == step}
        for line in lines:
            if line["split"] not in seen:  # Where a run goes on, some may be there already.
                self.log.write(line)
        train = [line for line in self.log.records if line["split"] == "train" and line["step"] == step]
        speed, self._epoch_speed = self._epoch_speed, None
        self._console.epoch([*train, *lines], speed.per_second if speed else None)
        if pictures is not None:
            self._save_pictures(pictures, step, self._epoch(step))
        if checkpoint is not None:
            validation = next((line for line in lines if line["split"] == "validation"), None)
            self._save(checkpoint, None if validation is None else selection_cost(self._config, validation))

    def _epoch(self, step: int) -> int:
        return -(-step // self._steps_per_epoch)

    def _save(self, state: TrainState, validation_cost: float | None = None) -> None:
        start = time.perf_counter()
        self.log.sync()
        record = {**self._record, "versions": self._versions, "window": self._windows.open()}
        if self._checkpoints.latest_step() == int(state.step):
            # A signal that came before the evaluation had it saved already.
            self._checkpoints.rank(int(state.step), validation_cost)
        else:
            self._checkpoints.save(state, record, validation_cost)
        self.log.write_timing("save", step=int(state.step), blocked_seconds=time.perf_counter() - start)

    def _save_pictures(self, pictures: Mapping[str, Array], step: int, epoch: int) -> None:
        for name, images in pictures.items():
            values = np.asarray(images)
            grid = plots.reconstruction_grid(*values) if name == "reconstructions" else plots.image_grid(values)
            plots.save_png(self.run_dir / "images" / f"{name}_epoch_{epoch:04}.png", grid, scale=2)
            self.log.write_picture(name, grid, step)

    def draw_curves(self) -> None:
        """Draw the run's figures so far."""
        if self.log.records:
            title = configs.describe(self._config)
            plots.save_curves(self.run_dir / "images" / "curves.png", self.log.records, title)

    def finish(self, state: TrainState, step: int) -> None:
        """Save `state` if that has not been done, wait until it is, and draw the curves. Raises `SaveError`."""
        with run_dirs.told(self.run_dir, SaveError):
            if self._checkpoints.latest_step() != step:
                lines = (line for line in self.log.records if line["step"] == step and line["split"] == "validation")
                validation = next(lines, None)
                self._save(state, None if validation is None else selection_cost(self._config, validation))
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
