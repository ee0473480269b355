"""Runs side by side, from their records alone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_parts
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import SMALL, train

from jaxvae import cli, compare, evaluate, own
from jaxvae.fitting import fit
from jaxvae.run import plots
from jaxvae.trained import load_run

pytestmark = [pytest.mark.unoptimized, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8]) -> Path:
    place = tmp_path_factory.mktemp("compare")
    np.savez(place / "images.npz", train=images[:64], test=images[64:])
    np.savez(place / "others.npz", train=images[:64], test=images[60:92])
    for name, file, preset, *flags in (
        ("first", "images", "vae"),
        ("narrow", "images", "vae", "--latent-size", "3"),
        ("beta", "images", "vae", "--beta", "2"),
        ("binary", "images", "vae", "--inputs", "dynamic"),
        ("others", "others", "vae"),
        ("notes", "images", "notes-vae"),
    ):
        base = ["--dataset", str(place / f"{file}.npz"), *SMALL, "--epochs", "2"]
        assert train("--preset", preset, *base, *flags, "--run-dir", str(place / name)) == 0
    return place


def compared(runs: Path, *names: str, code: int = 0) -> int:
    assert cli.run(lambda: compare.main([str(runs / n) if n in NAMES else n for n in names])) == code
    return code


NAMES = ("first", "narrow", "beta", "binary", "others", "notes")


def test_two_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("jaxvae.run.checkpoint.Checkpoints.restore", None)  # No model is loaded.
    compared(runs, "first", "narrow", "--json", str(tmp_path / "c.json"), "--out", str(tmp_path / "c.png"))
    shown, said = capsys.readouterr()
    assert said == ""
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["rows"]["configuration"] == {"latent_size": [4, 3]}
    for place, name in enumerate(("first", "narrow")):
        lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["split"] == "test"][-1]
        for term in ("loss", "kl", "unnormalised_elbo"):
            assert content["rows"]["test (nats/image)"][term][place] == last[term]
            assert f"{last[term]:.6g}" in shown
        timing = [json.loads(line) for line in (runs / name / "timing.jsonl").read_text().splitlines()]
        seconds = sum(line["seconds"] for line in timing if line["event"] == "steps")
        assert content["rows"]["training"]["seconds"][place] == pytest.approx(seconds, rel=1e-3)
        assert content["rows"]["training"]["steps"][place] == 14
    with Image.open(tmp_path / "c.png") as image:
        assert len(image.getcolors(2**24) or ()) > 20


def test_what_evaluate_found_stands_beside_it(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{name}.json" for name in ("first", "narrow")]
    for file in files:
        assert cli.run(lambda file=file: evaluate.main([str(runs / file.stem), "--json", str(file)])) == 0
    capsys.readouterr()
    given = ["--evaluations", *map(str, files)]
    compared(runs, "first", "narrow", *given, "--json", str(tmp_path / "c.json"))
    shown, said = capsys.readouterr()
    found = [json.loads(file.read_text()) for file in files]
    content = json.loads((tmp_path / "c.json").read_text())["rows"]
    terms, rows = content["evaluation (nats/image)"], content["evaluation"]
    assert said == "" and rows["psnr"] == [each["psnr"] for each in found]
    assert terms["loss"] == content["test (nats/image)"]["loss"] and terms["kl_standard_error"][0] > 0
    assert {"mse", "active_units"} <= rows.keys() and not {"step", "images", "kl"} & rows.keys()
    assert re.search(rf"\n  psnr +{found[0]['psnr']:.6g} +{found[1]['psnr']:.6g}\n", shown)
    # In the wrong order, too few, of an older step, and not an evaluation at all.
    compared(runs, "narrow", "first", *given, code=2)
    assert "is of" in capsys.readouterr().err
    compared(runs, "first", "narrow", *given[:2], code=2)
    assert "1 files for 2 runs" in capsys.readouterr().err
    files[0].write_text(json.dumps(found[0] | {"step": 7, "samples": 5}))
    compared(runs, "first", "narrow", *given)
    told = capsys.readouterr().err
    assert "has taken 14 steps, its evaluation is of step 7" in told and "different --samples" in told
    files[0].write_text(json.dumps(found[0] | {"loss": 1.03 * found[0]["loss"]}))  # As of another seed.
    compared(runs, "first", "narrow", *given, code=2)
    assert "is it of another run?" in capsys.readouterr().err
    for content in ("[]", "{}", "{", json.dumps(found[0] | {"step": "x"}), "[" * 10_000):
        files[0].write_text(content)
        compared(runs, "first", "narrow", *given, code=2)


def test_the_parameters_are_those_of_the_model(runs: Path) -> None:
    found = [compare.read(runs / name).parameters for name in ("first", "narrow", "notes")]
    for count, name in zip(found, ("first", "narrow", "notes"), strict=True):
        leaves = [leaf.size for layer in _leaves(load_run(runs / name).variables["params"]) for leaf in [layer]]
        assert count == sum(leaves)


def _leaves(tree: Any) -> list[Any]:
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("beta", "loss does not compare: the runs differ in beta"),
        ("binary", "loss does not compare: the runs differ in inputs"),
        ("binary", "different bounds, elbo and unnormalised_elbo"),
        ("others", "different test images"),
        ("notes", "different units, nats/image and per pixel"),
    ],
)
def test_what_does_not_compare_is_said(other: str, said: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(runs, "first", other)
    shown, told = capsys.readouterr()
    assert f"warning: {said}" in told or said in told
    if other == "notes":  # A row for each unit, and never both numbers in one.
        assert "test (nats/image)" in shown and "test (per pixel)" in shown
        first = compare.rows_of([compare.read(runs / "first"), compare.read(runs / "notes")])
        assert [row.count(None) for row in first["test (per pixel)"].values()] == [1] * 3


def test_curves_are_of_what_compares(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_comparison", lambda *args: drawn.append(args))
    compared(runs, "first", "narrow", "--out", "c.png")
    compared(runs, "first", "beta", "--out", "c.png")  # The losses have other weights.
    assert [args[1] for args in drawn] == ["validation loss", "validation unnormalised_elbo"]
    (name, epochs, seconds, values), _ = drawn[0][3]
    assert name.endswith("first") and epochs == [1, 2] and len(values) == 2
    assert 0 <= seconds[0] < seconds[1]
    compared(runs, "first", "notes", "--out", "c.png", code=2)
    compared(runs, "first", "binary", "--out", "c.png", code=2)
    Path("c.png").unlink(missing_ok=True)


def test_steps_that_were_taken_again_count_once(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs / "first", copy)
    spans = [(5, 5, 1.0), (10, 5, 2.0), (8, 3, 4.0), (14, 6, 8.0)]  # Killed at 10, resumed at 5.
    lines = [json.dumps({"event": "steps", "step": s, "steps": n, "seconds": t}) for s, n, t in spans]
    (copy / "timing.jsonl").write_text("\n".join([*lines, '{"event": "st']))
    run = compare.read(copy)
    assert [run.seconds(step) for step in (5, 8, 11, 14)] == [1, 5, 9, 13]


@pytest.mark.long
def test_runs_of_a_model_and_a_loss_given_in_python(
    images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process does not have them: only what was recorded is needed."""

    class Local(own_parts.Net):
        pass

    def loss(output: Any, batch: Any) -> Any:
        return own_parts.loss(output, batch)

    for name, seed in (("one", 0), ("two", 1)):
        fit(data=images, model=Local(), objective=loss, batch_size=16, epochs=1, seed=seed, run_dir=tmp_path / name)
    monkeypatch.setattr("jaxvae.own._given", {})
    capsys.readouterr()
    assert cli.run(lambda: compare.main([str(tmp_path / "one"), str(tmp_path / "two")])) == 0
    shown, said = capsys.readouterr()
    assert said == "" and "sparsity" in shown and re.search(r"seed +0 +1\n", shown)
    assert not own._given  # Nothing stands in for them afterwards.


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["first"], "name two runs or more"),
        (["first", "first"], "is named twice"),
        (["first", "nothing"], "nothing is not a run directory"),
        (["first", "beta", "--out", "c.jpg"], "--out c.jpg: must end in .png"),
    ],
)
def test_what_is_refused(names: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(runs, *names, code=2)
    assert said in capsys.readouterr().err
