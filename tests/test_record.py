"""The table of record: its list is well-formed, the page is that of the results, and the runner resumes and skips."""

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jaxvae.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "record"))
import reproduce
import rows
import table
from rows import ROWS, Row

CAN_RUN = [row for row in ROWS if not row.waits]
TINY = Row(
    "tiny",
    rows.FLAX,
    "a tiny VAE",
    "nowhere",
    None,
    "--preset vae --dataset digits --validation 0 --inputs dynamic --hidden 8 --latent-size 2 --epochs 3",
    samples=5,
)


def name(row: Row) -> str:
    return row.name


def test_rows_have_names_of_their_own_and_open_ones_a_reason() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert [row.name for row in ROWS if not row.flags and not row.waits] == []
    assert [row.name for row in CAN_RUN if row.published is None or not row.differs] == []


@pytest.mark.slow
@pytest.mark.parametrize("row", CAN_RUN, ids=name)
def test_the_flags_of_a_row_are_a_configuration(row: Row) -> None:
    config = row.config()
    assert config.dataset in ("mnist", "binarized_mnist") and config.inputs in ("static", "dynamic")
    assert config.seed == 0
    assert (row.measure == rows.ELBO) == (row.samples == 0)
    assert config.validation > 0 or not row.best
    assert sorted(set(row.seeds)) == list(row.seeds)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in CAN_RUN if row.paper is rows.BURDA], ids=name)
def test_a_row_of_burda_trains_what_its_name_says(row: Row) -> None:
    objective, k, *layers = row.name.removesuffix("-long").split("-", 2)
    config = row.config()
    assert config.objective == {"vae": "elbo", "iwae": "iwae"}[objective] and f"k{config.samples}" == k
    assert (config.architecture, config.hidden) == (("two-layer", (200, 100)) if layers else ("mlp", (200, 200)))
    assert (config.latent_size, config.inputs, config.validation) == (50, "dynamic", 0)


def test_an_unknown_flag_or_row_or_field_is_refused() -> None:
    with pytest.raises(InputError, match="--hiden: there is no such flag"):
        dataclasses.replace(TINY, flags=f"{TINY.flags} --hiden 8").config()
    with pytest.raises(InputError, match="no row is called 'iwae'; there are flax-vae, "):
        rows.by_name("iwae")
    with pytest.raises(InputError, match="an open row: it has not been trained to its end yet"):
        rows.by_name("vq-vae").config()
    with pytest.raises(TypeError, match="steps"):
        dataclasses.replace(TINY, steps=5)  # type: ignore[call-arg]


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(table.RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_result_is_of_its_row_to_the_end(file: Path) -> None:
    result = json.loads(file.read_text())
    row, found = rows.by_name(result["row"]), result["evaluation"]
    assert result["nats"] == -found[row.measure] and result["standard_error"] == found[f"{row.measure}_standard_error"]
    assert found.get("samples", 0) == row.samples and found["images"] == 10_000
    assert found["epoch"] == row.config().epochs or row.best


def test_the_page_is_that_of_the_results() -> None:
    assert table.main(["--check"]) == 0


def test_a_page_of_other_results_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(table.RESULTS, tmp_path / "results")
    file = tmp_path / "results" / "vae-k1-0.json"
    file.write_text(file.read_text().replace('"nats": 86.6', '"nats": 85.6'))
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    assert table.main(["--check"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("--epochs 900", "--epochs 90", "its flags are "),
        ('"seed": 0', '"seed": 7', "is the result of vae-k1, seed 7"),
        ('"row": "vae-k1"', '"row": "vae"', "no row is called 'vae'"),
    ],
)
def test_a_result_of_another_row_is_not_added(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (table.RESULTS / "vae-k1-0.json").read_text()
    assert old in text
    (tmp_path / "vae-k1-0.json").write_text(text.replace(old, new))
    assert table.main(["--add", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--add", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'} is no folder\n"


class Runner:
    """`reproduce.py` on the row `TINY`, with commands in this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.called: list[str] = []
        self.killed_after: int | None = None
        """Epochs, after which the next training is killed."""

    def command(self, module: str, *words: object) -> None:
        args = [str(word) for word in words]
        self.called.append(f"{module} --resume" if "--resume" in args else module)
        if module in ("train", "sweep") and "--extract" not in args:
            args += ["--devices", "1"]
        if self.killed_after is not None:
            args[args.index("--epochs") + 1] = str(self.killed_after)
        assert importlib.import_module(f"jaxvae.{module}{'.__main__' * (module in ('train', 'sweep'))}").main(args) == 0
        if self.killed_after is not None:
            self.killed_after = None
            raise reproduce.Failed(137, args)

    def __call__(self) -> int:
        self.called.clear()
        return reproduce.main(["tiny", "--runs", str(self.folder / "runs"), "--results", str(self.folder / "results")])

    def results(self) -> list[Any]:
        return [json.loads(file.read_text()) for file in sorted((self.folder / "results").glob("*.json"))]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    found = Runner(tmp_path)
    monkeypatch.setattr(reproduce, "command", found.command)
    return found


@pytest.mark.long
@pytest.mark.unoptimized
def test_a_killed_row_goes_on_and_a_finished_one_is_skipped(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "ROWS", (TINY,))
    runner.killed_after = 1
    assert runner() == 137
    assert runner.called == ["train"] and runner.results() == []
    assert runner() == 0
    assert runner.called == ["train --resume", "evaluate", "generate"]
    [result] = runner.results()
    runner.folder = tmp_path / "uninterrupted"
    assert runner() == 0
    [expected] = runner.results()
    assert (result["nats"], result["evaluation"]) == (expected["nats"], expected["evaluation"])
    assert result["curve"] == expected["curve"] and result["curve"]["epoch"] == [1, 2, 3]
    assert result["evaluation"]["samples"] == 5 and result["training"]["seconds"] >= 0
    capsys.readouterr()
    assert runner() == 0
    assert runner.called == [] and capsys.readouterr().out == "tiny: done before\n"
    # A run of other flags is not taken for the row's.
    monkeypatch.setattr(rows, "ROWS", (dataclasses.replace(TINY, flags=f"{TINY.flags} --beta 2"),))
    shutil.rmtree(runner.folder / "results")
    assert runner() == 1
    assert "was started with another configuration: beta: 1.0 -> 2.0" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"than the row: beta: 1\.0 -> 2\.0"):
        reproduce.check_is_of(rows.ROWS[0], runner.folder / "runs" / "tiny" / "0")


@pytest.mark.long
@pytest.mark.unoptimized
def test_seeds_are_trained_together_and_fill_the_page(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ROWS", (dataclasses.replace(TINY, seeds=(0, 1)),))
    runner.killed_after = 1
    assert runner() == 137
    assert runner() == 0
    both = ["sweep", "sweep"]  # Extracting.
    assert runner.called == ["sweep --resume", *both, "evaluate", "generate", "evaluate", "generate"]
    nats = [result["nats"] for result in runner.results()]
    assert [result["training"]["models"] for result in runner.results()] == [2, 2] and nats[0] != nats[1]
    # One seed more is one run more.
    monkeypatch.setattr(rows, "ROWS", (dataclasses.replace(TINY, seeds=(0, 1, 2)),))
    assert runner() == 0
    assert runner.called == ["train", "evaluate", "generate"]
    nats = [result["nats"] for result in runner.results()]

    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "papers.md").write_text(f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    monkeypatch.setattr(table, "DOCS", docs)
    monkeypatch.setattr(table, "RESULTS", tmp_path / "copied")
    monkeypatch.setattr(table, "ROWS", rows.ROWS)
    (tmp_path / "copied").mkdir()
    assert table.main(["--add", str(tmp_path / "results")]) == 0
    page = (docs / "papers.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    error = sum(result["standard_error"] for result in runner.results()) / 3
    assert f"**{sum(nats) / 3:.2f}** +- {error:.2f} ({min(nats):.2f} to {max(nats):.2f}) | 3 of 3" in page
    for picture in ("record-curves.png", "record-samples.png"):
        with Image.open(docs / "images" / picture) as drawn:
            assert min(drawn.size) > 50 and f"(images/{picture})" in page
    assert table.main(["--check"]) == 0


def test_sigterm_is_passed_on_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Child(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().wait(timeout)

    children = []

    def start(line: list[str]) -> Child:
        assert line[:3] == [sys.executable, "-m", "jaxvae.train"]
        children.append(Child([sys.executable, "-c", "import time; time.sleep(600)"]))
        return children[0]

    monkeypatch.setattr(reproduce.subprocess, "Popen", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(reproduce.Failed) as caught:
        reproduce.command("train", "--epochs", 1)
    assert caught.value.code == 143 and children[0].returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unknown_row_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["iwae-k6"])
    assert "no row is called 'iwae-k6'; there are flax-vae, vae-k1" in capsys.readouterr().err
