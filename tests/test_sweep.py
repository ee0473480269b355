"""Sweeps from the command line, and the files they leave."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.axes
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import PATIENCE, SMALL, assert_same_run, environment, state_of, train

from jaxvae import cli
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.evaluate import evaluate_run
from jaxvae.generate import main as generate
from jaxvae.run.records import read_records
from jaxvae.sweep import __main__ as command
from jaxvae.sweep.__main__ import parse
from jaxvae.sweep.extract import extract, restore
from jaxvae.sweep.grid import Grid, load_sweep, programs_of, to_json
from jaxvae.sweep.tables import best, draw, summary, summary_lines, table, write_tables
from jaxvae.train import pipeline
from jaxvae.trained import load_run


def sweep(*args: str) -> int:
    devices = [] if "--devices" in args or "--extract" in args else ["--devices", "2"]
    return cli.run(lambda: command.main([*args, *devices]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(run_dir: Path) -> dict[str, bytes]:
    """All files of a sweep that must not depend on the clock, except the checkpoints."""
    paths = [*run_dir.glob("*.csv"), *run_dir.glob("programs/*/metrics.jsonl")]
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted(paths)}


def assert_same_sweep(a: Path, b: Path) -> None:
    assert files_of(a) == files_of(b) and files_of(a)
    for _, programs in (load_sweep(a), load_sweep(b)):
        for index, numbers in enumerate(programs):
            grid, _ = load_sweep(a)
            one, other = (restore(d / "programs" / str(index), grid.members(), numbers) for d in (a, b))
            assert one is not None and other is not None and one.step == other.step
            jax.tree.map(np.testing.assert_array_equal, one.state, other.state)


@pytest.fixture
def base(image_file: Path) -> list[str]:
    """All 64 images are trained on, in 8 steps an epoch."""
    images = ["--dataset", str(image_file), "--validation", "0"]
    return ["--preset", "vae", *images, *SMALL, "--epochs", "2", "--log-every", "1"]


@pytest.mark.long
def test_a_sweep_is_its_runs(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    grid = ["--seeds", "2", "--learning-rate", "1e-3", "1e-2", "--beta", "1", "4", "--latent-size", "4", "3"]
    assert sweep(*base, *grid, "--run-dir", str(out)) == 0
    said = capsys.readouterr().err
    assert re.search(r"8 members could share a program; [1-9]\d* fit: \d+ MiB each \(at most\)", said)
    assert "program 2/2" in said
    assert "learning_rate 0.001  beta 1.0  latent_size 4: test loss" in said
    rows = rows_of(out / "members.csv")
    assert len(rows) == 16 and {row["status"] for row in rows} == {"done"}
    assert [row["member"] for row in rows] == [str(n) for n in range(16)]
    settings = {(row["learning_rate"], row["beta"], row["latent_size"], row["seed"]) for row in rows}
    assert len(settings) == 16
    means = rows_of(out / "summary.csv")
    assert len(means) == 8 and means[0]["seeds"] == "2"
    pair = [float(row["test_loss"]) for row in rows[:2]]
    np.testing.assert_allclose(float(means[0]["test_loss_mean"]), np.mean(pair), rtol=1e-5)
    np.testing.assert_allclose(float(means[0]["test_loss_std"]), abs(pair[0] - pair[1]) / 2**0.5, rtol=1e-4)
    for name in ("learning_rate", "beta", "latent_size", "rate_distortion"):
        assert (out / f"{name}.png").stat().st_size > 5000
    for number in (7, 10):
        row, one, run = rows[number], tmp_path / f"one{number}", tmp_path / f"extracted{number}"
        flags = [f for n in ("learning_rate", "beta", "latent_size", "seed") for f in (f"--{n}", row[n])]
        assert train(*base, *flags, "--run-dir", str(one)) == 0
        assert extract(out, number, run) == number
        assert_same_run(run, one)
        assert (run / "config.json").read_text() == (one / "config.json").read_text()
        np.testing.assert_allclose(evaluate_run(run)["loss"], float(row["test_loss"]), rtol=1e-6)


@pytest.mark.long
def test_the_best_member_is_extracted_as_a_run(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the one with the easiest objective; and it resumes as the run that it would have been alone."""
    out, run, one = tmp_path / "sweep", tmp_path / "run", tmp_path / "one"
    args = [*base, "--validation", "0.25", "--epochs", "10", "--learning-rate", "1e-2"]
    assert sweep(*args, "--beta", "0", "1", "--run-dir", str(out)) == 0
    rows = rows_of(out / "members.csv")
    losses, bounds = ([float(row[f"validation_{t}"]) for row in rows] for t in ("loss", "unnormalised_elbo"))
    assert losses[0] < losses[1] and bounds[0] < bounds[1], "the test shows nothing"
    assert "best: beta 1.0" in capsys.readouterr().err
    assert sweep("--run-dir", str(out), "--extract", "best", "--to", str(run)) == 0
    assert "member 1 of" in capsys.readouterr().err
    best_run = load_run(run, best=True)
    assert best_run.config.beta == 1 and best_run.record["validation_cost"] == -bounds[1]
    assert generate([str(run), "--out", str(tmp_path / "samples.png")]) == 0
    assert train("--resume", "--run-dir", str(run), "--epochs", "12") == 0
    assert train(*args, "--beta", "1", "--epochs", "12", "--run-dir", str(one)) == 0
    assert_same_run(run, one)


@pytest.mark.long
@pytest.mark.unoptimized
def test_a_member_is_extracted_in_the_middle_of_an_epoch(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own part of the epoch's averages."""
    out, run, one = tmp_path / "sweep", tmp_path / "run", tmp_path / "one"
    args = [*base, "--log-every", "0"]
    steps = iter(range(12))

    def stopping(driver: pipeline.Pipeline[Any]) -> bool:
        driver.stopped_by = signal.SIGTERM if next(steps) == 11 else None
        return driver.stopped_by is not None

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "_wanted", lambda _: 1)
        patch.setattr(pipeline.Pipeline, "_stopping", stopping)
        assert sweep(*args, "--beta", "1", "4", "--run-dir", str(out)) == 143
    assert extract(out, 1, run) == 1
    assert state_of(run).step % 8
    assert train("--resume", "--run-dir", str(run)) == 0
    assert train(*args, "--beta", "4", "--run-dir", str(one)) == 0
    assert_same_run(run, one)


@pytest.mark.unoptimized
@pytest.mark.slow
def test_a_sweep_goes_on_bit_for_bit(base: list[str], tmp_path: Path) -> None:
    """With more epochs, and where one program was cut short and one was not begun."""
    grid = ["--seeds", "3", "--learning-rate", "1e-3", "1e20", "--hidden", "16,8", "8,8"]
    args = [*base[:6], "--latent-size", "4", "--batch-size", "8", *grid]
    args += ["--checkpoint-every", "1", "--members-per-program", "4"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert sweep(*args, "--epochs", "4", "--run-dir", str(whole)) == 0
    assert sweep(*args, "--epochs", "2", "--run-dir", str(part)) == 0
    shutil.rmtree(part / "programs" / "3")
    shutil.rmtree(part / "programs" / "2" / "checkpoints" / "16")
    assert sweep("--resume", "--run-dir", str(part), "--epochs", "4") == 0
    assert_same_sweep(whole, part)
    rows = rows_of(whole / "members.csv")
    assert [row["status"] for row in rows].count("diverged at step 2") == 6
    assert [row["status"] for row in rows].count("done") == 6
    assert all((row["test_loss"] == "") == (row["status"] != "done") for row in rows)
    content = "".join(text.decode().lower() for text in files_of(whole).values())
    assert "nan" not in content and "inf" not in content
    with pytest.raises(InputError, match="--extract 6: .* step 2"):
        extract(whole, next(int(r["member"]) for r in rows if r["status"] != "done"), tmp_path / "x")


@pytest.mark.long
@pytest.mark.unoptimized
def test_all_members_may_diverge(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    args = [*base, "--epochs", "50", "--learning-rate", "1e20", "--seeds", "2"]
    assert sweep(*args, "--run-dir", str(out)) == cli.EXIT_DIVERGED
    said = capsys.readouterr().err
    assert (
        "no finite metric, 2 seeds  2 diverged" in said
        and "sweep: every member diverged: start a new run with a lower --learning-rate" in said
    )
    assert [row["status"] for row in rows_of(out / "members.csv")] == ["diverged at step 2"] * 2
    before = files_of(out)
    assert sweep("--resume", "--run-dir", str(out)) == cli.EXIT_DIVERGED
    assert files_of(out) == before
    assert sweep("--run-dir", str(out), "--extract", "best", "--to", str(tmp_path / "x")) == 2


@pytest.mark.unoptimized
@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_sweep_that_was_stopped(sent: signal.Signals, code: int, base: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = [*base, "--epochs", "400", "--seeds", "3", "--beta", "1", "2", "--checkpoint-every", "20"]
    assert sweep(*args, "--run-dir", str(whole)) == 0
    command = [sys.executable, "-m", "jaxvae.sweep", *args, "--run-dir", str(cut)]
    process = subprocess.Popen(command, env=environment(2), stderr=subprocess.PIPE, text=True)
    log, end = cut / "programs" / "0" / "metrics.jsonl", time.monotonic() + PATIENCE
    while not log.exists() or log.read_bytes().count(b"\n") < 2000:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == code, said
    rows = table(cut)
    assert all(row["status"].startswith("stopped at step") for row in rows)
    assert sweep("--resume", "--run-dir", str(cut)) == 0
    assert_same_sweep(whole, cut)


def test_the_grid() -> None:
    flags = ["--learning-rate", "1e-3", "3e-4", "--beta=2", "--hidden", "512,256", "64,", "--latent_size", "2", "3"]
    arguments, axes = parse(["--preset", "vae", "--seed", "5", "--seeds", "2", *flags])
    assert axes == {
        "learning_rate": [1e-3, 3e-4],
        "beta": [2.0],
        "latent_size": [2, 3],
        "hidden": [(512, 256), (64,)],
    }
    grid = Grid(arguments.config, axes, [5, 6])
    found = grid.members()
    assert list(axes) == ["learning_rate", "beta", "latent_size", "hidden"]  # In whatever order they are given.
    assert len(found) == len(set(found)) == 16
    assert found[0] == dataclasses.replace(
        PRESETS["vae"], seed=5, beta=2.0, learning_rate=1e-3, latent_size=2, hidden=(512, 256)
    )
    assert [len(numbers) for numbers in programs_of(found)] == [4, 4, 4, 4]
    for numbers in programs_of(found):
        assert len({(found[n].hidden, found[n].latent_size) for n in numbers}) == 1
    _, axes = parse(["--preset", "vae", "--hidden", "512", "256"])
    assert axes["hidden"] == [(512, 256)]
    decays = [dataclasses.replace(PRESETS["vae"], weight_decay=decay) for decay in (0, 0.1, 0, 0.2)]
    assert programs_of(decays) == [[0, 2], [1, 3]]


@pytest.mark.slow
@pytest.mark.unoptimized
@pytest.mark.parametrize(("flags", "message"), [
    (["--beta", "1", "x"], "--beta: x"),
    (["--beta", "1", "-1"], "--beta"),
    (["--beta"], "--beta"),
    (["--beta", "1", "1.0"], "--beta"),
    (["--latent-size", "2.5"], "--latent-size: 2.5"),
    (["--latent-size", "2", "0"], "--latent-size"),
    (["--hidden", "8,8", "a,b"], "--hidden: a,b"),
    (["--seeds", "0"], "--seeds"),
    (["--seed", str(2**32 - 1), "--seeds", "2"], "--seed"),
    (["--batch-size", "8", "65"], "--batch-size 65"),
    (["--devices", "9"], "--devices 9"),
    (["--devices", "some"], "--devices"),
    (["--members-per-program", "0"], "--members-per-program"),
    (["--colour", "3"], "--colour"),
    (["--preset", "notes-vae", "--beta", "1", "2"], "--beta"),
    (["--resume"], "sweep.json"),
    (["--to", "there"], "--to"),
    (["--extract", "0"], "--extract"),
    (["--extract", "0", "--to", "there"], "sweep.json"),
])  # fmt: skip
def test_bad_input_is_refused(
    flags: list[str], message: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*base, "--run-dir", str(tmp_path / "run"), *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.unoptimized
def test_directories_are_guarded(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert sweep(*base, "--beta", "1", "2", "--run-dir", str(out)) == 0
    capsys.readouterr()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for args, message in [
        ([*base, "--run-dir", str(out)], "sweep.json"),
        (["--resume", "--run-dir", str(out), "--beta", "3"], "--beta"),
        (["--resume", "--run-dir", str(out), "--seeds", "3"], "--resume"),
        (["--resume", "--run-dir", str(out), "--activation", "tanh"], "activation"),
        (["--run-dir", str(out), "--extract", "2", "--to", "x"], "--extract 2"),
        (["--run-dir", str(out), "--extract", "worst", "--to", "x"], "--extract worst"),
        (["--run-dir", str(out), "--extract", "1", "--to", str(tmp_path / "full")], "--to"),
    ]:
        assert sweep(*args) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    log = out / "programs" / "0" / "metrics.jsonl"
    lines = log.read_bytes()
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        extract(out, 1, tmp_path / "x")
    log.unlink()
    log.write_bytes(lines)
    content = json.loads((out / "sweep.json").read_text())
    for damage in (
        "{",
        "[]",
        json.dumps({**content, "programs": [[0]]}),
        json.dumps({**content, "axes": {"seed": [1]}}),
    ):
        (out / "sweep.json").write_text(damage)
        with pytest.raises(InputError):
            load_sweep(out)


def test_a_summary_leaves_out_what_diverged() -> None:
    grid = Grid(PRESETS["vae"], {"beta": [1.0, 2.0]}, [0, 1, 2])
    losses = [90.0, 100.0, None, None, None, None]
    rows = [
        {"member": n, "status": "done" if loss else "diverged at step 9", "beta": 1.0 + n // 3, "test_loss": loss}
        for n, loss in enumerate(losses)
    ]
    first, second = summary(grid, rows)
    assert (first["test_loss_mean"], first["test_loss_min"], first["test_loss_max"]) == (95, 90, 100)
    assert first["test_loss_std"] == pytest.approx(50**0.5, rel=1e-5)
    assert first["diverged"] == 1 and second["diverged"] == 3 and second["test_loss_mean"] is None


def written(directory: Path, grid: Grid, lines: list[dict[str, Any]]) -> Path:
    """A finished sweep with these lines of metrics."""
    programs = programs_of(grid.members())
    common = {"step": 100, "epoch": grid.config.epochs, "unit": "nats/image"}
    for index, numbers in enumerate(programs):
        own = [json.dumps({**common, **line}) + "\n" for line in lines if line["member"] in numbers]
        log = directory / "programs" / str(index) / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text("".join(own))
    (directory / "sweep.json").write_text(to_json(grid, programs))
    return directory


def beta_sweep(directory: Path, **changes: Any) -> tuple[Path, Grid]:
    """Three betas, two seeds; the loss grows with beta, and the bound is the highest where beta is 1.

    By the test images, the last would be the best.
    """
    grid = Grid(dataclasses.replace(PRESETS["vae"], **changes), {"beta": [0.25, 1.0, 4.0]}, [0, 1])
    lines = []
    for number, member in enumerate(grid.members()):
        terms = {"recon": 80 + 5 * member.beta + member.seed, "kl": 20.0}
        bound = -105.0 + member.seed - 3 * abs(member.beta - 1)
        for split, found in (("train", None), ("validation", bound), ("test", -110 + member.beta)):
            terms = {**terms, "loss": 100 + member.beta * 20} | ({"unnormalised_elbo": found} if found else {})
            lines.append({"member": number, "split": split, **terms})
    return written(directory, grid, lines), grid


def test_members_are_ranked_by_a_metric_that_means_the_same_for_all(tmp_path: Path) -> None:
    """By their own losses, the least beta would always win; and nothing is chosen by the test images."""
    out, grid = beta_sweep(tmp_path / "sweep")
    rows = write_tables(out)
    assert {row["status"] for row in rows} == {"done"}
    column, row = best(grid, rows)
    assert (column, row["beta"], row["seed"]) == ("validation_unnormalised_elbo", 1.0, 1)
    written_rows, means = rows_of(out / "members.csv"), rows_of(out / "summary.csv")
    assert float(written_rows[3]["validation_unnormalised_elbo"]) == -104
    assert float(written_rows[3]["test_unnormalised_elbo"]) == -109
    assert float(means[1]["validation_unnormalised_elbo_mean"]) == -104.5
    assert float(means[1]["test_unnormalised_elbo_max"]) == -109
    assert not any(name.startswith("train") for name in means[0])
    *settings, last = summary_lines(grid, rows)
    assert len(settings) == 3
    assert all("validation loss" in line and "unnormalised_elbo" in line for line in settings)
    assert "beta 1.0" in last and "-104.5" in last and "-109" in last


@pytest.mark.slow
def test_panels_show_the_validation_images_if_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    for of in ("validation", "test"):
        out, grid = beta_sweep(tmp_path / of)
        rows = table(out)
        if of == "test":
            rows = [{n: v for n, v in row.items() if not n.startswith("validation")} for row in rows]
        monkeypatch.setattr(matplotlib.axes.Axes, "set_title", lambda axes, title, **_: titles.append(title))
        draw(out, grid, rows)
        assert titles == [f"{of} {term}" for term in ("loss", "recon", "kl", "unnormalised_elbo")]
        assert {path.name for path in out.glob("*.png")} == {"beta.png", "rate_distortion.png"}
        titles.clear()


def test_the_notes_models_are_ranked_by_their_loss(tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["notes-vae"], validation=0.1)
    grid = Grid(config, {"learning_rate": [1e-3, 1e-2, 1e-1]}, [0])
    losses = [0.05, 0.04, 0.06]
    lines = [{"member": n, "split": "validation", "loss": loss} for n, loss in enumerate(losses)]
    column, row = best(grid, table(written(tmp_path, grid, lines)))
    assert (column, row["member"]) == ("validation_loss", 1)


def test_there_is_no_best_without_validation_images(tmp_path: Path) -> None:
    out, grid = beta_sweep(tmp_path / "sweep", validation=0.0)
    with pytest.raises(InputError, match=r"--extract best: .*sweep.*--validation 0"):
        extract(out, "best", tmp_path / "run")
    assert "--validation 0" in summary_lines(grid, table(out))[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_bounds_of_different_numbers_of_samples_are_not_compared(objective: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["iwae"], objective=objective)
    for axes, compared in (({"samples": [1, 5]}, False), ({"samples": [5], "latent_size": [2, 3]}, True)):
        grid = Grid(config, axes, [0])
        lines = [{"member": n, "split": "validation", "loss": 90.0, "iwae_bound": -90.0 - n} for n in range(2)]
        out = written(tmp_path / str(compared), grid, lines)
        if compared:
            assert best(grid, table(out))[1]["member"] == 0
        else:
            with pytest.raises(InputError, match="--samples"):
                best(grid, table(out))


def test_no_member_is_best_before_one_was_evaluated(tmp_path: Path) -> None:
    grid = Grid(PRESETS["vae"], {"beta": [1.0, 2.0]}, [0])
    lines = [{"member": 0, "split": "train", "loss": 90.0}, {"member": 1, "split": "diverged", "at": 9}]
    with pytest.raises(InputError, match="validation unnormalised_elbo"):
        best(grid, table(written(tmp_path, grid, lines)))


@pytest.mark.long
def test_one_device_for_each_core() -> None:
    """Where the user has not said otherwise, and on the command line only."""
    code = "import jax; from jaxvae.sweep.__main__ import use_every_core; use_every_core(); print(jax.device_count())"
    without = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for env, expected in ((without, len(os.sched_getaffinity(0))), (environment(3), 3)):
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert int(out.stdout) == expected


@pytest.mark.long
@pytest.mark.unoptimized
def test_a_refused_resume_leaves_all_as_it_was(
    base: list[str], tmp_path: Path, images: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other images, and metrics that cannot be read: found before anything is written."""
    out, other = tmp_path / "sweep", tmp_path / "other.npz"
    np.savez(other, train=images[32:], test=images[:32])
    assert sweep(*base, "--beta", "1", "2", "--run-dir", str(out)) == 0
    log = out / "programs" / "0" / "metrics.jsonl"
    content, whole = log.read_bytes(), (out / "sweep.json").read_bytes()
    capsys.readouterr()
    assert sweep("--resume", "--run-dir", str(out), "--dataset", str(other), "--epochs", "3") == 2
    error = capsys.readouterr().err
    assert "--resume" in error and error.count("\n") == 1
    for damage in (
        {"step": 1},
        {"step": "1", "member": 0, "split": "test", "unit": "a"},
        {"step": 1, "member": 0, "split": "train", "unit": "u", "loss": float("nan")},
        {"step": 1, "member": 0, "split": "diverged", "unit": "u", "epoch": 1},
        [1],
    ):
        log.write_bytes(json.dumps(damage).encode() + b"\n" + content)
        for args in (["--resume", "--epochs", "3"], ["--extract", "0", "--to", str(tmp_path / "x")]):
            assert sweep(*args, "--run-dir", str(out)) == 2
            error = capsys.readouterr().err
            assert "metrics.jsonl" in error and error.count("\n") == 1
    assert (out / "sweep.json").read_bytes() == whole and not (tmp_path / "x").exists()
    log.write_bytes(content)
    assert sweep("--resume", "--run-dir", str(out), "--epochs", "3") == 0


@pytest.mark.slow
@pytest.mark.parametrize("change", [
    {"axes": {"learning_rate": [None]}}, {"axes": {"learning_rate": ["a", "b"]}}, {"axes": {"hidden": [[1.5], [2]]}},
    {"axes": {"beta": []}, "programs": []}, {"axes": {"beta": [True, 2]}}, {"axes": {"batch_size": [8.0, 4.0]}},
    {"axes": {"beta": [1, -1]}}, {"axes": {"seed": [1, 2]}}, {"axes": {"beta": [1.0, 1.0]}},
    {"axes": {"latent_size": [4, 5]}}, {"programs": [[0, 1], []]}, {"programs": [[0.5, 1.2]]}, {"programs": [[0]]},
    {"programs": 3}, {"seeds": ["0"]}, {"seeds": []}, {"config": {"preset": "nope"}}, {"config": None},
])  # fmt: skip
def test_a_damaged_sweep_is_refused_in_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    grid = Grid(PRESETS["vae"], {"beta": [1.0, 2.0]}, [0])
    whole = json.loads(to_json(grid, [[0, 1]]))
    for content, good in ((whole, True), ({**whole, **change}, False)):
        (tmp_path / "sweep.json").write_text(json.dumps(content))
        if good:
            assert load_sweep(tmp_path) == (grid, [[0, 1]])
        else:
            with pytest.raises(InputError, match="sweep.json"):
                load_sweep(tmp_path)


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize(
    ("flags", "name"), [("--likelihood own_parts:Cauchy", "cauchy_scale"), ("--prior own_parts:Wide", "prior_width")]
)
def test_the_users_own_options_are_swept(flags: str, name: str, base: list[str], tmp_path: Path) -> None:
    """Every member is the single run with its value, of a likelihood and of a prior."""
    flag, one = f"--{name.replace('_', '-')}", tmp_path / "sweep"
    args = ["--preset", "vae", *flags.split(), *base, "--epochs", "2"]
    assert sweep(*args, flag, "0.3", "2", "--run-dir", str(one)) == 0
    lines = read_records(one / "programs" / "0" / "metrics.jsonl", ("member",))
    for member, value in enumerate(("0.3", "2")):
        alone = tmp_path / value
        assert train(*args, flag, value, "--run-dir", str(alone)) == 0
        expected = [line["loss"] for line in read_records(alone / "metrics.jsonl")]
        found = [line["loss"] for line in lines if line["member"] == member]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_option_that_is_not_swept_is_named(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*base, "--preset", "vae", "--likelihood-std", "0.1", "0.2", "--run-dir", str(tmp_path / "sweep")]
    assert sweep(*args) == 2
    told = capsys.readouterr().err
    assert "--likelihood-std takes one value" in told and told.count("\n") == 1
