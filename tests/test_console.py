"""What is shown on the terminal."""

import io
import re
from typing import Any

import numpy as np
import pytest

from jaxvae.run import console as console_module
from jaxvae.run.console import Console
from jaxvae.run.records import record


def line(step: int) -> dict[str, Any]:
    return record(step, 1, "train", "per pixel", {"loss": np.float32([step / 7])})


def test_console_prints_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Console(epochs=3, steps=300, step=0, unit="per pixel") as console:
        console.say("[bold]brackets stay[/bold]")
        console.say("runs/a\nb\x1b[31m")
        console.progress(line(50), 100.0)
        console.epoch([line(300), {**line(300), "split": "test"}], steps_per_second=1000 / 7)
    assert err.getvalue().splitlines() == [
        "[bold]brackets stay[/bold]",
        r"runs/a b\x1b[31m",
        "epoch 1/3  step 300  train loss 42.86  test loss 42.86  (per pixel)  143 steps/s",
    ]


def test_the_time_left_does_not_count_what_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by the measured speed first, then by the average since the first evaluation, later ones included."""
    err, now = io.StringIO(), 0.0
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr(console_module, "QUIET_SECONDS", 0.0)
    with Console(epochs=3, steps=300, step=0, unit="per pixel") as console:
        now = 1000.0  # The steps were compiled.
        console.progress(line(50), 10.0)
        now = 2000.0  # The evaluation was compiled.
        console.epoch([line(100)], steps_per_second=10.0)
        now = 2025.0
        console.epoch([line(200)], steps_per_second=10.0)
    told = ["0:00:25 left", "0:00:20 left", "0:00:25 left"]
    assert [re.findall(r"\S+ left", said)[-1] for said in err.getvalue().splitlines()] == told


@pytest.mark.parametrize(
    ("columns", "shown", "hidden"),
    [
        (80, ["501/1000 loss 12.34 nats/image", "50%", "12,345 steps/s", "left"], "kl"),
        (120, ["501/1000 loss 12.34  recon 12.34  kl 12.34 (nats/image)", "50%", "12,345 steps/s", "left"], "…"),
    ],
)
def test_console_draws_a_bar_that_fits_the_terminal(
    columns: int, shown: list[str], hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with Console(epochs=1000, steps=300_000, step=0, unit="nats/image") as console:
        values = np.float32([12.34])
        full = record(150_000, 500, "train", "nats/image", {"loss": values, "recon": values, "kl": values})
        console.progress(full, 12345.0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err.getvalue())
    for part in shown:
        assert part in text
    assert hidden not in text
