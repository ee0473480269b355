import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvae import metrics
from jaxvae.metrics import Console, RunLog, record


def test_record_is_the_mean_in_float64() -> None:
    values = np.float32([1e8, 1, -1e8, 1])  # In float32 the ones would vanish.
    line = record(12, 3, "train", "nats/image", {"loss": values, "kl": values, "recon": values})
    assert line == {
        "step": 12, "epoch": 3, "split": "train", "unit": "nats/image", "loss": 0.5, "recon": 0.5, "kl": 0.5,
    }  # fmt: skip
    assert list(line)[4:] == ["loss", "recon", "kl"]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_nine_digits_tell_any_float32_apart(value: float) -> None:
    line = record(0, 1, "test", "per pixel", {"loss": np.float32([value])})
    assert np.float32(line["loss"]) == np.float32(value)


def line(step: int) -> dict[str, Any]:
    return record(step, 1, "train", "per pixel", {"loss": np.float32([step / 7])})


def test_log_appends_and_drops_what_comes_after_the_resumed_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (10, 20, 30):
            log.write(line(step))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # A crash in the middle of a line.
    with RunLog(tmp_path, 20) as log:
        assert [r["step"] for r in log.records] == [10, 20]
        log.write(line(30))
        assert [r["step"] for r in log.records] == [10, 20, 30]
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert metrics.read_records(tmp_path / "metrics.jsonl") == [line(10), line(20), line(30)]


def test_a_value_that_is_not_finite_never_reaches_the_file(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log, pytest.raises(ValueError, match="JSON"):
        log.write(line(1) | {"loss": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_timing_lines(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write_timing("compile", seconds=1.5)
        log.write_timing("call", step=10, seconds=0.5)
    lines = [json.loads(text) for text in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert lines == [{"event": "compile", "seconds": 1.5}, {"event": "call", "step": 10, "seconds": 0.5}]


def test_tensorboard_reads_the_scalars_and_pictures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, 0) as log:
        log.write(line(10))
        log.write(line(20))
        log.write_picture("samples", np.zeros((4, 6, 1), np.uint8), 20)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    scalars = board.Scalars("loss_per_pixel/train")
    assert [(s.step, np.float32(s.value)) for s in scalars] == [(s, np.float32(s / 7)) for s in (10, 20)]
    [picture] = board.Images("samples")
    assert (picture.step, picture.width, picture.height) == (20, 6, 4)


def test_console_prints_plain_lines_when_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    with Console(epochs=3, steps=300, step=0, unit="per pixel") as console:
        console.say("[bold]brackets stay[/bold]")
        console.progress(50, 1, "loss 0.2", 100.0)
        console.epoch(line(100), line(100), steps_per_second=1000 / 7)
    assert err.getvalue().splitlines() == [
        "[bold]brackets stay[/bold]",
        "epoch 1/3  step 100  train loss 14.29  test loss 14.29  (per pixel)  143 steps/s  0:00:01 left",
    ]


def test_console_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Console(epochs=3, steps=300, step=0, unit="per pixel") as console:
        console.progress(150, 2, "loss 0.2", 1234.0)
    text = err.getvalue()
    for shown in ("epoch 2/3  loss 0.2", "50%", "1,234 steps/s", "left"):
        assert shown in text
