import json
import shutil
from pathlib import Path

import jax
import jaxlib
import pytest
from runs import train

from jaxvae import versions
from jaxvae.evaluate import evaluate_run
from jaxvae.run.records import read_records, terms_of
from jaxvae.sweep.extract import extract


def test_a_run_records_what_its_numbers_depend_on() -> None:
    found = versions.run_versions()
    assert (found["jax"], found["jaxlib"]) == (jax.__version__, jaxlib.version.__version__)
    assert (found["generator"], found["platform"]) == ("threefry2x32", "cpu")
    assert found.keys() == {"jaxvae", "jax", "jaxlib", "generator", "platform"}
    assert json.loads(json.dumps(found)) == found


def test_an_unknown_version_is_recorded_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise versions.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.importlib.metadata, "version", missing)
    assert versions.package_versions()["jaxvae"] == "unknown"


def test_a_warning_names_both_versions() -> None:
    new = {"jax": "0.10.2", "jaxlib": "0.10.2", "platform": "cpu"}
    assert versions.version_warnings(new, new) == []
    assert versions.version_warnings({}, new) == []
    (one,) = versions.version_warnings({**new, "jax": "0.9.0"}, new)
    assert "jax 0.9.0" in one and "jax 0.10.2" in one and "\n" not in one
    assert len(versions.version_warnings({"jax": "1", "platform": "tpu", "unheard": "of"}, new)) == 2


OLD = Path(__file__).parent / "data" / "version-0.1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what version 0.1 left, in the current directory, with its images."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.long
def test_a_run_of_version_0_1_goes_on_as_it_would_have(old: Path) -> None:
    assert train("--resume", "--run-dir", "run", "--epochs", "3") == 0
    # Other versions of XLA, and other processors, round otherwise.
    ours, theirs = (read_records(old / name) for name in ("run/metrics.jsonl", "resumed.jsonl"))
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() == expected.keys()
        assert {name: line[name] for name in ("step", "epoch", "split", "unit")} == {
            name: expected[name] for name in ("step", "epoch", "split", "unit")
        }
        for term in terms_of([line]):
            assert line[term] == pytest.approx(expected[term], rel=1e-5)
    arrays = json.loads((old / "run" / "checkpoints" / "12" / "record.json").read_text())["arrays"]
    assert arrays.keys() == json.loads((old / "resumed.json").read_text()).keys()


@pytest.mark.slow
def test_a_run_of_version_0_1_is_evaluated_as_it_was(old: Path) -> None:
    found = evaluate_run(Path("run"), samples=3)
    expected = json.loads((old / "evaluated.json").read_text())
    later = {
        "psnr",
        "ssim",
        *(f"{name}_standard_error" for name in ("mse", "psnr", "ssim", "kl_per_dimension")),
    }  # Metrics added since.
    assert found.keys() - later == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-4), name
        elif name not in ("dataset", "kl_per_dimension"):
            assert found[name] == value, name
    assert found["kl_per_dimension"] == pytest.approx(expected["kl_per_dimension"], rel=1e-4)


@pytest.mark.long
def test_a_member_of_a_sweep_of_version_0_1_is_extracted(old: Path) -> None:
    extract(Path("sweep"), 1, Path("member"))
    assert train("--resume", "--run-dir", "member", "--epochs", "3") == 0
    assert json.loads((old / "member" / "config.json").read_text())["beta"] == 2.0
