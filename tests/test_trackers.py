"""Trackers: a run reports to a sink of the protocol, and to the real packages in their offline modes."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import SMALL, assert_same_run, environment, train, train_command

from jaxvae import cli
from jaxvae.config import Config, values_of
from jaxvae.errors import InputError
from jaxvae.run.trackers import background, start
from jaxvae.run.trackers.sink import Identity
from jaxvae.sweep import __main__ as sweep

pytestmark = pytest.mark.unoptimized
FLAGS = ["--preset", "vae", *SMALL]


class Kept:
    """A sink that keeps everything."""

    made: ClassVar[list["Kept"]] = []

    def __init__(self, run: Identity):
        self.run, self.closed = run, False
        self.values: list[tuple[Mapping[str, float], int]] = []
        self.pictures: dict[tuple[str, int], NDArray[np.uint8]] = {}
        Kept.made.append(self)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.values.append((values, step))

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        self.pictures[name, step] = picture

    def close(self) -> None:
        self.closed = True


class Failing(Kept):
    """A sink that fails at its first record."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        raise SystemExit("no network")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """Sinks that were made in place of Weights & Biases' own."""
    monkeypatch.setattr(start, "TRACKERS", {"wandb": f"{__name__}:Kept"})
    monkeypatch.setattr(start, "check", lambda name: None)
    Kept.made = []
    return Kept.made


@pytest.mark.long
def test_a_run_and_its_resumption_report_everything_to_one_tracker_run(
    image_file: Path, tmp_path: Path, kept: list[Kept]
) -> None:
    run = tmp_path / "run"
    given = [*FLAGS, "--dataset", str(image_file), "--run-dir", str(run)]
    assert train(*given, "--epochs", "1", "--track", "wandb") == 0
    assert train("--resume", "--run-dir", str(run), "--epochs", "2") == 0  # It is remembered.
    first, second = kept
    assert first.closed and second.closed and first.run.id == second.run.id and len(first.run.id) == 12
    assert first.run.name == "run" and first.run.config.keys() == values_of(Config("vae")).keys()
    assert first.run.config["hidden"] == (16, 8) and first.run.config["track"] == "wandb"
    reported = [entry for sink in kept for entry in sink.values]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        named = {f"{term}_nats_per_image/{line['split']}": line[term] for term in ("loss", "recon", "kl")}
        assert any(step == line["step"] and named.items() <= values.items() for values, step in reported)
    assert {name.rpartition("/")[2] for values, _ in reported for name in values} == {"train", "validation", "test"}
    for sink, epoch in ((first, 1), (second, 2)):
        for (name, _), picture in sink.pictures.items():
            drawn = np.asarray(Image.open(run / "images" / f"{name}_epoch_{epoch:04}.png"))
            np.testing.assert_array_equal(picture[..., 0], drawn[::2, ::2])
        assert {name for name, _ in sink.pictures} == {"reconstructions", "samples"}
    assert train("--resume", "--run-dir", str(run), "--epochs", "3", "--track", "none") == 0
    assert len(kept) == 2


@pytest.mark.long
def test_a_tracker_that_fails_is_one_warning_and_changes_nothing(
    image_file: Path,
    tmp_path: Path,
    kept: list[Kept],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*FLAGS, "--dataset", str(image_file), "--epochs", "2"]
    assert train(*given, "--run-dir", str(tmp_path / "without")) == 0
    monkeypatch.setattr(start, "TRACKERS", {"wandb": f"{__name__}:Failing"})
    capsys.readouterr()
    assert train(*given, "--run-dir", str(tmp_path / "with"), "--track", "wandb") == 0
    said = capsys.readouterr().err
    assert said.count("--track") == 1
    assert "warning: --track wandb: SystemExit: no network; the run goes on without it" in said
    assert_same_run(tmp_path / "with", tmp_path / "without")


def test_a_tracker_that_hangs_does_not_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(background, "MOST_WAITING", 3)
    said: list[str] = []
    go_on = threading.Event()

    class Hanging(Kept):
        def scalars(self, values: Mapping[str, float], step: int) -> None:
            go_on.wait()

    sink = background.Background("wandb", lambda: Hanging(None), said.append)  # type: ignore[arg-type]
    sink.scalars({"loss": 1.0}, 1)
    sink.close()
    for step in range(9):
        sink.scalars({"loss": 1.0}, step)
    sink.close()
    go_on.set()
    [line] = said
    assert line.startswith("warning: --track wandb: did not finish within 0.01 s")
    full = background.Background("wandb", lambda: go_on.clear() or Hanging(None), said.append)  # type: ignore[arg-type,func-returns-value]
    for step in range(9):
        full.scalars({"loss": 1.0}, step)
    full.close()
    go_on.set()
    assert said[1:] == ["warning: --track wandb: does not keep up; the run goes on without it"]


def test_a_sink_that_got_nothing_is_never_started(kept: list[Kept], tmp_path: Path) -> None:
    sink = start.start("wandb", tmp_path, {}, print)
    sink.close()
    assert kept == []


@pytest.mark.parametrize("name", start.TRACKERS)
def test_a_missing_package_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / name).mkdir()  # As wandb leaves one.
    with pytest.raises(InputError, match=f"--track {name}: needs the package {name}: pip install 'jaxvae.{name}.'"):
        start.check(name)
    monkeypatch.undo()
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)
    run = tmp_path / "run"
    assert train(*FLAGS, "--dataset", "digits", "--run-dir", str(run), "--track", name) == cli.EXIT_BAD_INPUT
    assert not run.exists() and f"--track {name}: needs the package" in capsys.readouterr().err


def test_a_sweep_refuses_a_tracker() -> None:
    with pytest.raises(InputError, match="--track has no effect in a sweep"):
        sweep.main([*FLAGS, "--dataset", "digits", "--track", "wandb", "--beta", "1", "2"])


def run_twice(name: str, image_file: Path, tmp_path: Path) -> str:
    """Trains an epoch and resumes, in processes of their own; returns what they printed."""
    variables = {
        **{"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/runs.db"},
        **{"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"},
    }
    run, said = tmp_path / "run", ""
    first = [*FLAGS, "--dataset", str(image_file), "--epochs", "1", "--track", name]
    for args in (first, ["--resume", "--epochs", "2"]):
        command = train_command(*args, "--run-dir", str(run))
        made = subprocess.run(command, env={**environment(), **variables}, capture_output=True, text=True, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        said += made.stderr
    assert "warning: --track" not in said
    return (run / start.ID_FILE).read_text().strip()


def losses(tmp_path: Path) -> dict[int, float]:
    """The test losses of the run by step."""
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # SQLAlchemy's, of MLflow.
def test_mlflow_holds_one_run_with_all_of_it(image_file: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    identity = run_twice("mlflow", image_file, tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    [run] = client.search_runs([client.get_experiment_by_name("jaxvae").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED" and run.data.tags["jaxvae_id"] == identity
    assert run.data.params["hidden"] == "(16, 8)" and len(run.data.params) == len(values_of(Config("vae")))
    history = client.get_metric_history(run.info.run_id, "loss_nats_per_image/validation")
    assert {point.step: point.value for point in history} == losses(tmp_path)
    pictures = client.list_artifacts(run.info.run_id, "images")
    assert len(pictures) == 4


@pytest.mark.long
def test_wandb_keeps_both_parts_under_one_id(image_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    identity = run_twice("wandb", image_file, tmp_path)
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(identity) for part in parts)
    for part in parts:
        assert len(list((part / "files" / "media" / "images").glob("*.png"))) == 2
        stored = (part / f"run-{identity}.wandb").read_bytes()
        assert b"loss_nats_per_image/validation" in stored and b"latent_size" in stored


@pytest.mark.long
def test_trackio_holds_one_run_with_all_of_it(
    image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    identity = run_twice("trackio", image_file, tmp_path)
    import sqlite3

    [file] = (tmp_path / "trackio").glob("jaxvae*.db")
    database = sqlite3.connect(file)
    rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    database.close()
    assert {name for name, _, _ in rows} == {f"run-{identity}"}
    found = {}
    for _, step, text in rows:
        loss = json.loads(text).get("loss_nats_per_image/validation")
        found |= {step: loss} if loss is not None else {}
    assert found == losses(tmp_path)
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 4
