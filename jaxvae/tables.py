"""A sweep's tables and plots: a row a member, a row a setting, and figures against each axis."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae import metrics, plots
from jaxvae.errors import InputError
from jaxvae.grid import DIVERGED, PROGRAMS, Grid, cell, load_sweep

Row = dict[str, Any]


def write_tables(run_dir: Path) -> list[Row]:
    """Write members.csv and summary.csv of a sweep, as far as it has come; the rows of the first."""
    grid, _ = load_sweep(run_dir)
    rows = table(run_dir)
    _write_csv(run_dir / "members.csv", rows)
    _write_csv(run_dir / "summary.csv", summary(grid, rows))
    return rows


def member_records(directory: Path) -> list[metrics.Record]:
    """The lines of a program's metrics.jsonl. Raises `InputError` as `jaxvae.metrics.read_records` does."""
    path = directory / "metrics.jsonl"
    records = metrics.read_records(path, integers=("member",))
    if any(type(line.get("at")) is not int for line in records if line["split"] == DIVERGED):
        raise InputError(f"{path}: a member diverged, and it does not say at which step")
    return records


def table(run_dir: Path) -> list[Row]:
    """A row a member of a sweep: its number, status, axes, and its last figures.

    The status is "done", "diverged at step N", "stopped at step N" or "not started". Figures are None (an empty
    cell) where the member diverged or has none yet.
    """
    grid, programs = load_sweep(run_dir)
    members = grid.members()
    last: dict[tuple[int, str], metrics.Record] = {}
    for index in range(len(programs)):
        for line in member_records(run_dir / PROGRAMS / str(index)):
            last[line["member"], line["split"]] = line
    figures = [
        f"{split}_{t}"
        for split in ("train", "test")
        for t in metrics.TERMS
        if any(t in line for (_, s), line in last.items() if s == split)
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
        usable = status == "done" or status.startswith("stopped")
        for name in figures:
            split, term = name.split("_")
            row[name] = last.get((number, split), {}).get(term) if usable else None
        rows.append(row)
    return rows


def summary(grid: Grid, rows: Sequence[Row]) -> list[Row]:
    """A row a setting: mean, deviation, least and greatest of each test figure over the seeds that have one."""
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in grid.axes), []).append(row)
    figures = [f"test_{term}" for term in metrics.TERMS if any(f"test_{term}" in row for row in rows)]
    found = []
    for values, same in settings.items():
        line: Row = dict(zip(grid.axes, values, strict=True))
        line |= {"seeds": len(same), "unit": same[0].get("unit")}
        line["diverged"] = sum(row["status"].startswith(DIVERGED) for row in same)
        for name in figures:
            numbers = [row[name] for row in same if row.get(name) is not None]
            spread: dict[str, Any] = {"mean": np.mean, "std": _deviation, "min": np.min, "max": np.max}
            line |= {f"{name}_{what}": _digits(of(numbers)) if numbers else None for what, of in spread.items()}
        found.append(line)
    return found


def _deviation(numbers: Sequence[float]) -> Any:
    return np.std(numbers, ddof=1) if len(numbers) > 1 else 0.0


def _digits(number: Any) -> float:
    return float(f"{float(number):.6g}")


def summary_lines(grid: Grid, rows: Sequence[Row]) -> list[str]:
    """A line a setting, in words."""
    lines = []
    for line in summary(grid, rows):
        setting = "  ".join(f"{name} {line[name]}" for name in grid.varied()) or grid.config.preset
        terms = [
            f"{term} {line[f'test_{term}_mean']:.4g} +- {line[f'test_{term}_std']:.2g}"
            for term in metrics.TERMS
            if line.get(f"test_{term}_mean") is not None
        ]
        lost = f"  {line['diverged']} diverged" if line["diverged"] else ""
        figures = f"test {'  '.join(terms)} ({line['unit']})" if terms else "no finite figure"
        lines.append(f"{setting}: {figures}, {line['seeds']} seeds{lost}")
    return lines


def draw(run_dir: Path, grid: Grid, rows: Sequence[Row]) -> None:
    """Figures against each axis, and rate against distortion."""
    usable = [row for row in rows if row.get("test_loss") is not None]
    if not usable:
        return
    for name in grid.varied():
        others = [other for other in grid.varied() if other != name]
        plots.save_axis(run_dir / f"{name}.png", usable, name, others)
    if any(row.get("test_kl") is not None for row in usable):
        plots.save_rate_distortion(run_dir / "rate_distortion.png", usable, grid.varied())


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)
