"""The interface between the pipeline and what computes a run."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from jax import Array
from numpy.typing import NDArray

S = TypeVar("S")
PART_BATCHES = 8  # Most batches evaluated in one call, which takes about as long as three steps.


class Computer(Protocol[S]):
    """Computes a run of one model or of many members. Methods dispatch work, and wait for nothing but images.

    Attributes:
      steps_per_epoch: steps an epoch.
      waited: seconds for which `run_steps` waited so far for training images that were still being read.
    """

    steps_per_epoch: int

    @property
    def waited(self) -> float: ...

    def usable(self, step: int, wanted: int) -> int:
        """The largest number of steps from `step` on, at most `wanted` and within its epoch, that one call can take."""

    def compile(self, state: S) -> float:
        """Compile the program of the steps; the seconds it took, 0 if it was compiled before."""

    def run_steps(self, state: S, step: int, count: int) -> tuple[S, Mapping[str, Array]]:
        """Take `count` steps from `step`, that of `state`: the new state, and every step's values, [..., capacity]."""

    def splits(self, step: int, total: int) -> Sequence[str]:
        """The splits evaluated at `step`, the end of an epoch, in a run of `total` steps."""

    def parts(self, split: str) -> range:
        """A split is evaluated in parts: the place of the first image of each."""

    def evaluate(self, state: S, split: str, first: int) -> Mapping[str, Array]:
        """The objective's terms of the part that begins at place `first`, [..., size]."""

    def joined(self, split: str, parts: Sequence[Mapping[str, Array]]) -> dict[str, NDArray[Any]]:
        """The terms of every image of a split, [..., N], on the host, from those of its parts."""

    def pictures(self, state: S, step: int, total: int) -> Mapping[str, Array] | None:
        """The pictures due at the end of an epoch, or None."""

    def checkpoint(self, state: S, step: int, total: int) -> S | None:
        """A copy of `state` if a checkpoint is due at the end of an epoch, or None."""

    def greatest(self, values: NDArray[np.float32]) -> Array:
        """The elementwise maximum, [N], of the values [N] of all processes of the job."""


def advance(computer: Computer[S], state: S, step: int, count: int) -> tuple[S, list[tuple[int, Mapping[str, Array]]]]:
    """Dispatch `count` steps from `step`, the step of `state`, in as few calls as possible.

    Returns:
      The state; and for each call, its number of steps and their values, [..., capacity].
    """
    calls, end = [], step + count
    while step < end:
        taken = computer.usable(step, end - step)
        state, values = computer.run_steps(state, step, taken)
        calls.append((taken, values))
        step += taken
    return state, calls


def due(every: int, step: int, total: int, steps_per_epoch: int) -> bool:
    """Whether something is due at `step`, the end of an epoch: every `every` epochs (0: never), and at the end."""
    return step == total or (every > 0 and step // steps_per_epoch % every == 0)


def splits(validation: bool, last: bool) -> Sequence[str]:
    """The splits evaluated at the end of an epoch.

    The test images are for final metrics, and evaluated only at the end. Without validation images they are evaluated
    after every epoch instead, and nothing is chosen by them.

    Args:
      validation: whether the run has validation images.
      last: whether it is the last epoch.
    """
    if not validation:
        return ("test",)
    return ("validation", "test") if last else ("validation",)
