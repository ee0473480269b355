"""The campaign of experiments/accelerator: it measures what is missing, says what failed, and makes a page."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "accelerator"))
import forms
import page
import run
import trainers

from jaxvae.models import convolution


def campaign(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    return run.main()


@pytest.mark.long
def test_a_piece_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["machine", "--data-dir", tmp_path, "--out", tmp_path / "out", "--small"]
    assert campaign(monkeypatch, *arguments) == 0
    found = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert found["platform"] == "cpu" and min(found["flops_per_second"].values()) > 0
    assert [path.name for path in (tmp_path / "out").glob("*.*")] == ["machine.json"]
    assert "machine: done, " in capsys.readouterr().out
    assert campaign(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == "machine: measured before\n"


@pytest.mark.slow
def test_a_piece_that_fails_leaves_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    assert campaign(monkeypatch, "sweep", "--data-dir", nothing, "--out", tmp_path, "--small") == 1
    assert "sweep: failed, " in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.*")] == ["sweep.log"]
    assert str(nothing) in (tmp_path / "sweep.log").read_text()


def test_an_unknown_piece_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        campaign(monkeypatch, "kernel", "--data-dir", tmp_path, "--out", tmp_path)
    assert "no piece is called 'kernel'; there are machine same " in capsys.readouterr().err


CONTENDER = "import sys\nfor line in sys.stdin: print('{\"seconds\": 0.5}', flush=True)"


def test_contenders_take_turns_and_one_that_fails_is_left_out() -> None:
    commands = {"good": [sys.executable, "-c", CONTENDER], "bad": [sys.executable, "-c", "raise SystemExit(1)"]}
    assert trainers.in_turn(commands, steps=10, quick=False) == {"good": [20.0, 20.0, 20.0]}


MEASURED = {
    "machine": {
        **{"device": "NVIDIA H100", "cores": 16, "processor": "Xeon", "python": "3.12.3", "date": "2026-11-26"},
        **{"versions": {"jax": "0.11.2"}, "bytes_per_second": 2.95e12},
        "flops_per_second": {"float32-highest": 51e12, "bfloat16-default": 664e12},
    },
    "same": {"vae": {"first": 2e-7, "most": 1.2e-6, "steps": 64}},
    "resume": [
        {
            **{"model": "conv", "flags": "--exact", "programs_kept": True},
            **{"again_the_same": True, "resumed_the_same": False},
        }
    ],
    "ways": {"as it is": {"steps_per_second": [15132.0, 15326.4, 15404.0]}, "one that failed": {}},
    "dense": {
        "model": "notes-vae",
        "results": [
            {
                **{"batch_size": size, "steps_per_second_rounds": [speed], "images_per_second": size * speed},
                **{"peak_fraction": 0.571, "products": "float32-highest"},
            }
            for size, speed in ((32, 15000.0), (32768, 400.0))
        ],
    },
    "kernels": {"notes-vae": {"kernels_per_step": 51.0, "seconds_per_step_unprofiled": 65.2e-6}},
    "predicted": {"notes-vae": {"results": [{"kernels_per_step": 53, "predicted_seconds": {"a": 57e-6, "b": 8e-6}}]}},
    "sweep": [{"members": 1, "model_steps_per_second": [15e3]}, {"members": 64, "model_steps_per_second": [4e5, 5e5]}],
    "comparison": [{"batch_size": 4096, "name": "torch", "steps_per_second": [900.0]}],
    "convolutions": [
        {"architecture": "conv", "shape": [64, 64, 3], "batch_size": 128, "name": "jaxvae", "steps_per_second": [242.0]}
    ],
    "nats": {"table": "what  seconds\n105   1.5\n"},
}
ROWS = (
    "NVIDIA H100, 16 cores of Xeon, Python 3.12.3, jax 0.11.2, 2026-11-26.",
    "| products, float32-highest | 51 TFLOP/s |",
    "| memory, bytes read and written | 2.95 TB/s |",
    "| vae | 2e-07 | 1e-06 | 64 |",
    "| conv | `--exact` | kept | the same bytes | other bits |",
    "| as it is | 15,326 (15,132-15,404) |",
    "| 32,768 | 400 (400-400) | 13,107,200 | 57% of float32-highest |",
    "| notes-vae | 53 | 51 | 65 us | 65 us |",
    "| 64 | 450,000 (400,000-500,000) |",
    "| 4,096 | torch | 900 (900-900) |",
    "| conv | 64 x 64 x 3 | 128 | jaxvae | 242 (242-242) |",
    "105   1.5",
)


def test_the_page_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
    for name, content in MEASURED.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert page.main() == 0
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert [row for row in ROWS if row not in lines] == []
    assert not any("one that failed" in line for line in lines)
    assert (tmp_path / "speed.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_page_of_one_piece(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a campaign had time for makes a page."""
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
    (tmp_path / f"{name}.json").write_text(json.dumps(MEASURED[name]))
    assert page.main() == 0
    headings = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == ([] if name == "kernels" else [f"## {name}"])


@pytest.mark.slow
@pytest.mark.parametrize("form", list(forms.FORMS))
def test_a_form_computes_what_the_layers_do(form: str) -> None:
    rng = np.random.default_rng(0)
    x = jnp.float32(rng.normal(size=(2, 7, 6, 3)))
    convolve, transposed = forms.FORMS[form]
    for stride in (1, 2):
        kernel = jnp.float32(rng.normal(size=(3, 3, 3, 5)))
        expected = convolution.convolve(x, kernel, stride)
        np.testing.assert_allclose(convolve(x, kernel, stride), expected, rtol=1e-4, atol=1e-5)
    kernel = jnp.float32(rng.normal(size=(4, 4, 3, 5)))
    for size in ((14, 12), (13, 11)):
        expected = convolution.convolve_transposed(x, kernel, size)
        np.testing.assert_allclose(transposed(x, kernel, size), expected, rtol=1e-4, atol=1e-5)
