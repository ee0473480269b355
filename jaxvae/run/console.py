"""What the user sees during a run."""

import math
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from jaxvae.errors import one_line
from jaxvae.run.records import Record, words

QUIET_SECONDS = 60.0  # Without a line, after which progress is printed if there is no terminal.


class Console:
    """What the user sees: a live progress bar on a terminal, plain lines otherwise. All on stderr.

    Args:
      epochs: of the whole run.
      steps: of the whole run.
      step: the step the run starts or resumes from.
      unit: of the metrics.
    """

    def __init__(self, epochs: int, steps: int, step: int, unit: str):
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._epochs, self._steps, self._unit = epochs, steps, unit
        self._first: tuple[float, int] | None = None  # When the steps that count began, and how many were done.
        self._warm = False  # Whether an epoch was evaluated, so that nothing more is compiled.
        self._said = time.perf_counter()
        terminal = sys.stderr.isatty()
        self._rich = RichConsole(file=sys.stderr, force_terminal=terminal, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:.0f}% {task.fields[speed]}"),
            TimeElapsedColumn(),  # Moves even while a single step takes long.
            console=self._rich,
            disable=not terminal,
        )
        self._task = self._bar.add_task("compiling", total=steps, completed=step, speed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._said = time.perf_counter()
        self._rich.print(one_line(text), markup=False)

    def _left(self, step: int, steps_per_second: float) -> str:
        """The time left: at the average speed so far, which also counts evaluations; at first, at the speed given.

        The first steps and the first evaluation do not count: what they compile does not come again.
        """
        now = time.perf_counter()
        self._first = self._first or (now, step)
        start, first = self._first
        seconds_per_step = (now - start) / (step - first) if step > first else 1 / (steps_per_second or math.inf)
        if not seconds_per_step or step >= self._steps:
            return ""
        return f"{_duration(seconds_per_step * (self._steps - step))} left"

    def progress(self, train: Record, steps_per_second: float) -> None:
        """Move the bar to the step of a train record, and show its metrics, or only the loss on a narrow terminal."""
        step, wide = train["step"], self._rich.width >= 110
        epoch = min(train["epoch"] + (step * self._epochs % self._steps == 0), self._epochs)
        shown = f"{words(train)} ({self._unit})" if wide else f"loss {train['loss']:.4g} {self._unit}"
        speed = " ".join(filter(None, (speed_words(steps_per_second), self._left(step, steps_per_second))))
        self._bar.update(self._task, completed=step, description=f"{epoch}/{self._epochs} {shown}", speed=speed)
        if self._bar.disable and time.perf_counter() - self._said > QUIET_SECONDS:
            self.say(f"epoch {epoch}/{self._epochs}  step {step:,}/{self._steps:,}  {shown}  {speed}")

    def epoch(self, lines: Sequence[Record], steps_per_second: float | None) -> None:
        """Print the line of a finished epoch, with the records of each split and the speed, if one was measured."""
        if not self._warm:
            self._warm, self._first = True, None
        step, said = lines[0]["step"], "  ".join(f"{line['split']} {words(line)}" for line in lines)
        speed = steps_per_second or 0.0
        parts = f"({self._unit})", speed_words(speed), self._left(step, speed)
        self.say(f"epoch {lines[0]['epoch']}/{self._epochs}  step {step:,}  {said}  {'  '.join(filter(None, parts))}")


def speed_words(steps_per_second: float) -> str:
    """A speed in words: "1,024 steps/s", "0.25 steps/s", or nothing if none was measured yet (0)."""
    if not steps_per_second:
        return ""
    return f"{steps_per_second:,.0f} steps/s" if steps_per_second >= 10 else f"{steps_per_second:.2g} steps/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
