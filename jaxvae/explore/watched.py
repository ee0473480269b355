"""A run directory that may still be trained in: its newest model, loaded again when there is a newer one."""

import asyncio
from pathlib import Path

from jaxvae.errors import InputError
from jaxvae.explore.model import Explored, explored


class Watched:
    """A run and its newest model.

    Args:
      run_dir: of the run; it is only read.
      best: the best checkpoint by the validation images, not the newest.
      dataset, data_dir: where the images are, if not where they were in training.

    Attributes:
      run_dir: of the run.
      model: the one loaded last.
      trouble: why a newer one could not be loaded; None: there was no trouble.

    Raises:
      InputError: see `explored`.
    """

    def __init__(self, run_dir: Path, best: bool = False, dataset: str | None = None, data_dir: str | None = None):
        self.run_dir, self._best = run_dir, best
        self.trouble: str | None = None
        self._seen = self._steps()
        self.model: Explored = explored(run_dir, best, dataset, data_dir)

    async def look(self) -> None:
        """Load the model again if the checkpoints have changed; the page answers meanwhile."""
        steps = self._steps()
        if steps == self._seen or not steps:
            return
        self._seen = steps
        try:
            self.model = await asyncio.get_running_loop().run_in_executor(None, self._load)
            self.trouble = None
        except InputError as error:  # The model that is there stays.
            self.trouble = str(error)

    def _load(self) -> Explored:
        return explored(self.run_dir, self._best, images=self.model.tested)

    def _steps(self) -> list[str]:
        """The names of the checkpoints."""
        try:
            return sorted(path.name for path in (self.run_dir / "checkpoints").iterdir() if path.name.isdigit())
        except OSError:
            return []
