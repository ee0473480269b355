"""Extract a member of a sweep as a run of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvae import config_file
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.objectives.build import selection_cost
from jaxvae.run import directory as run_dirs
from jaxvae.run import records
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.run.step_files import Saved
from jaxvae.sweep import tables
from jaxvae.sweep.grid import DIVERGED, PROGRAMS, load_sweep
from jaxvae.sweep.trainer import MembersState, abstract_members, common_config


def restore(directory: Path, members: Sequence[Config], numbers: Sequence[int]) -> Saved[MembersState] | None:
    """The newest checkpoint of a program's members."""
    if not (directory / "checkpoints").is_dir():
        return None
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        if not checkpoints.steps():
            return None
        shape = checkpoints.image_shape()
        common = common_config([members[number] for number in numbers])
        return checkpoints.restore(abstract_members(common, shape, len(numbers)))


def extract(sweep_dir: Path, member: int | str, run_dir: Path) -> int:
    """Write one member of a sweep to a run directory of its own: config.json, metrics.jsonl and its newest checkpoint.

    Args:
      sweep_dir: of a sweep, finished or not.
      member: its number, or "best": see `jaxvae.sweep.tables.best`.
      run_dir: a directory that holds no run yet, created if needed.

    Returns:
      The member's number.

    Raises:
      InputError: there is no such member, it diverged or was not started, there is no best one, or a
        directory is unsuitable.
    """
    run_dirs.check_kinds(sweep_dir)
    grid, programs = load_sweep(sweep_dir)
    members = grid.members()
    if member == "best":
        try:
            member = tables.best(grid, tables.table(sweep_dir))[1]["member"]
        except InputError as error:
            raise InputError(f"--extract best: {sweep_dir}: {error}") from None
    number = int(str(member)[:9]) if str(member).isascii() and str(member).isdigit() else -1
    if not 0 <= number < len(members):
        raise InputError(f"--extract {member}: {sweep_dir} has members 0 to {len(members) - 1}")
    index = next((i for i, numbers in enumerate(programs) if number in numbers), None)
    saved = None if index is None else restore(sweep_dir / PROGRAMS / str(index), members, programs[index])
    if index is None or saved is None:
        raise InputError(f"--extract {number}: it has no checkpoint yet")
    lines = [
        {name: value for name, value in line.items() if name != "member"}
        for line in tables.member_records(sweep_dir / PROGRAMS / str(index))
        if line["member"] == number and line["step"] <= saved.step
    ]
    if at := [line["at"] for line in lines if line["split"] == DIVERGED]:
        raise InputError(f"--extract {number}: it diverged at step {at[0]:,}")
    place = programs[index].index(number)
    record = _own_record(saved.record, place)
    evaluated = [line for line in lines if line["split"] == "validation" and line["step"] == saved.step]
    cost = selection_cost(members[number], evaluated[-1] if evaluated else {})
    try:
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise InputError(f"--to {run_dir} is not an empty directory")
        run_dir.mkdir(parents=True, exist_ok=True)
        run_dirs.write_whole(run_dir / "config.json", config_file.to_json(members[number]))
        run_dirs.write_whole(run_dir / "metrics.jsonl", "".join(records.json_line(line) for line in lines))
        (run_dir / "images").mkdir()
    except OSError as error:
        raise InputError(f"--to {run_dir} cannot be written: {error.strerror}") from None
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        checkpoints.save(saved.state.member(place), record, cost)
    return number


def _own_record(record: Mapping[str, Any], place: int) -> dict[str, Any]:
    """The record of a program's checkpoint, for the member at `place`: only its own unfinished averages."""
    window = record.get("window")
    if window is None:
        return dict(record)
    try:
        sums = {name: values[place] for name, values in window["sums"].items()}
        return {**record, "window": {**window, "sums": sums}}
    except (TypeError, KeyError, IndexError, AttributeError):
        raise InputError("the newest checkpoint's record.json: its window of metrics is malformed") from None
