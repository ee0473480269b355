"""A sweep's tables and plots: a row per member or setting, metrics against each axis, and which is best."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.config import describe
from jaxvae.errors import InputError
from jaxvae.objectives.build import selection_term
from jaxvae.run import plots, records
from jaxvae.run.directory import write_whole
from jaxvae.sweep.grid import DIVERGED, PROGRAMS, Grid, cell, load_sweep

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")


def write_tables(run_dir: Path) -> list[Row]:
    """Write members.csv and summary.csv of a sweep, finished or not; returns the rows of members.csv."""
    grid, _ = load_sweep(run_dir)
    rows = table(run_dir)
    _write_csv(run_dir / "members.csv", rows)
    _write_csv(run_dir / "summary.csv", summary(grid, rows))
    return rows


def member_records(directory: Path) -> list[records.Record]:
    """The lines of a program's metrics.jsonl. Raises `InputError` as `jaxvae.run.records.read_records` does."""
    path = directory / "metrics.jsonl"
    lines = records.read_records(path, integers=("member",))
    if any(type(line.get("at")) is not int for line in lines if line["split"] == DIVERGED):
        raise InputError(f"{path}: the record of a diverged member has no step")
    return lines


def table(run_dir: Path) -> list[Row]:
    """A row per member of a sweep: its number, status, axes, and its last metrics of each split.

    The status is "done", "diverged at step N", "stopped at step N" or "not started". Metrics are None (an empty
    cell) if the member diverged or has none yet.
    """
    grid, programs = load_sweep(run_dir)
    members = grid.members()
    last: dict[tuple[int, str], records.Record] = {}
    for index in range(len(programs)):
        for line in member_records(run_dir / PROGRAMS / str(index)):
            last[line["member"], line["split"]] = line
    columns = [
        (split, term)
        for split in SPLITS
        for term in records.terms_of(line for (_, of), line in last.items() if of == split)
    ]
    unit = next((line["unit"] for line in last.values()), None)
    rows = []
    for number, member in enumerate(members):
        train, test = last.get((number, "train"), {}), last.get((number, "test"), {})
        if (number, DIVERGED) in last:
            status = f"diverged at step {last[number, DIVERGED]['at']}"
        elif test.get("epoch", 0) >= member.epochs:
            status = "done"
        else:
            status = f"stopped at step {train['step']}" if train else "not started"
        row: Row = {"member": number, "status": status}
        row |= {name: cell(getattr(member, name)) for name in grid.axes}
        row |= {"seed": member.seed, "step": train.get("step", 0), "unit": unit}
        usable = (number, DIVERGED) not in last
        for split, term in columns:
            row[f"{split}_{term}"] = last.get((number, split), {}).get(term) if usable else None
        rows.append(row)
    return rows


def summary(grid: Grid, rows: Sequence[Row]) -> list[Row]:
    """A row per setting: mean, deviation, least and greatest of each held-out metric, over the seeds that have it."""
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in grid.axes), []).append(row)
    columns = [f"{split}_{term}" for split in SPLITS[1:] for term in _terms(rows, split)]
    found = []
    for values, same in settings.items():
        line: Row = dict(zip(grid.axes, values, strict=True))
        line |= {"seeds": len(same), "unit": same[0].get("unit")}
        line["diverged"] = sum(row["status"].startswith(DIVERGED) for row in same)
        for name in columns:
            if not any(name in row for row in rows):
                continue
            numbers = [row[name] for row in same if row.get(name) is not None]
            spread: dict[str, Any] = {"mean": np.mean, "std": _deviation, "min": np.min, "max": np.max}
            line |= {
                f"{name}_{what}": records.rounded(of(numbers), 6) if numbers else None for what, of in spread.items()
            }
        found.append(line)
    return found


def _terms(rows: Sequence[Row], split: str) -> list[str]:
    """The terms of a split in a table."""
    prefix = f"{split}_"
    return records.ordered(name.removeprefix(prefix) for row in rows for name in row if name.startswith(prefix))


def _deviation(numbers: Sequence[float]) -> Any:
    return np.std(numbers, ddof=1) if len(numbers) > 1 else 0.0


def best(grid: Grid, rows: Sequence[Row], statistic: str = "") -> tuple[str, Row]:
    """The column of the validation metric that `selection_term` names, and the row that is the best by it.

    That metric means the same for all members, whatever the weights in their objectives.

    Args:
      grid: of the sweep.
      rows: of its `table`; or of its `summary`, with the statistic "_mean".

    Raises:
      InputError: the sweep holds out no validation images, no row has the metric, or the members' IWAE bounds
        have different numbers of samples: more samples make a tighter bound, so these do not compare.
    """
    if not grid.config.validation:
        raise InputError("this sweep holds out no images to choose by (--validation 0)")
    if grid.config.parts.objective.tightens and "samples" in grid.varied():
        raise InputError("IWAE bounds of different --samples cannot be compared")
    term, higher = selection_term(grid.config)
    column = f"validation_{term}{statistic}"
    ranked = [row for row in rows if row.get(column) is not None]
    if not ranked:
        raise InputError(f"no member has a finite validation {term} yet")
    return column, (max if higher else min)(ranked, key=lambda row: row[column])


def summary_lines(grid: Grid, rows: Sequence[Row]) -> list[str]:
    """A line per setting with the metrics of `shown_split`; then, if there are several, the best."""
    split, settings, lines = shown_split(rows), summary(grid, rows), []
    for line in settings:
        terms = [
            f"{term} {line[f'{split}_{term}_mean']:.4g} +- {line[f'{split}_{term}_std']:.2g}"
            for term in _terms(rows, split)
            if line.get(f"{split}_{term}_mean") is not None
        ]
        lost = f"  {line['diverged']} diverged" if line["diverged"] else ""
        found = f"{split} {'  '.join(terms)} ({line['unit']})" if terms else "no finite metric"
        seeds = f"{line['seeds']} seed{'s' if line['seeds'] != 1 else ''}"
        lines.append(f"{_setting(grid, line)}: {found}, {seeds}{lost}")
    if len(settings) > 1:
        lines.append(_best_words(grid, settings))
    return lines


def _best_words(grid: Grid, settings: Sequence[Row]) -> str:
    try:
        column, line = best(grid, settings, "_mean")
    except InputError as error:
        return f"no setting is the best: {error}"
    term = column.removeprefix("validation_").removesuffix("_mean")
    test = line.get(f"test_{term}_mean")
    tested = "" if test is None else f", test {test:.4g}"
    return f"best: {_setting(grid, line)}, by {term}: validation {line[column]:.4g}{tested} ({line['unit']})"


def _setting(grid: Grid, line: Row) -> str:
    return "  ".join(f"{name} {line[name]}" for name in grid.varied()) or grid.config.preset


def shown_split(rows: Sequence[Row]) -> str:
    """The split to plot and print: "validation" if there is one, else "test"."""
    return "validation" if any(row.get("validation_loss") is not None for row in rows) else "test"


def draw(run_dir: Path, grid: Grid, rows: Sequence[Row]) -> None:
    """Draw the metrics of `shown_split` against each axis, and rate against distortion."""
    split = shown_split(rows)
    usable = [row for row in rows if row.get(f"{split}_loss") is not None]
    if not usable:
        return
    title = describe(grid.config, without=grid.axes)
    for name in grid.varied():
        others = [other for other in grid.varied() if other != name]
        plots.save_axis(run_dir / f"{name}.png", usable, title, name, split, others)
    if any(row.get(f"{split}_kl") is not None for row in usable):
        plots.save_rate_distortion(run_dir / "rate_distortion.png", usable, title, split, grid.varied())


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
