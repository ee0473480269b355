"""Drives a run, or a program of a sweep: dispatches compiled calls, and hands over their results in order.

The device is kept busy: one call is queued while another runs, and meanwhile the host takes the results of the call
before. A call takes about `CALL_SECONDS`, whatever a step costs, so that progress is visible and signals are heeded.
How a run is cut into calls does not change its results.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae.distributed import job as distributed
from jaxvae.errors import SaveError
from jaxvae.train.computer import PART_BATCHES, Computer
from jaxvae.train.signals import StopSignals

S = TypeVar("S")
C = TypeVar("C", contravariant=True)
Values = Mapping[str, NDArray[Any]]

CALL_SECONDS = 0.4  # Of a compiled call: half of a delay that a person hardly notices.
QUEUED_SECONDS = 1.0  # No call is queued behind a longer one, since a signal waits for both.
GROWTH = 8  # Most growth from call to call, while the cost of a step is not yet well known.
SPAN_SECONDS = 0.25  # The shortest time over which a speed is measured.
FAILED = 255  # Sent between the processes of a job in place of a signal: a file could not be written.


class Span(NamedTuple):
    """Steps that were timed together: the last of them, how many, and the seconds the device took."""

    step: int
    steps: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Steps per second."""
        return self.steps / max(self.seconds, 1e-9)


class Speed:
    """Times the steps of a run on the device, from the moments at which results were seen to be ready.

    A busy host may see such a moment late; then one call seems long and the next one short. So speeds are measured
    over spans of at least `SPAN_SECONDS`, where only the ends can be wrong.
    """

    def __init__(self) -> None:
        self._free = 0.0  # When the device finished all earlier work.
        self._steps, self._seconds = 0, 0.0
        self.last: Span | None = None
        self.idle = 0.0  # Seconds for which the device had nothing to do, as images were still being read.
        self.step_seconds = 0.0  # The best estimate of the cost of a step: at first, that of the first call.

    def add(self, step: int, steps: int, dispatched: float, ready: float, waited: float = 0.0) -> Span | None:
        """Note work that ended at `step` (0 `steps`: not training). Returns a span if one is complete.

        The host began with it at `dispatched`, and first waited for images for `waited` seconds.
        """
        self.idle += max(min(waited, dispatched + waited - self._free), 0.0)
        start, self._free = max(dispatched, self._free), ready
        if not steps:
            return None
        seconds = max(ready - start, 0.0)
        if not self.step_seconds:
            # The first call touches its memory for the first time: it says nothing about later ones.
            self.step_seconds = max(seconds, 1e-9) / steps
            return None
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        if self.last is None or self._seconds >= SPAN_SECONDS:
            self.step_seconds = max(self._seconds, 1e-9) / self._steps
        if self._seconds < SPAN_SECONDS:
            return None
        self.last = Span(step, self._steps, self._seconds)
        self._steps, self._seconds = 0, 0.0
        return self.last

    def rest(self, step: int) -> Span | None:
        """The incomplete span at `step`, the end of the run; None if there is none."""
        return Span(step, self._steps, self._seconds) if self._steps else None


class Agreement:
    """What the processes of a job exchange before every call: a signal, and the cost of a step.

    The maximum of each counts, in all processes; all must ask equally often. What is said before one call is read
    before the next, so that no process waits for another.
    """

    def __init__(self, computer: Computer[Any]):
        self._computer = computer
        self._said: deque[jax.Array] = deque()

    def __call__(self, signal: int, step_seconds: float) -> tuple[int, float]:
        """The greatest signal (0: none) and cost of a step (0: not known yet) of any process."""
        if jax.process_count() == 1:
            return signal, step_seconds
        self._said.append(self._computer.greatest(np.array([signal, step_seconds], np.float32)))
        if len(self._said) < 2:
            return 0, 0.0
        signal, step_seconds = np.asarray(self._said.popleft())
        return int(signal), float(step_seconds)


class Sink(Protocol[C]):
    """The host's side of a run: takes the results, in the order in which they were computed.

    Attributes:
      failure: the error that stops this process; the other processes of its job must stop, too.
      finished: whether nothing is left to compute, even before the last step.
    """

    failure: SaveError | None

    @property
    def finished(self) -> bool: ...

    def steps(self, step: int, values: Values, speed: Span | None) -> None:
        """The values of every step of a call that ended at `step`, [..., count]; the latest speed."""

    def timed(self, span: Span) -> None:
        """A speed was measured."""

    def epoch(
        self,
        step: int,
        evaluations: Mapping[str, Values],
        pictures: Mapping[str, jax.Array] | None,
        checkpoint: C | None,
    ) -> None:
        """An epoch ended at `step`: the terms of every image by split, and the pictures and checkpoint due."""


class _Pending(NamedTuple):
    """Work in flight: its steps, when the host began with it and how long it waited, when it was ready, what to do."""

    step: int
    steps: int
    dispatched: float
    waited: float
    ready: "Future[float]"
    take: Callable[[], None]


class Pipeline(Generic[S]):
    """Drives a computer from step to step, and passes its results to a sink. A context manager.

    Args:
      computer: computes the run; its program is compiled.
      sink: takes the results.
      stop: the signals to heed.
    """

    def __init__(self, computer: Computer[S], sink: Sink[S], stop: StopSignals):
        self._computer, self._sink, self._stop = computer, sink, stop
        self._agreement = Agreement(computer)
        self._speed = Speed()
        self._step_seconds, self._count = 0.0, 0  # As agreed; the steps of the latest call.
        self._pending: deque[_Pending] = deque()
        self.stopped_by: int | None = None

    def __enter__(self) -> Self:
        # A separate thread sees when results are ready, however long the host writes.
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="watcher")
        return self

    def __exit__(self, *error: object) -> None:
        self._watcher.shutdown(wait=False, cancel_futures=True)

    def run(self, state: S, step: int, total: int, evaluated: bool = True) -> tuple[S, int]:
        """Compute from `step`, the step of `state`, to `total`, or until a signal (`stopped_by`).

        Args:
          state: on the devices.
          step: its step.
          total: steps of the whole run.
          evaluated: whether an epoch that ends at `step` has been evaluated; a signal can prevent that.

        Returns:
          The state, and its step.
        """
        epoch = self._computer.steps_per_epoch
        if not evaluated and step and not step % epoch:
            self._end_epoch(state, step, total)
        while step < total and not self._sink.finished and not self._stopping():
            count = self._computer.usable(step, self._wanted())
            dispatched, before = time.perf_counter(), self._computer.waited
            state, terms = self._computer.run_steps(state, step, count)
            step, self._count = step + count, count
            waited = self._computer.waited - before
            self._push(step, count, dispatched, terms, self._taking_steps(step, count, terms), waited)
            if not step % epoch:
                self._end_epoch(state, step, total)
        self._drain(0)
        if (rest := self._speed.rest(step)) is not None:
            self._sink.timed(rest)
        return state, step

    @property
    def idle_seconds(self) -> float:
        """Seconds for which the device had nothing to do, as images were still being read."""
        return self._speed.idle

    def _wanted(self) -> int:
        """Steps of the next call: as many as take `CALL_SECONDS`, but not many more than the call before."""
        if not self._step_seconds:
            return 1
        return max(1, min(int(CALL_SECONDS / self._step_seconds), GROWTH * self._count))

    def _stopping(self) -> bool:
        """Whether to stop here; in a job, every process comes to the same answer at the same step."""
        if self.stopped_by is None:
            own = FAILED if self._sink.failure is not None else self._stop.received or distributed.stop_requested() or 0
            signal, cost = self._agreement(own, self._speed.step_seconds)
            self.stopped_by, self._step_seconds = signal or None, cost or self._step_seconds
        return self.stopped_by is not None

    def _end_epoch(self, state: S, step: int, total: int) -> None:
        """Evaluate part by part, and dispatch what else is due. A signal stops this; resuming then does it."""
        computer = self._computer
        parts: dict[str, list[Mapping[str, jax.Array]]] = {}
        for split in computer.splits(step, total):
            parts[split] = []
            for first in computer.parts(split):
                if self._stopping():
                    return
                dispatched = time.perf_counter()
                parts[split].append(computer.evaluate(state, split, first))
                self._push(step, 0, dispatched, parts[split][-1], lambda: None)
        dispatched = time.perf_counter()
        pictures, checkpoint = computer.pictures(state, step, total), computer.checkpoint(state, step, total)

        def take() -> None:
            evaluations = {split: computer.joined(split, terms) for split, terms in parts.items()}
            self._sink.epoch(step, evaluations, pictures, checkpoint)

        self._push(step, 0, dispatched, (pictures, checkpoint), take)

    def _taking_steps(self, step: int, count: int, terms: Mapping[str, jax.Array]) -> Callable[[], None]:
        def take() -> None:
            values = {name: np.asarray(value)[..., :count] for name, value in terms.items()}
            self._sink.steps(step, values, self._speed.last)

        return take

    def _push(
        self, step: int, steps: int, dispatched: float, results: Any, take: Callable[[], None], waited: float = 0.0
    ) -> None:
        ready = self._watcher.submit(_when_ready, results)
        self._pending.append(_Pending(step, steps, dispatched, waited, ready, take))
        # A part of an evaluation takes no longer than `PART_BATCHES` steps.
        quick = 0 < (steps or PART_BATCHES) * self._step_seconds <= QUEUED_SECONDS
        self._drain(1 if quick else 0)

    def _drain(self, left: int) -> None:
        """Take results until only `left` are in flight."""
        while len(self._pending) > left:
            work = self._pending.popleft()
            span = self._speed.add(work.step, work.steps, work.dispatched, work.ready.result(), work.waited)
            if span is not None:
                self._sink.timed(span)
            work.take()


def _when_ready(values: Any) -> float:
    jax.block_until_ready(values)
    return time.perf_counter()
