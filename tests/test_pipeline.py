"""How a run is cut into calls, with a fake computer and a fake clock: each test sets the cost of a step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jaxvae.errors import SaveError
from jaxvae.train import pipeline
from jaxvae.train.pipeline import CALL_SECONDS, QUEUED_SECONDS, Pipeline, Span, Speed
from jaxvae.train.signals import StopSignals

PER_EPOCH = 1000


class Clock:
    """A fake `time.perf_counter`, and when each result is ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        self.free = 0.0  # When the device is free.
        self.ready: dict[int, float] = {}  # By the results' identity.
        monkeypatch.setattr(pipeline.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(pipeline, "_when_ready", lambda result: self.ready.get(id(result), self.now))


class Computer:
    """A computer with steps of `seconds` each. Its state is its step."""

    steps_per_epoch, waited = PER_EPOCH, 0.0

    def __init__(self, clock: Clock, seconds: float):
        self._clock, self._seconds = clock, seconds
        self.calls: list[int] = []
        self.ends: list[tuple[float, Any]] = []
        self.said: list[str] = []

    def usable(self, step: int, wanted: int) -> int:
        return min(wanted, PER_EPOCH - step % PER_EPOCH)

    def compile(self, state: int) -> float:
        return 0.0

    def run_steps(self, state: int, step: int, count: int) -> tuple[int, Mapping[str, Any]]:
        assert state == step and step // PER_EPOCH == (step + count - 1) // PER_EPOCH
        self.calls.append(count)
        self.said.append("call")
        self._clock.free = max(self._clock.free, self._clock.now) + count * self._seconds
        result = {"loss": np.arange(step, step + PER_EPOCH, dtype=np.float64)}
        self._clock.ready[id(result)] = self._clock.free
        self.ends.append((self._clock.free, result))
        return state + count, result

    def splits(self, step: int, total: int) -> Sequence[str]:
        return ("validation", "test") if step == total else ("validation",)

    def parts(self, split: str) -> range:
        return range(0, 50, 20)

    def evaluate(self, state: int, split: str, first: int) -> Mapping[str, Any]:
        self.said.append(f"{split} {first}")
        return {"loss": np.full(20, state)}

    def joined(self, split: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
        return {"loss": np.concatenate([part["loss"] for part in parts])[:50]}

    def pictures(self, state: int, step: int, total: int) -> None:
        return None

    def checkpoint(self, state: int, step: int, total: int) -> int:
        return state

    def greatest(self, values: Any) -> Any:
        raise AssertionError("there is one process")


class Sink:
    """Keeps what it is given; sends a signal at a step."""

    failure: SaveError | None = None
    finished = False

    def __init__(self, clock: Clock, computer: Computer, stop: StopSignals, stop_at: int = 10**9):
        self._clock = clock
        self._computer, self._stop, self._stop_at = computer, stop, stop_at
        self.losses: list[float] = []
        self.epochs: list[tuple[int, dict[str, int], int]] = []
        self.spans: list[Span] = []

    def steps(self, step: int, values: Any, speed: Span | None) -> None:
        self._clock.now = max(self._clock.now, self._computer.ends.pop(0)[0])
        self._computer.said.append("take")
        self.losses += values["loss"].tolist()
        if step >= self._stop_at:
            self._stop.received = 15

    def timed(self, span: Span) -> None:
        self.spans.append(span)

    def epoch(self, step: int, evaluations: Any, pictures: None, checkpoint: Any) -> None:
        sizes = {split: len(values["loss"]) for split, values in evaluations.items()}
        self.epochs.append((step, sizes, checkpoint))


def run(clock: Clock, seconds: float, total: int, stop_at: int = 10**9, **options: Any) -> tuple[Computer, Sink, int]:
    stop, computer = StopSignals(), Computer(clock, seconds)
    sink = Sink(clock, computer, stop, stop_at)
    with Pipeline(computer, sink, stop) as driver:
        state, step = driver.run(options.pop("step", 0), options.pop("start", 0), total, **options)
    assert state == step and driver.stopped_by == (15 if stop.received else None)
    return computer, sink, step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("seconds", [1e-5, 1e-3, 0.05, 0.3, 7.0, 200.0])
def test_every_call_is_short_and_every_step_is_taken_once(seconds: float, clock: Clock) -> None:
    total = PER_EPOCH * 2 if seconds < 1 else PER_EPOCH
    computer, sink, step = run(clock, seconds, total)
    assert step == total == sum(computer.calls)
    assert sink.losses == list(range(total))
    assert max(computer.calls) * seconds <= max(CALL_SECONDS, seconds) * 1.001
    if seconds <= 0.05:  # As long as they may be, once the cost of a step is known.
        assert max(computer.calls) * seconds >= min(0.9 * CALL_SECONDS, PER_EPOCH * seconds)
    assert [step for step, _, _ in sink.epochs] == list(range(PER_EPOCH, total + 1, PER_EPOCH))
    assert [sizes for _, sizes, _ in sink.epochs][-1] == {"validation": 50, "test": 50}


def test_a_call_that_takes_long_is_taken_before_the_next_begins(clock: Clock) -> None:
    slow, _, _ = run(clock, 1.1 * QUEUED_SECONDS, PER_EPOCH)
    assert slow.said[:6] == ["call", "take"] * 3
    quick, _, _ = run(clock, 1e-3, PER_EPOCH)
    assert "call call take call take" in " ".join(quick.said)


@pytest.mark.parametrize(("seconds", "most"), [(1e-3, 2 * CALL_SECONDS / 1e-3), (0.3, 2), (60.0, 0)])
def test_a_signal_waits_for_two_calls_or_one_long_step(seconds: float, most: float, clock: Clock) -> None:
    _, sink, step = run(clock, seconds, PER_EPOCH * 2, stop_at=700)
    assert 700 <= step < 700 + 1 + CALL_SECONDS / seconds + most
    assert len(sink.losses) == step  # What was computed is kept.


def test_a_signal_during_evaluation_leaves_it_to_the_resumed_run(clock: Clock) -> None:
    computer, sink, step = run(clock, 2.0, PER_EPOCH * 2, stop_at=PER_EPOCH)
    assert step == PER_EPOCH and not sink.epochs and "validation 0" not in computer.said
    computer, sink, _ = run(clock, 2.0, PER_EPOCH * 2, start=step, step=step, evaluated=False)
    assert computer.said[:4] == ["validation 0", "validation 20", "validation 40", "call"]
    assert [step for step, _, _ in sink.epochs] == [PER_EPOCH, 2 * PER_EPOCH]


def test_spans_time_every_step_of_a_long_run_and_none_is_faster_than_the_device(clock: Clock) -> None:
    _, sink, _ = run(clock, 1e-3, PER_EPOCH * 3)
    assert all(span.per_second == pytest.approx(1000) for span in sink.spans)
    assert all(span.seconds >= pipeline.SPAN_SECONDS for span in sink.spans[:-1])
    assert sum(span.steps for span in sink.spans) == PER_EPOCH * 3 - 1  # All but the first call's.


def test_the_device_idles_only_once_earlier_work_is_done() -> None:
    """The host waits 3 s for images before each call, which then takes 2 s; and longer ones hide the waiting."""
    speed = Speed()
    speed.add(1, 1, 0.0, 2.0)
    speed.add(2, 1, 1.0, 6.0, waited=3.0)  # From 1 to 4; the device was free at 2.
    assert speed.idle == 2.0
    speed.add(3, 1, 4.0, 9.0, waited=1.5)  # To 5.5, while it worked.
    assert speed.idle == 2.0
    speed.add(4, 1, 10.0, 13.0, waited=1.0)  # Not for images alone: nobody asked before 10.
    assert speed.idle == 3.0


def test_results_that_are_seen_late_do_not_distort_the_speed() -> None:
    """The host is busy for half of every second; the device takes 100 steps a second, in calls of 0.1 s."""
    speed, spans = Speed(), []
    for number in range(200):
        begun, ended = 0.1 * number, 0.1 * (number + 1)
        seen = max(ended, int(ended) + 0.5)
        if span := speed.add(10 * (number + 1), 10, begun, seen):
            spans.append(span)
    total = sum(span.steps for span in spans) / sum(span.seconds for span in spans)
    assert total == pytest.approx(100, rel=0.05)
    assert max(span.per_second for span in spans) < 300
    # Work that is not training does not count for any speed.
    assert speed.add(2000, 0, 20.0, 100.0) is None
    assert speed.add(2010, 100, 20.0, 101.0) == Span(2010, 100, pytest.approx(1.0))
