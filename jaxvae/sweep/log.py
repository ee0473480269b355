"""The JSONL files of a sweep's program, and how its members are described."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxvae import config as configs
from jaxvae.config import Config
from jaxvae.run import directory as run_dirs
from jaxvae.run import records
from jaxvae.sweep.grid import (
    axes_of,
    cell,
)


class ProgramLog:
    """The JSONL files of a program: of its old metrics, only `kept` stay, and new lines follow."""

    def __init__(self, directory: Path, kept: Sequence[records.Record]):
        path = directory / "metrics.jsonl"
        run_dirs.write_whole(path, "".join(records.json_line(line) for line in kept))
        self._metrics = path.open("a", encoding="utf-8")
        self._timing = (directory / "timing.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> "ProgramLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._timing.close()

    def write(self, member: int, line: records.Record) -> None:
        self._metrics.write(records.json_line({"member": member, **line}))
        self._metrics.flush()

    def sync(self) -> None:
        """Flush the metrics to disk before the checkpoint that goes with them, in case the power fails."""
        os.fsync(self._metrics.fileno())

    def time(self, event: str, **values: float) -> None:
        self._timing.write(records.json_line({"event": event, **values}))
        self._timing.flush()


def member_words(member: Config) -> str:
    """A member's seed, and its swept values that differ from the preset."""
    base = configs.PRESETS[member.preset]
    changed = [name for name in axes_of(type(member)) if getattr(member, name) != getattr(base, name, None)]
    return ", ".join([f"{name} {cell(getattr(member, name))}" for name in changed] + [f"seed {member.seed}"])
