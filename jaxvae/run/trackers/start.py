"""The trackers by name, and how one is started."""

import functools
import importlib
import importlib.util
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxvae.errors import InputError
from jaxvae.run.directory import write_whole
from jaxvae.run.trackers.background import Background
from jaxvae.run.trackers.sink import Identity

ID_FILE = "tracker_id"

# The class of each. The package, and the extra that installs it, have the tracker's name.
TRACKERS: Mapping[str, str] = {
    "wandb": "jaxvae.run.trackers.wandb:WandbSink",
    "mlflow": "jaxvae.run.trackers.mlflow:MlflowSink",
    "trackio": "jaxvae.run.trackers.trackio:TrackioSink",
}


def check(name: str) -> None:
    """Raise `InputError` if the tracker's package is not installed."""
    if name == "none":
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # A folder of that name, which wandb leaves behind, is no package.
        raise InputError(f"--track {name}: needs the package {name}: pip install 'jaxvae[{name}]'")


def start(name: str, run_dir: Path, config: Mapping[str, Any], warn: Callable[[str], None]) -> Background:
    """The tracker called `name` for the run in `run_dir`; a run that is resumed goes on under its old id.

    Args:
      name: a key of `TRACKERS`.
      run_dir: the run directory, which gets `ID_FILE`.
      config: all fields of the configuration.
      warn: tells the user of something, in one line.

    Raises:
      OSError: the id cannot be read or written.
    """
    file = run_dir / ID_FILE
    if not file.exists():
        write_whole(file, uuid.uuid4().hex[:12] + "\n")
    run = Identity(file.read_text(encoding="utf-8").strip(), run_dir.absolute().name, run_dir, config, warn)
    module, _, kind = TRACKERS[name].partition(":")
    # Imported in the tracker's thread: wandb and mlflow take seconds.
    return Background(name, functools.partial(_made, module, kind, run), warn)


def _made(module: str, kind: str, run: Identity) -> Any:
    return getattr(importlib.import_module(module), kind)(run)
