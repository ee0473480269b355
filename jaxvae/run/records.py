"""Metrics from the device to the terminal, to JSONL and to TensorBoard.

``metrics.jsonl`` holds what a run computed and nothing that depends on the clock, so two runs of
one configuration write the same bytes. ``timing.jsonl`` holds times.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jaxvae.errors import InputError, SaveError
from jaxvae.run.directory import told, write_whole
from jaxvae.run.tensorboard import Board
from jaxvae.run.trackers.sink import Sink
from jaxvae.typing import RECORD_FIELDS

Record = dict[str, Any]

# The terms shown first, in this order; others follow.
FIRST = (
    *("loss", "recon", "kl"),
    *(f"{kind}{bound}" for bound in ("elbo", "iwae_bound") for kind in ("", "density_", "unnormalised_")),
)


def rounded(value: Any, digits: int) -> float:
    """A number rounded to `digits` significant digits, as records and tables hold it."""
    return float(f"{float(value):.{digits}g}")


def ordered(names: Iterable[str]) -> list[str]:
    """Names of terms in the order of display: `FIRST`, then the others as they come, each once."""
    found = list(dict.fromkeys(names))
    return [name for name in FIRST if name in found] + [name for name in found if name not in FIRST]


def terms_of(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """All terms that occur in some records, `ordered`."""
    return ordered(name for line in lines for name in line if name not in RECORD_FIELDS)


def record(step: int, epoch: int, split: str, unit: str, values: Mapping[str, NDArray[np.floating[Any]]]) -> Record:
    """A line of ``metrics.jsonl``: the mean of each array of `values`, to 9 significant digits.

    The mean is taken in float64, and 9 digits tell any two float32 values apart.
    """
    means = {term: rounded(np.mean(values[term], dtype=np.float64), 9) for term in ordered(values)}
    return {"step": step, "epoch": epoch, "split": split, "unit": unit, **means}


class Windows:
    """Averages the terms of training over windows of steps, however the steps are cut into calls.

    A window begins every `length` steps of an epoch and ends with the epoch at the latest. Sums are taken step by
    step in float64, so that the average does not depend on the calls either.

    Args:
      length: steps; 0: an epoch.
      steps_per_epoch: steps an epoch.
      saved: what `open` returned when the run was stopped, to continue with.

    Raises:
      InputError: `saved` is not such a window.
    """

    def __init__(self, length: int, steps_per_epoch: int, saved: Any = None):
        self._length, self._steps_per_epoch = length or steps_per_epoch, steps_per_epoch
        self._count, self._sums = 0, dict[str, Any]()
        if saved is not None:
            try:
                if int(saved["length"]) != self._length:
                    return  # Windows now have another length: the saved one does not count.
                self._count = int(saved["steps"])
                self._sums = {str(name): np.array(value, np.float64) for name, value in saved["sums"].items()}
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError("the newest checkpoint's record.json: its window of metrics is malformed") from None

    def add(self, step: int, values: Mapping[str, NDArray[Any]]) -> list[tuple[int, dict[str, NDArray[Any]]]]:
        """Add the values [..., count] of the steps that ended at `step`; the last step and means [...] of each window
        that is complete."""
        count = next(iter(values.values())).shape[-1]
        done, first = [], step - count
        while first < step:
            inside = first % self._steps_per_epoch
            left = min(self._length - inside % self._length, self._steps_per_epoch - inside)
            taken = slice(first - (step - count), min(first + left, step) - (step - count))
            for name, value in values.items():
                start = np.asarray(self._sums.get(name, np.zeros(value.shape[:-1])), np.float64)[..., None]
                # Not `np.sum`: its order of addition depends on how many numbers there are.
                self._sums[name] = np.cumsum(np.concatenate([start, value[..., taken]], axis=-1), axis=-1)[..., -1]
            first += taken.stop - taken.start
            self._count += taken.stop - taken.start
            if taken.stop - taken.start == left:
                inside -= inside % self._length
                # A window whose beginning was not seen has no average.
                if self._count == min(self._length, self._steps_per_epoch - inside):
                    done.append((first, {name: total / self._count for name, total in self._sums.items()}))
                self._count, self._sums = 0, {}
        return done

    def open(self) -> dict[str, Any] | None:
        """The incomplete window, as JSON; None if there is none."""
        if not self._count:
            return None
        return {
            "length": self._length,
            "steps": self._count,
            "sums": {name: value.tolist() for name, value in self._sums.items()},
        }


def read_records(path: Path, integers: Sequence[str] = ()) -> list[Record]:
    """The lines of a ``metrics.jsonl``; a last line that was cut off by a crash is left out.

    Args:
      path: of the file, which need not exist.
      integers: names of integers that each record has besides step and epoch.

    Raises:
      InputError: the file cannot be read, or a line is not a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n"):
            try:
                records.append(_checked(json.loads(line), ("step", "epoch", *integers)))
            except (ValueError, TypeError, KeyError, RecursionError):
                raise InputError(f"{path}, line {number}: not a record of metrics") from None
    return records


def _checked(values: Any, integers: Sequence[str]) -> Record:
    """The values of a line. Raises `ValueError` and the like if they are not those of a record."""
    texts = values["split"], values["unit"]
    if not all(isinstance(text, str) for text in texts) or not all(type(values[name]) is int for name in integers):
        raise ValueError
    if not all(math.isfinite(values[term]) for term in terms_of([values])):
        raise ValueError
    checked: Record = values
    return checked


class RunLog:
    """The records of one run directory: appends to its JSONL files, and gives all to its `sinks`: TensorBoard is one.

    Args:
      run_dir: an existing directory.
      step: the step the run starts or resumes from. Lines of ``metrics.jsonl`` past it belong to
        steps that will be taken again, and are dropped.
      final: splits that are evaluated only at the end of a run. Their lines are dropped too, since the run goes on.

    Raises:
      InputError: `run_dir` cannot be written, or a file in it cannot be read.
    """

    def __init__(self, run_dir: Path, step: int, final: Sequence[str] = ()):
        path, self._run_dir = run_dir / "metrics.jsonl", run_dir
        self.records = [r for r in read_records(path) if r["step"] <= step and r["split"] not in final]
        with told(run_dir, InputError):
            write_whole(path, "".join(json_line(r) for r in self.records))
            with ExitStack() as stack:
                self._metrics = stack.enter_context(path.open("a", encoding="utf-8"))
                self._timing = stack.enter_context((run_dir / "timing.jsonl").open("a", encoding="utf-8"))
                self.sinks: list[Sink] = [stack.enter_context(closing(Board(run_dir / "tensorboard", step)))]
                self._files = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files. Raises `SaveError` if that fails and no other error is being raised."""
        try:
            with told(self._run_dir, SaveError):
                self._files.close()
        except SaveError:
            # What a failed write left in a buffer fails again here.
            if error is None:
                raise

    def write(self, line: Record) -> None:
        """Append a `record`."""
        self.records.append(line)
        self._metrics.write(json_line(line))
        self._metrics.flush()
        unit = line["unit"].replace("/", "_per_").replace(" ", "_")
        values = {f"{term}_{unit}/{line['split']}": line[term] for term in terms_of([line])}
        for sink in self.sinks:
            sink.scalars(values, line["step"])

    def write_timing(self, event: str, **values: float) -> None:
        """Append a line to ``timing.jsonl``. Durations are in seconds."""
        self._timing.write(json_line({"event": event, **values}))
        self._timing.flush()

    def write_picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Give a picture [rows, cols, C] to TensorBoard and all other sinks."""
        for sink in self.sinks:
            sink.picture(name, picture, step)

    def sync(self) -> None:
        """Flush ``metrics.jsonl`` to disk before the checkpoint that goes with it, in case the power fails."""
        os.fsync(self._metrics.fileno())


def json_line(values: Mapping[str, Any]) -> str:
    """`values` as a line of a JSONL file. Raises `ValueError` for values that are not finite: JSON has none."""
    return json.dumps(values, allow_nan=False) + "\n"


def words(line: Mapping[str, Any]) -> str:
    """A record's terms in words: "loss 0.0543  recon 0.0481  kl 0.0062"."""
    return "  ".join(f"{term} {line[term]:.4g}" for term in terms_of([line]))


def better_unsaved(metrics: Path, step: int, term: str, higher: bool) -> str | None:
    """A sentence about an epoch better than that at `step` by the validation images, which was not saved.

    Args:
      metrics: the file of the run's records.
      step: of the best checkpoint.
      term, higher: what is compared, and whether higher is better.
    """
    try:
        records = read_records(metrics)
    except InputError:  # A model can be used without them.
        return None
    lines = [line for line in records if line["split"] == "validation" and term in line]
    saved = next((line for line in lines if line["step"] == step), None)
    if saved is None:
        return None
    best = (max if higher else min)(lines, key=lambda line: line[term])
    if best[term] == saved[term]:
        return None
    return (
        f"epoch {saved['epoch']} is the best of those that were saved; by the {term} of the validation images, epoch "
        f"{best['epoch']} was better: {best[term]:.6g}, not {saved[term]:.6g} (--checkpoint-every 1 saves every epoch)"
    )
