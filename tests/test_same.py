"""experiments/same/same.py sees what differs between two runs: made up here, of a metric and an array or two."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "same"))
import same

LOSSES = (2.0, 1.0)


def make(run: Path, losses: tuple[float, ...] = LOSSES, kernel: float = 1.0, **extra: Any) -> Path:
    """A run of two epochs of ten steps: `losses` after each, a kernel of 2 x 3 and a bias; `extra` arrays."""
    lines = [
        {"step": 10 * epoch, "epoch": epoch, "split": "train", "unit": "nats/image", "loss": loss}
        for epoch, loss in enumerate(losses, start=1)
    ]
    state = run / "checkpoints" / "20" / "state"
    state.parent.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    layer = {"kernel": np.full((2, 3), kernel, np.float32), "bias": np.zeros(3, np.float32), **extra}
    ocp.PyTreeCheckpointer().save(state, {"params": layer})
    arrays = {
        f"params/{name}": {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        }
        for name, array in layer.items()
    }
    record = {"record": {"steps_per_epoch": 10}, "arrays": arrays}
    (state.parent / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (run / "checkpoints" / "10").mkdir()  # Not the newest, nor read.
    return run


def row(old: Path, new: Path) -> same.Row:
    return same.compare_runs("case", "train", old, new)


def test_the_same(tmp_path: Path) -> None:
    found = row(make(tmp_path / "old"), make(tmp_path / "new"))
    assert found == ("case", "train", "20", "same", "same", "0")
    assert found.same


def test_metrics_that_differ(tmp_path: Path) -> None:
    found = row(make(tmp_path / "old"), make(tmp_path / "new", losses=(2.0, 1.25)))
    assert (found.metrics, found.parameters, found.same) == ("differ", "same", False)
    assert found.largest == "metrics: 0.0e+00 after epoch 1 (no term); 2.0e-01 in all (loss, step 20 train)"


def test_metrics_that_differ_in_bytes_alone(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new")
    path = new / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("2.0", "2.00"), encoding="utf-8")
    found = row(old, new)
    assert found.metrics == "differ"
    assert found.largest == "metrics: 0.0e+00 after epoch 1 (no term); 0.0e+00 in all (no term)"


def test_a_line_that_is_missing(tmp_path: Path) -> None:
    found = row(make(tmp_path / "old"), make(tmp_path / "new", losses=(2.0,)))
    assert found.metrics == "differ"
    assert "missing lines: step 20 train" in found.largest


def test_an_array_that_differs(tmp_path: Path) -> None:
    found = row(make(tmp_path / "old"), make(tmp_path / "new", kernel=1.5))
    assert (found.metrics, found.parameters, found.same) == ("same", "differ", False)
    assert found.largest == "arrays: 1 of 2, by up to 5.0e-01 (params/kernel): params/kernel"


def test_arrays_of_another_form_or_in_one_run_alone(tmp_path: Path) -> None:
    new = make(tmp_path / "new", bias=np.zeros(4, np.float32), scale=np.ones(1, np.float32))
    found = row(make(tmp_path / "old"), new)
    assert found.parameters == "differ"
    assert "added arrays: params/scale" in found.largest
    assert "other dtype or shape: params/bias ('float32', [3]) -> ('float32', [4])" in found.largest


def test_a_key_added_to_the_record_is_named_and_does_not_count(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new")
    path = new / "checkpoints" / "20" / "record.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["record"]["window"] = None
    path.write_text(json.dumps(content), encoding="utf-8")
    found = row(old, new)
    assert found.same
    assert found.largest == "added keys of the record: window"


def test_a_program_of_a_sweep_that_is_missing(tmp_path: Path) -> None:
    for name in ("old/programs/0", "old/programs/1", "new/programs/0"):
        make(tmp_path / name)
    found = row(tmp_path / "old", tmp_path / "new")
    assert (found.metrics, found.parameters) == ("differ", "differ")
    assert found.largest == "missing metrics.jsonl of: programs/1"


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.jsonl"):
        row(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"loss": 1.0, "kl": [0.5, float("nan")]}, {"kl": [0.5, float("nan")], "loss": 1.0}, ""),
        ({"kl": [0.5, 1.0]}, {"kl": [0.5, 0.75]}, "2.5e-01 (kl/1)"),
        ({"kl": 0.5}, {"kl": float("nan")}, "inf (kl)"),
        ({"kl": 0.5}, {"kl": 0.5, "mmd": 1.0}, "inf (mmd); added values: mmd"),
        ({"unit": "nats/image"}, {"unit": "per pixel"}, "inf (unit)"),
    ],
)
def test_values_of_an_evaluation(old: Any, new: Any, said: str) -> None:
    assert same.values_difference(old, new) == said


def test_a_speed_is_of_all_steps_and_ratios_are_of_rounds() -> None:
    spans = [{"event": "compile", "seconds": 9.0}] + [{"event": "steps", "steps": n, "seconds": 1.0} for n in (10, 30)]
    assert same.steps_per_second("".join(json.dumps(span) + "\n" for span in spans)) == 20
    line = same.speed_line("vae", [(10.0, 20.0), (10.0, 5.0), (20.0, 20.0)])
    assert line == "| vae | 3 | 10.0 | 20.0 | 1.000 (0.500 to 2.000) |"
