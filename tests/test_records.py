"""The records of a run: lines, windows, and the files they are written to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvae.errors import InputError
from jaxvae.run import records
from jaxvae.run.records import RunLog, record


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


@pytest.mark.parametrize("length", [0, 1, 3, 5, 100])
@pytest.mark.parametrize("members", [(), (2,)])
def test_windows_do_not_depend_on_the_calls_that_steps_come_in(length: int, members: tuple[int, ...]) -> None:
    """Nor on where a run was stopped and went on: to the bit, and the average is NumPy's."""
    values = np.random.default_rng(0).normal(size=(*members, 22)).astype(np.float32) * 1e3
    found = []
    for cuts in ([11, 11], [1] * 22, [4, 7, 10, 1], [2, 9, 3, 8]):
        window, step, lines = records.Windows(length, steps_per_epoch=11), 0, []
        for count in cuts:
            step += count
            lines += window.add(step, {"loss": values[..., step - count : step]})
            window = records.Windows(length, 11, json.loads(json.dumps(window.open())))
        assert window.open() is None  # An epoch's end completes a window.
        found.append([(end, means["loss"].tolist()) for end, means in lines])
    assert all(other == found[0] for other in found)
    first = 0
    for end, mean in found[0]:
        np.testing.assert_allclose(mean, values[..., first:end].mean(-1, dtype=np.float64), rtol=1e-12)
        first = end
    expected = [11 * epoch + min(n + (length or 11), 11) for epoch in (0, 1) for n in range(0, 11, length or 11)]
    assert [end for end, _ in found[0]] == expected


def test_a_window_whose_beginning_was_not_seen_has_no_average() -> None:
    """As when a run resumes with another --log-every, or from a checkpoint of an older version."""
    values = np.arange(1, 501, dtype=np.float64)
    first = records.Windows(100, 500)
    first.add(150, {"loss": values[:150]})
    for length, expected in ((40, [(200, 180.5), (240, 220.5)]), (100, [(200, 150.5)])):
        second = records.Windows(length, 500, first.open())
        found = second.add(250, {"loss": values[150:250]})
        assert [(end, float(means["loss"])) for end, means in found] == expected
    assert records.Windows(0, 500).add(500, {"loss": values[300:]}) == []


@pytest.mark.parametrize("saved", [{}, [], {"steps": "many", "sums": {}}, {"steps": 1, "sums": [1]}])
def test_a_malformed_window_is_refused(saved: Any) -> None:
    with pytest.raises(InputError, match="record.json"):
        records.Windows(0, 11, saved)


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
    assert records.read_records(tmp_path / "metrics.jsonl") == [line(10), line(20), line(30)]


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


@pytest.mark.parametrize("step", [0, 10])
def test_tensorboard_forgets_what_a_killed_run_wrote_past_the_step(step: int, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, steps in ((0, (10, 20, 30)), (step, (20,))):
        with RunLog(tmp_path, start) as log:
            for number in steps:
                log.write(line(number))
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [s.step for s in board.Scalars("loss_per_pixel/train")] == ([10, 20] if step else [20])


@pytest.mark.parametrize("bad", ['{"step": 1}', '{"step": "1", "split": "a", "unit": "u"}', "[1]", "{",
                                 '{"step": 1, "split": "train", "unit": "u", "loss": NaN}'])  # fmt: skip
def test_a_malformed_record_is_refused(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line(1)) + "\n" + bad + "\n")
    with pytest.raises(InputError, match="metrics.jsonl, line 2: not a record"):
        records.read_records(path)
