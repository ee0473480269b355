"""The campaign of experiments/accelerator: it measures what is missing, and says what failed."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "accelerator"))
import run


def campaign(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    return run.main()


@pytest.mark.slow
def test_a_piece_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["machine", "--data-dir", tmp_path, "--out", tmp_path / "out", "--small"]
    assert campaign(monkeypatch, *arguments) == 0
    found = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert found["platform"] == "cpu" and min(found["flops_per_second"].values()) > 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["machine.json"]
    assert "machine: done, " in capsys.readouterr().out
    assert campaign(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == "machine: measured before\n"


def test_a_piece_that_fails_leaves_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    assert campaign(monkeypatch, "sweep", "--data-dir", nothing, "--out", tmp_path, "--small") == 1
    assert "sweep: failed, " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.log"]
    assert str(nothing) in (tmp_path / "sweep.log").read_text()


def test_an_unknown_piece_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        campaign(monkeypatch, "kernel", "--data-dir", tmp_path, "--out", tmp_path)
    assert "no piece is called 'kernel'; there are machine same " in capsys.readouterr().err
