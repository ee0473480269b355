"""Training from start to end: the only module of training with side effects.

The device is kept busy: a compiled call is dispatched, and while it runs the host fetches, writes
and draws the results of the call before it.

In a job of several processes, all compute and make the same decisions from the same metrics. Only
process 0 writes files and prints.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae import config as configs
from jaxvae import config_file, data, errors
from jaxvae.components import SLOTS
from jaxvae.config import Config
from jaxvae.distributed import devices as parallel
from jaxvae.distributed import job as distributed
from jaxvae.errors import Diverged, InputError, SaveError
from jaxvae.options import flag
from jaxvae.own import blamed, is_own
from jaxvae.run import directory as run_dirs
from jaxvae.run.trackers import start as trackers
from jaxvae.train.files import RUN_FILES, RunFiles
from jaxvae.train.pipeline import Pipeline, Span, Values
from jaxvae.train.programs import steps_per_epoch
from jaxvae.train.signals import StopSignals, unless_stopped
from jaxvae.train.step import TrainState
from jaxvae.train.trainer import Trainer

Array = jax.Array

INPUT_BOUND = 0.1  # The part of its training time that a run may wait for images before it says so.


class Outcome(NamedTuple):
    """How training ended.

    Attributes:
      run_dir: the run directory; None if this process of a job does not know it.
      stopped_by: the number of the signal that stopped the run, after a save unless no step was taken; None if all
        epochs are done.
    """

    run_dir: Path | None
    stopped_by: int | None


def train(
    config: Config,
    run_dir: Path | None = None,
    resume: bool = False,
    devices: int | None = None,
    images: data.ImageData | None = None,
) -> Outcome:
    """Train as `config` says, into `run_dir`.

    Args:
      config: what to train. Its dataset "auto" is resolved, and the resolved name recorded.
      run_dir: a directory that holds no run yet, created if need be; None: a new one,
        runs/PRESET-DATE-TIME. Gets `RUN_FILES`.
      resume: resume the run in `run_dir` from its newest undamaged checkpoint. `config` must be that
        of the run, except for the fields that may change.
      devices: how many of every process share each batch; None: all.
      images: used instead of those that `config` names.

    Raises:
      InputError: bad input, found before anything is compiled; the run directory is as it was.
      Diverged: a loss or a parameter is not finite. All checkpoints are from before that.
      SaveError: a checkpoint could not be saved. Those before it are intact.
    """
    trainer, record = distributed.agreed(
        lambda: _prepare(config, run_dir, resume, devices, images),
        lambda prepared: {
            **asdict(prepared[0].config),
            **prepared[1],
            "images": prepared[0].where,  # One may have less free memory than the others.
            "run_dir": str(run_dir),
            "resume": resume,
            "devices": devices,
        },
    )
    with trainer, ExitStack() as stack:

        def run_files() -> RunFiles:
            draws_maps = images is None and trainer.config.image_every
            labels = data.labels_beside(trainer.config, trainer.images) if draws_maps else None
            return stack.enter_context(RunFiles(trainer, run_dir, resume, record, labels))

        files = distributed.on_lead(run_files)
        stopped_by = _train(trainer, files)
        return Outcome(run_dir if files is None else files.run_dir, stopped_by)


def _prepare(
    config: Config, run_dir: Path | None, resume: bool, devices: int | None, given: data.ImageData | None
) -> tuple[Trainer, dict[str, Any]]:
    """Check all that can be checked without writing, and read the images. Every process does this."""
    if run_dir is not None:
        run_dirs.check(run_dir, resume, RUN_FILES)
    if distributed.is_lead():
        trackers.check(config.track)
    # All processes read the images; one tells of it.
    warn = errors.warn if distributed.is_lead() else lambda _: None
    images = given or data.load_for(config, warn)
    config = data.for_run(config, images)
    config = config if given else with_absolute_paths(config)
    images = data.prepared(images, config)
    if resume:
        assert run_dir is not None
        old = config_file.load(run_dir / "config.json")
        if changed := configs.differences(old, config):
            raise InputError(f"--resume: {run_dir} was started with another configuration: {'; '.join(changed)}")
    record = {
        "image_shape": list(images.train.shape[1:]),
        "steps_per_epoch": steps_per_epoch(config, len(images.train)),
        **data.identity(images),
    }
    components = [f"{flag(slot)} {name}" for slot in ("model", *SLOTS) if is_own(name := getattr(config, slot))]
    placement = parallel.data_parallel(parallel.select_devices(devices))
    with blamed(components):
        trainer = Trainer(config, images, placement)
        trainer.check_fits()
        if components:
            trainer.trace()
    return trainer, record


def _train(trainer: Trainer, files: "RunFiles | None") -> int | None:
    """`train`, after all checks. `files` is None except on process 0."""
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
            files.draw_map()
            files.say(f"nothing to do: {step:,} steps are done already; raise {flag('epochs')} to go on")
        return None
    sink = _RunSink(files)
    with StopSignals(distributed.request_stop) as stop, Pipeline(trainer, sink, stop) as pipeline:
        state = trainer.start(state)
        first: TrainState = state
        # A process cannot leave its job alone, so in a job a signal is heeded after the compilation.
        heeded = stop if jax.process_count() == 1 else StopSignals()
        seconds = unless_stopped(lambda: trainer.compile(first), heeded)
        if seconds is None:
            if files is not None:
                files.say("stopped before a step was taken: there is nothing to save")
            return stop.received
        if files is not None:
            files.log.write_timing("compile", seconds=seconds)
        if jax.process_count() > 1:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
            sink.collective_seconds = parallel.collective_seconds(size, trainer.placement)
        state, step = pipeline.run(state, step, total, evaluated)
        _check_finite(state, step)

        def finish() -> None:
            if sink.failure is not None:
                raise sink.failure
            if files is not None:
                files.finish(state, step, pipeline.stopped_by is None)

        # The other processes wait: one that left would count as lost, and all would end.
        distributed.on_lead(finish)
    if pipeline.stopped_by is not None:
        if files is not None:
            files.say(f"saved at step {step:,}; go on with --resume --run-dir {files.run_dir}")
        return pipeline.stopped_by
    if files is not None:
        for note in (files.past_the_best(), input_bound(pipeline.idle_seconds, sink.seconds)):
            if note is not None:
                files.say(note)
        files.say(f"done: {files.run_dir}")
    return None


def input_bound(waited: float, seconds: float) -> str | None:
    """A sentence about a run that waited for its images; None if it hardly did.

    Args:
      waited: seconds for which the devices waited.
      seconds: that its steps took, the waiting included.
    """
    if waited <= max(INPUT_BOUND * seconds, 1.0):
        return None
    return f"input-bound: {min(waited / seconds, 1.0):.0%} of the training time went into waiting for images to be read"


class _RunSink:
    """Takes a run's results: every process checks them, and the one with files writes them."""

    finished = False

    def __init__(self, files: "RunFiles | None"):
        self._files = files
        self.failure: SaveError | None = None
        self.seconds = 0.0  # Of all steps so far.
        self.collective_seconds: float | None = None  # Of a step, in a job of several processes.

    def timed(self, span: Span) -> None:
        self.seconds += span.seconds
        self._write(lambda files: files.write_speed(span))
        if self._files is not None and self.collective_seconds is not None:
            advice = parallel.communication_advice(self.collective_seconds, span.seconds / span.steps)
            self.collective_seconds = None  # Once is enough.
            if advice is not None:
                self._files.say(advice)

    def steps(self, step: int, values: Values, speed: Span | None) -> None:
        """Raises `Diverged` in all processes alike, and `SaveError` as `_write` does."""
        for name in sorted(values, key=lambda name: name != "loss"):
            bad = np.flatnonzero(~np.isfinite(values[name]))
            if bad.size:
                first = step - len(values[name])
                raise Diverged(f"the {name} is {values[name][bad[0]]} at step {first + int(bad[0]) + 1:,}")
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
            for name in sorted(values, key=lambda name: name != "loss"):
                if not np.isfinite(values[name]).all():
                    raise Diverged(f"the {split} {name} is not finite at step {step:,}")
        if checkpoint is not None:
            _check_finite(checkpoint, step)
        self._write(lambda files: files.write_epoch(step, evaluations, pictures, checkpoint))

    def _write(self, action: Callable[["RunFiles"], None]) -> None:
        """Raises `SaveError` if this is the only process; in a job, all processes stop together first."""
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
    """Raise `Diverged` for a state that is not finite."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state))):
        raise Diverged(f"a parameter is not finite at step {step:,}")


def with_absolute_paths(config: Config) -> Config:
    """`config`, with paths that mean the same wherever the run is resumed from."""
    named = data.is_named(config.dataset)
    return replace(
        config,
        dataset=config.dataset if named else os.path.abspath(config.dataset),
        data_dir=os.path.abspath(config.data_dir) if config.data_dir else None,
    )
