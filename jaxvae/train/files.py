"""The host's side of a run: its files and its console."""

import contextlib
import functools
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax import Array

from jaxvae import config as configs
from jaxvae import config_file
from jaxvae.data.images import contradicted, in_words
from jaxvae.errors import Diverged, InputError, SaveError
from jaxvae.objectives.build import measure_warning, selection_cost, selection_term
from jaxvae.plane import plane_of
from jaxvae.run import console, plots, records
from jaxvae.run import directory as run_dirs
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.run.lock import NAME, RunLock
from jaxvae.run.step_files import Saved
from jaxvae.run.trackers import start as trackers
from jaxvae.train.computer import splits
from jaxvae.train.pipeline import Span, Values
from jaxvae.train.step import TrainState
from jaxvae.train.trainer import Trainer
from jaxvae.versions import run_versions, version_warnings

NOTABLE = 5  # A loss since the best epoch that is told, in the usual change of the metric from epoch to epoch.
RUN_FILES = (
    "config.json",
    "metrics.jsonl",
    "timing.jsonl",
    "checkpoints",
    "images",
    "tensorboard",
    "wandb",
    trackers.ID_FILE,
)


class RunFiles:
    """The host's side of a run: its files and its console. A context manager.

    Args:
      trainer: what computes the run.
      run_dir: the run directory; None: a new one.
      resume: whether to resume the run in `run_dir`; `saved` is then its checkpoint, if there is one.
      record: JSON saved with every checkpoint, which identifies the run's data.
      labels: of the images that are evaluated during training, [N], if those do not hold them: colours of a map.

    Raises:
      InputError: the directory is in use, belongs to another run, or cannot be written or read.
    """

    def __init__(
        self, trainer: Trainer, run_dir: Path | None, resume: bool, record: dict[str, Any], labels: Any = None
    ):
        self._labels = labels
        self._config, self._steps_per_epoch = trainer.config, trainer.steps_per_epoch
        self._images, self._unit, self._record = trainer.images, trainer.objective.unit, record
        self._like, self._requested, self._resume = trainer.abstract_state(), run_dir, resume
        self._parameters = sum(leaf.size for leaf in jax.tree.leaves(self._like.params))
        self._where = trainer.where
        self._hardware = _hardware(trainer.placement.batch.mesh.size)
        self._versions, self._warnings = run_versions(), list[str]()
        self._watched, *_ = splits(len(self._images.validation) > 0, last=False)
        self._written = False  # Whether a step was taken.
        self._epoch_speed: Span | None = None  # The sum of the spans that ended in this epoch.

    def __enter__(self) -> Self:
        config = self._config
        with ExitStack() as stack:
            if self._resume:
                assert self._requested is not None
                self.run_dir = self._requested
                stack.enter_context(RunLock(self.run_dir))
                records.read_records(self.run_dir / "metrics.jsonl")
                self.saved: Saved[TrainState] | None = self._restore()
            else:
                made = self._requested is None or not self._requested.exists()
                self.run_dir = run_dirs.make(self._requested, config.preset)
                cleaning = stack.enter_context(ExitStack())  # When the lock is free again.
                stack.enter_context(RunLock(self.run_dir))
                run_dirs.check_empty(self.run_dir, RUN_FILES)
                self.saved = None
                cleaning.push(functools.partial(self._on_error, made))
            step = 0 if self.saved is None else self.saved.step
            run_dirs.check_epochs(step, config.epochs, self._steps_per_epoch)
            with run_dirs.told(self.run_dir, InputError):
                (self.run_dir / "images").mkdir(exist_ok=True)
                run_dirs.write_skipped(self.run_dir / "images", self._images.skipped)
                run_dirs.write_whole(self.run_dir / "config.json", config_file.to_json(config))
            self._checkpoints = stack.enter_context(
                Checkpoints(self.run_dir / "checkpoints", config.keep_checkpoints, config.keep_best_checkpoints)
            )
            total = config.epochs * self._steps_per_epoch
            final = ("test",) if self._watched != "test" and step < total else ()
            self.log = stack.enter_context(records.RunLog(self.run_dir, step, final))
            window = None if self.saved is None else self.saved.record.get("window")
            self._windows = records.Windows(config.log_every, self._steps_per_epoch, window)
            self._console = stack.enter_context(console.Console(config.epochs, total, step, self._unit))
            if config.track != "none":
                values = configs.values_of(config)
                with run_dirs.told(self.run_dir, InputError):
                    tracker = trackers.start(config.track, self.run_dir, values, self._console.say)
                self.log.sinks.append(stack.enter_context(contextlib.closing(tracker)))
            self._stack = stack.pop_all()
        what = configs.describe(config)
        self.say(f"{what} on {self._images.name} ({self._images.source})")
        self.say(f"{in_words(self._images)}, {self._where}; {self._parameters:,} parameters")
        self.say(f"{self._hardware}, {self._steps_per_epoch:,} steps an epoch -> {self.run_dir}")
        if (warning := measure_warning(config)) is not None:
            self._warnings.append(warning)
        for warning in self._warnings:
            self.say(warning)
        if self._resume:
            self.say(f"going on from step {step:,}" if self.saved else "no checkpoint was saved: starting anew")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def _on_error(self, made: bool, kind: Any, error: BaseException | None, trace: Any) -> None:
        """If a new run fails before its first step, leave everything as it was; `made`: without its directory."""
        if error is None or self._written or isinstance(error, Diverged | SaveError):
            return
        for name in (*RUN_FILES, NAME):
            path = self.run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # Someone else put a file there.
                self.run_dir.rmdir()

    def _restore(self) -> Saved[TrainState] | None:
        with Checkpoints(self.run_dir / "checkpoints") as checkpoints:
            if checkpoints.latest_step() is not None:
                found = checkpoints.read_record()
                if changed := contradicted(found, self._record):
                    old, new = config_file.load(self.run_dir / "config.json").dataset, self._config.dataset
                    differs = f"dataset: {old} -> {new}" if old != new else f"another {', '.join(changed)}"
                    raise InputError(
                        f"--resume: {self._images.source}: not the images that {self.run_dir} was trained on"
                        f" ({differs})"
                    )
                warnings = version_warnings(found.get("versions", {}), self._versions)
                self._warnings += [f"warning: {warning}" for warning in warnings]
            return checkpoints.restore(self._like)

    def say(self, text: str) -> None:
        """Print a line on the console."""
        self._console.say(text)

    def evaluated(self) -> bool:
        """Whether the epoch that ends at the saved step has been evaluated."""
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
        """Write the averages that are complete at `step`, and show the progress."""
        if not self._written and not self._resume:  # Here and not at the start: the device is busy meanwhile.
            plots.save_png(self.run_dir / "images" / "training.png", plots.overview(self._images.train))
        self._written = True
        self._checkpoints.check()
        for end, means in self._windows.add(step, values):
            self.log.write(records.record(end, self._epoch(end), "train", self._unit, means))
        shown = records.record(step, self._epoch(step), "train", self._unit, values)
        self._console.progress(shown, speed.per_second if speed else 0.0)

    def write_epoch(
        self,
        step: int,
        evaluations: Mapping[str, Values],
        pictures: Mapping[str, Array] | None,
        checkpoint: TrainState | None,
    ) -> None:
        """Write and show an epoch's results."""
        lines = [
            records.record(step, self._epoch(step), split, self._unit, values) for split, values in evaluations.items()
        ]
        seen = {line["split"] for line in self.log.records if line["step"] == step}
        for line in lines:
            if line["split"] not in seen:  # A resumed run may have some already.
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
            # A signal before the evaluation had this step saved already.
            self._checkpoints.rank(int(state.step), validation_cost)
        else:
            self._checkpoints.save(state, record, validation_cost)
        self.log.write_timing("save", step=int(state.step), blocked_seconds=time.perf_counter() - start)

    def _save_pictures(self, pictures: Mapping[str, Array], step: int, epoch: int) -> None:
        if "latents" in pictures:
            known = pictures.get("labels", self._labels)
            labels: Any = {} if known is None else {"label": np.asarray(known)[: len(pictures["latents"])]}
            path = self.run_dir / "images" / f"latents_epoch_{epoch:04}.npz"
            whole = path.with_suffix(".partial")  # A movie may be made meanwhile.
            with whole.open("wb") as file:
                np.savez(file, latent=np.asarray(pictures["latents"]).astype(np.float16), **labels)
            whole.replace(path)
        for name in ("reconstructions", "samples"):
            if name not in pictures:
                continue
            images = pictures[name]
            values = np.asarray(images)
            grid = plots.reconstruction_grid(*values) if name == "reconstructions" else plots.image_grid(values)
            plots.save_png(self.run_dir / "images" / f"{name}_epoch_{epoch:04}.png", grid, scale=2)
            self.log.write_picture(name, grid, step)

    def draw_curves(self) -> None:
        """Draw the run's metrics so far."""
        if self.log.records:
            title = configs.describe(self._config)
            plots.save_curves(self.run_dir / "images" / "curves.png", self.log.records, title)

    def draw_map(self) -> None:
        """Draw the latents of held-out images after the last epoch of which they were kept."""
        images = self.run_dir / "images"
        files = {int(path.stem.rpartition("_")[2]): path for path in images.glob("latents_epoch_*.npz")}
        if not files:
            return
        with np.load(files[max(files)]) as file:
            latents, labels = file["latent"].astype(np.float64), file.get("label")
        latents = latents.reshape(len(latents), -1)
        if min(latents.shape) < 2 or not np.isfinite(latents).all():
            return
        plane, title = plane_of(latents), f"{configs.describe(self._config)}: latents of held-out images"
        places, classes = plane.places(latents), self._images.classes
        plots.save_map(images / "latents.png", places, labels, classes, plane.names, f"{title}, epoch {max(files)}")

    def finish(self, state: TrainState, step: int, whole: bool) -> None:
        """Save `state` if it is not saved yet, draw what is drawn at the end, and wait for the save.

        `whole`: the run is complete, not stopped. Raises `SaveError`.
        """
        with run_dirs.told(self.run_dir, SaveError):
            if self._checkpoints.latest_step() != step:
                lines = (line for line in self.log.records if line["step"] == step and line["split"] == "validation")
                validation = next(lines, None)
                self._save(state, None if validation is None else selection_cost(self._config, validation))
            self.draw_curves()
            self._checkpoints.wait()
            if whole:
                self.draw_map()

    def past_the_best(self) -> str | None:
        """A sentence about a model that became worse on the validation images before its end; None if it did not.

        What is within the noise between epochs does not count.
        """
        term, higher = selection_term(self._config)
        lines = [line for line in self.log.records if line["split"] == "validation" and term in line]
        if len(lines) < 4:
            return None
        values = np.array([line[term] for line in lines])
        best = int((np.argmax if higher else np.argmin)(values))
        if abs(values[best] - values[-1]) <= NOTABLE * np.median(np.abs(np.diff(values))):
            return None
        saved = self._checkpoints.best_step()
        place = next((place for place, line in enumerate(lines) if line["step"] == saved), len(lines) - 1)
        if place == len(lines) - 1:
            advice = "no better checkpoint was saved (--checkpoint-every 1 saves every epoch)"
        else:
            kept = f"epoch {lines[place]['epoch']}, the best that was saved: {values[place]:.6g}"
            advice = "--best takes " + ("that checkpoint" if place == best else kept)
        return (
            f"by the {term} of the validation images the model was best at epoch {lines[best]['epoch']}: "
            f"{values[best]:.6g}, not {values[-1]:.6g} as at the end; {advice}"
        )


def _hardware(devices: int) -> str:
    kind: str = jax.devices()[0].device_kind
    processes = jax.process_count()
    return kind + (f" x {devices}" if devices > 1 else "") + (f" in {processes} processes" if processes > 1 else "")
