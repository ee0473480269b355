"""The command line of training, and the loop behind it, from the outside: what is written, said and returned."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import SHALLOW, SMALL, assert_same_run, state_of, train

from jaxvae import cli, data, evaluate, generate
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.objectives.notes import NotesElbo
from jaxvae.plane import plane_of
from jaxvae.run import directory as run_dir
from jaxvae.run import plots, records
from jaxvae.train import loop, programs, trainer
from jaxvae.trained import load_run

pytestmark = pytest.mark.unoptimized


@pytest.fixture
def base(image_file: Path) -> list[str]:
    return ["--dataset", str(image_file), *SMALL]


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_writes_what_it_promises(preset: str, base: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ["--epochs", "3", "--image-every", "1", "--run-dir", str(run)]
    if preset in SHALLOW:
        base = [word for word in base if word not in ("--latent-size", "4")]
        args += [
            word for name, value in SHALLOW[preset].items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
    assert train("--preset", preset, *base, *args) == 0

    config = json.loads((run / "config.json").read_text())
    assert (config["preset"], config["hidden"], config["epochs"]) == (preset, [16, 8], 3)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # With 5 of the 64 images held out for validation there are 7 steps of 8 an epoch.
    steps, watched = (8, "test") if preset.startswith("notes") else (7, "validation")
    expected = [(steps * epoch, epoch, split) for epoch in (1, 2, 3) for split in ("train", watched)]
    expected += [(3 * steps, 3, "test")] if watched == "validation" else []
    assert [(line["step"], line["epoch"], line["split"]) for line in lines] == expected
    for line in lines:
        assert line["unit"] == ("per pixel" if preset.startswith("notes") else "nats/image")
        assert line["loss"] > 0
        if preset in ("notes-vae", "vae"):
            assert line["loss"] == pytest.approx(line["recon"] + line["kl"], rel=1e-5)
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    assert [line["event"] for line in timing if line["event"] != "steps"] == ["compile", "save"]

    pictures = sorted(p.name for p in (run / "images").iterdir())
    grids = ["reconstructions"] if preset == "notes-ae" else ["reconstructions", "samples"]
    assert pictures == sorted(
        ["curves.png", "latents.png", "training.png"]
        + [f"{g}_epoch_{e:04}.png" for g in grids for e in (1, 2, 3)]
        + [f"latents_epoch_{e:04}.npz" for e in (1, 2, 3)]
    )
    with Image.open(run / "images" / "reconstructions_epoch_0003.png") as picture:
        rows = 4 if watched == "test" else 1  # Of the 32 or 5 images, 8 a row.
        assert picture.size == (2 * (8 * 7 + 2), 2 * (2 * rows * 8 + 2))
    assert list((run / "tensorboard").glob("events.*"))
    assert state_of(run).step == 3 * steps


@pytest.mark.long
def test_two_runs_of_one_configuration_write_the_same_bytes(base: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert train(*base, "--epochs", "2", "--run-dir", str(tmp_path / name)) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.long
@pytest.mark.parametrize(("setting", "value"), [("default_prng_impl", "rbg"), ("threefry_partitionable", False)])
def test_the_environments_random_generator_changes_nothing(
    setting: str, value: Any, base: list[str], tmp_path: Path
) -> None:
    """As under JAX_DEFAULT_PRNG_IMPL=rbg, which is usual on TPUs."""
    args = ["--preset", "vae", *base, "--epochs", "1", "--inputs", "dynamic", "--run-dir"]
    assert train(*args, str(tmp_path / "a")) == 0
    before = getattr(jax.config, f"jax_{setting}")
    jax.config.update(f"jax_{setting}", value)
    try:
        assert train(*args, str(tmp_path / "b")) == 0
    finally:
        jax.config.update(f"jax_{setting}", before)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_a_changed_preset_is_announced_as_one(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--preset", "notes-ae", *base, "--objective", "elbo", "--head", "linear", "--epochs", "1"]
    assert train(*args, "--run-dir", str(tmp_path / "run")) == 0
    changed = "notes-ae, changed: objective elbo, hidden 16,8, latent_size 4, head linear, batch_size 8"
    assert capsys.readouterr().err.startswith(f"{changed} on ")


@pytest.mark.long
def test_another_seed_is_another_run(base: list[str], tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert train(*base, "--epochs", "1", "--seed", seed, "--run-dir", str(tmp_path / seed)) == 0
    assert (tmp_path / "0" / "metrics.jsonl").read_text() != (tmp_path / "1" / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["notes-vae", "vae"])
@pytest.mark.parametrize("log_every", ["0", "3"])
def test_a_resumed_run_is_the_uninterrupted_run(preset: str, log_every: str, base: list[str], tmp_path: Path) -> None:
    """Also if the test images are evaluated only at the end, and the end moves."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    base = ["--preset", preset, *base, "--log-every", log_every]
    assert train(*base, "--epochs", "4", "--run-dir", str(whole)) == 0
    assert train(*base, "--epochs", "1", "--run-dir", str(parts)) == 0
    for epochs in ("2", "4"):
        assert train("--resume", "--epochs", epochs, "--run-dir", str(parts)) == 0
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_fewer_epochs_than_are_done_are_refused(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(*SMALL, "--epochs", "2"), run)
    before = (run / "config.json").read_bytes()
    capsys.readouterr()
    assert train("--resume", "--epochs", "1", "--run-dir", str(run)) == 2
    assert "--epochs 1 " in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before


@pytest.mark.long
def test_a_run_that_is_extended_and_taken_back_has_its_test_metrics(base: list[str], tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    base = ["--preset", "vae", *base]
    assert train(*base, "--epochs", "2", "--run-dir", str(whole)) == 0
    assert train(*base, "--epochs", "2", "--run-dir", str(run)) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert '"test"' in lines.pop()  # What an extension drops, before its first step.
    (run / "metrics.jsonl").write_text("".join(lines))
    assert train("--resume", "--run-dir", str(run)) == 0
    assert_same_run(whole, run)


@pytest.mark.long
def test_a_finished_run_has_nothing_to_resume(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(*SMALL, "--epochs", "1"), run)
    before = (run / "metrics.jsonl").read_bytes()
    assert train("--resume", "--run-dir", str(run)) == 0
    assert "nothing to do: 8 steps are done already; raise --epochs" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.long
def test_the_map_of_a_run_has_the_colours_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dataset by name they are read when it ends; the map shows the newest latents, in their order."""
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_map", lambda *args: drawn.append(args))
    flags = ["--preset", "vae", "--dataset", "digits", "--hidden", "8", "--latent-size", "3", "--epochs", "2"]
    assert train(*flags, "--image-every", "1", "--run-dir", str(tmp_path / "run")) == 0
    [(path, places, labels, _, names, _)] = drawn
    assert path == tmp_path / "run" / "images" / "latents.png" and names[0].startswith("principal component 1")
    run = load_run(tmp_path / "run")
    held_out = data.prepared(data.load("digits", labels=True), run.config).split("validation")
    np.testing.assert_array_equal(labels, held_out["label"][: len(labels)])
    latents = run.encode(held_out["image"][: len(labels)])
    with np.load(path.with_name("latents_epoch_0002.npz")) as file:
        kept = file["latent"].astype(np.float64)
    np.testing.assert_allclose(kept, latents, rtol=1e-2, atol=1e-3)  # As float16.
    np.testing.assert_array_equal(places, plane_of(kept).places(kept))


@pytest.mark.long
def test_a_run_that_overfits_says_which_epoch_was_best(
    images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight images of noise are learned by heart. Blobs are not, in the same time."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 6, 5, 1), np.uint8)
    np.savez(tmp_path / "few.npz", train=noise[:16], test=noise[16:])
    np.savez(tmp_path / "blobs.npz", train=images[:72], test=images[72:])
    flags = ["--preset", "vae", "--validation", "8", "--batch-size", "8", "--latent-size", "8", "--image-every", "0"]

    def said_by(name: str, *changed: str) -> str:
        args = ["--dataset", str(tmp_path / f"{name}.npz"), *changed, "--run-dir", str(tmp_path / changed[-1])]
        assert train(*flags, *args) == 0
        return capsys.readouterr().err

    fast = ["--hidden", "64", "--learning-rate", "0.02", "--epochs", "60"]
    said = said_by("few", *fast, "--checkpoint-every", "1")
    lines = [line for line in records.read_records(tmp_path / "1" / "metrics.jsonl") if line["split"] == "validation"]
    best, last = max(lines, key=lambda line: line["unnormalised_elbo"]), lines[-1]
    assert best["epoch"] < 60
    told = f"was best at epoch {best['epoch']}: {best['unnormalised_elbo']:.6g}, not {last['unnormalised_elbo']:.6g}"
    assert told in said and "as at the end; --best takes that checkpoint" in said
    saved = lines[24]["unnormalised_elbo"]
    assert f"--best takes epoch 25, the best that was saved: {saved:.6g}" in said_by(
        "few", *fast, "--checkpoint-every", "25"
    )
    assert "no better checkpoint was saved" in said_by("few", *fast, "--checkpoint-every", "0")
    assert "was best at epoch" not in said_by("blobs", "--hidden", "16", "--epochs", "8")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_stops_and_the_run_goes_on(
    number: signal.Signals,
    base: list[str],
    finished: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, cut = finished(*SMALL, "--epochs", "5"), tmp_path / "cut"
    write = loop.RunFiles.write_epoch

    def write_and_kill(self: Any, step: int, *values: Any) -> None:
        write(self, step, *values)
        if step == 16:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop.RunFiles, "write_epoch", write_and_kill)
    before = signal.signal(number, signal.default_int_handler)  # The suite itself may run under nohup.
    try:
        assert train(*base, "--epochs", "5", "--run-dir", str(cut)) == 128 + number
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert 16 <= int(state_of(cut).step) < 40
    monkeypatch.undo()
    assert train("--resume", "--run-dir", str(cut)) == 0
    assert_same_run(whole, cut)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("--preset", "vae", *base, "--learning-rate", "1e30", "--run-dir", str(run)) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the loss is")
    assert "--learning-rate than 1e+30" in error and "--clip-norm" in error
    assert all(np.isfinite(line["loss"]) for line in records.read_records(run / "metrics.jsonl"))


@pytest.mark.slow
def test_parameters_that_are_not_finite_after_the_last_step_stop_the_run(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # One step: its own loss is finite, but the parameters after it are not.
    args = ["--preset", "vae", *base, "--batch-size", "59", "--learning-rate", "1e30", "--epochs", "1"]
    assert train(*args, "--run-dir", str(run)) == 3
    assert "error: the validation loss is not finite at step 1" in capsys.readouterr().err
    assert not list((run / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_evaluate_gives_the_last_test_line(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = finished(*SMALL, "--epochs", "2"), tmp_path / "figures.json"
    assert cli.run(lambda: evaluate.main([str(run), "--json", str(out)])) == 0
    figures = json.loads(out.read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("step", "epoch", "split", "unit"):
        assert figures[name] == last[name]
    for name in ("loss", "recon", "kl"):
        assert figures[name] == pytest.approx(last[name], rel=1e-6)
    assert figures["images"] == 32
    shown = capsys.readouterr().out
    assert "notes-vae, changed: hidden 16,8, latent_size 4, batch_size 8 on 32 test images" in shown
    assert "(per pixel)" in shown and f"{figures['loss']:.6g}" in shown


@pytest.mark.slow
def test_generate_draws_a_grid(finished: Callable[..., Path], tmp_path: Path) -> None:
    run, out = finished(*SMALL, "--epochs", "1"), tmp_path / "grid.png"
    assert cli.run(lambda: generate.main([str(run), "-n", "11", "--out", str(out)])) == 0
    with Image.open(out) as picture:
        assert picture.size == (2 * (8 * 7 + 2), 2 * (2 * 8 + 2))
    again, other = generate.generate(run, 5, seed=0), generate.generate(run, 5, seed=1)
    np.testing.assert_array_equal(again, generate.generate(run, 5, seed=0))
    assert not np.array_equal(again, other)


@pytest.mark.slow
def test_generate_refuses_an_autoencoder(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished("--preset", "notes-ae", *SMALL, "--epochs", "1")
    assert cli.run(lambda: generate.main([str(run), "--out", str(tmp_path / "x.png")])) == 2
    assert "has no prior to draw from" in capsys.readouterr().err


@pytest.mark.long
def test_idx_directory_trains_under_its_name(mnist_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ["--data-dir", str(mnist_dir), "--batch-size", "8", "--epochs", "1"]
    assert train(*args, "--run-dir", str(run)) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["dataset"], config["data_dir"]) == ("mnist", str(mnist_dir))


def save_pictures(folder: Path, images: NDArray[np.uint8]) -> Path:
    """Grey PNG files in two folders of classes."""
    for number, image in enumerate(images):
        file = folder / ("cats", "dogs")[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    return folder


PARAMETERS = 30 * 16 + 16 + 16 * 8 + 8 + 2 * (8 * 4 + 4) + 4 * 8 + 8 + 8 * 16 + 16 + 16 * 30 + 30
"""Of the layers 30-16-8, twice 8-4, and 4-8-16-30."""


def test_what_a_run_says_before_it_trains(
    images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise InputError("far enough")

    monkeypatch.setattr(trainer.Trainer, "start", stop)
    photos, file, run = save_pictures(tmp_path / "photos", images[:40]), tmp_path / "x.npz", tmp_path / "run"
    np.savez(file, train=images[:64], test=images[64:], train_labels=np.arange(64), test_labels=np.arange(32))
    flags = ["--preset", "vae", *SMALL, "--run-dir", str(run), "--dataset"]
    assert train(*flags, str(photos)) == train(*flags, str(file), "--stream", "always") == 2
    what = "vae, changed: hidden 16,8, latent_size 4, batch_size 8"
    assert capsys.readouterr().err.splitlines() == [
        f"{what} on {photos} (pictures in {photos})",
        "train 33 + validation 3 + test 4 images, 6 x 5 x 1, 2 classes, resident on the device; "
        f"{PARAMETERS:,} parameters",
        f"cpu, 4 steps an epoch -> {run}",
        "error: far enough",
        f"{what} on {file} (NumPy file {file})",
        "train 59 + validation 5 + test 32 images, 6 x 5 x 1, with label, streamed in blocks of 7 steps (1.9 KiB); "
        f"{PARAMETERS:,} parameters",
        f"cpu, 7 steps an epoch -> {run}",
        "error: far enough",
    ]


@pytest.mark.slow
def test_a_run_lists_the_files_that_it_leaves_out(
    images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = save_pictures(tmp_path / "photos", images[:20])
    (photos / "cats" / "02.png").write_bytes(b"")
    (photos / "dogs" / "17.png").write_bytes(b"GIF?")
    run = tmp_path / "run"
    assert train("--dataset", str(photos), "--skip-bad", *SMALL, "--epochs", "1", "--run-dir", str(run)) == 0
    first, second = (run / "images" / "skipped.txt").read_text().splitlines()
    assert first == f"{photos}/cats/02.png: empty" and second.startswith(f"{photos}/dogs/17.png: not a PNG, ")
    said = capsys.readouterr().err
    assert f"warning: picture files that cannot be read are left out: 2, such as {first}\n" in said
    assert "train 17 + test 1 images" in said


class TestBadInput:
    """In each case: exit code 2, one line that names the cause, nothing compiled, nothing lost."""

    @pytest.fixture(autouse=True)
    def _nothing_compiles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def compiles(*_: Any, **__: Any) -> None:
            pytest.fail("something was compiled")

        monkeypatch.setattr(trainer.Trainer, "start", compiles)
        monkeypatch.setattr(trainer.Trainer, "compile", compiles)

    def refused(self, capsys: pytest.CaptureFixture[str], *args: str) -> str:
        assert train(*args) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            (["--preset", "nope"], "--preset nope: "),
            (["--preset"], "--preset"),
            (["--epochs", "many"], "--epochs"),
            (["--epochs", "0"], "--epochs "),
            (["--epoch", "3"], "--epochs?"),
            (["--lr", "1"], "--learning-rate?"),
            (["--batchsize", "3"], "--batch-size?"),
            (["--preset", "vea"], "did you mean vae?"),
            (["--head", "lineer"], "did you mean linear?"),
            (["--dataset", "minst"], "did you mean mnist?"),
            (["--preset", "notes-ae", "--head", "exp"], "--head relu or linear"),
            (["--static-seed", "3"], "--static-seed 3 "),
            (["--batch-size", "65"], "--batch-size 65 "),
            (["--dataset", "no-such-file.npz"], "no-such-file.npz"),
            (["--data-dir", "/nowhere"], "--data-dir"),
            (["--head", "tanh"], "--head"),
            (["--preset", "vae", "--head", "relu"], "--head linear, logvar or exp"),
            (["--resume"], "--run-dir"),
            (["--resume", "--run-dir", "/nowhere"], "/nowhere"),
            (["--run-dir", "/proc/run"], "--run-dir /proc/run "),
            (["--run-dir", "/dev/null"], "--run-dir /dev/null "),
            (["--run-dir", "/dev/null/run"], "--run-dir /dev/null/run "),
            (["--run-dir", "r" * 300], "--run-dir rrr"),
            (["--inputs", "static", "--preset", "vae", "--static-seed", "-1"], "--static-seed "),
            (["--architecture", "conv", "--hidden"], "--hidden"),
            (["--hidden", "512,256"], "--hidden must be whole numbers with spaces between them, not 512,256 (see"),
            (["--preset", "vae", "--objective", "info"], "--mmd-weight"),
            (["--preset", "iwae", "--free-bits", "1"], "--free-bits 1 "),
            (["--preset", "vae", "--likelihood-std", "1"], "--likelihood-std 1 "),
            (["--epochs", "2", "--warmup-epochs", "3"], "--warmup-epochs 3 "),
        ],
    )
    def test_flags(
        self,
        args: list[str],
        named: str,
        image_file: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        dataset = [] if "--dataset" in args or "--resume" in args else ["--dataset", str(image_file)]
        run_dir = [] if "--run-dir" in args or "--resume" in args else ["--run-dir", str(tmp_path / "run")]
        assert named in self.refused(capsys, *dataset, *run_dir, *args)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((0, 4, 4), np.uint8), "empty"),
            (np.full((20, 4, 4), np.nan), "NaN"),
            (np.zeros((20, 4)), "shape"),
            (np.zeros((20, 4, 4), complex), "complex"),
            (np.array([{}] * 20), "pickle"),
        ],
    )
    def test_arrays(self, array: NDArray[Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "bad.npy"
        np.save(path, array, allow_pickle=True)
        err = self.refused(capsys, "--dataset", str(path), "--run-dir", str(tmp_path / "run"))
        assert "bad.npy" in err and words.lower() in err.lower()

    def test_a_folder_with_a_bad_file(
        self, images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        photos = save_pictures(tmp_path / "photos", images[:20])
        (photos / "cats" / "02.png").write_bytes(b"")
        err = self.refused(capsys, "--dataset", str(photos), "--run-dir", str(tmp_path / "run"))
        assert f"1 of 20 picture files cannot be read: {photos}/cats/02.png: empty; --skip-bad leaves them out" in err
        assert not (tmp_path / "run").exists()

    def test_a_truncated_idx_file(self, mnist_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = mnist_dir / "t10k-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-1])
        err = self.refused(capsys, "--data-dir", str(mnist_dir), "--run-dir", str(tmp_path / "run"))
        assert str(path) in err

    @pytest.mark.parametrize("name", loop.RUN_FILES)
    def test_a_directory_that_holds_a_run(self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / name).write_text("precious")
        err = self.refused(capsys, "--run-dir", str(tmp_path))
        assert f"--run-dir {tmp_path} already holds a run ({name}): add --resume" in err
        assert (tmp_path / name).read_text() == "precious"
        assert len(list(tmp_path.iterdir())) == 1


def test_runs_started_in_the_same_second_get_directories_of_their_own(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dir.time, "strftime", lambda _: "now")
    made = [run_dir.make(None, "vae") for _ in range(3)]
    assert made == [Path("runs/now"), Path("runs/now-2"), Path("runs/now-3")]


def test_a_directory_for_runs_that_leads_nowhere(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to("nowhere")
    assert train(*base) == 2
    assert "error: --run-dir runs cannot be written: File exists" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_of_a_relative_path_goes_on_from_elsewhere(
    image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--dataset", image_file.name, *SMALL, "--epochs", "1", "--run-dir", "run") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train("--resume", "--epochs", "2", "--run-dir", "../run") == 0
    assert cli.run(lambda: evaluate.main(["../run"])) == 0
    # The images may move too, as long as they are the same.
    moved = image_file.rename(tmp_path / "elsewhere" / "moved.npz")
    assert train("--resume", "--epochs", "3", "--dataset", moved.name, "--run-dir", "../run") == 0
    assert evaluate.evaluate_run(Path("../run"))["step"] == 24


@pytest.mark.slow
def test_evaluate_counts_epochs_as_training_does(base: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*base, "--batch-size", "13", "--epochs", "9", "--run-dir", str(run)) == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (evaluate.evaluate_run(run)["epoch"], last["epoch"]) == (9, 9)


@pytest.mark.slow
def test_evaluate_refuses_other_test_images(base: list[str], image_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*base, "--epochs", "1", "--run-dir", str(run)) == 0
    with np.load(image_file) as archive:
        arrays = dict(archive)
    np.savez(image_file, train=arrays["train"], test=arrays["test"][::-1])
    with pytest.raises(InputError, match="not the test images of"):
        evaluate.evaluate_run(run)


@pytest.mark.slow
def test_a_run_traces_each_of_its_programs_once(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces: list[str] = []
    make = programs.make_train_step

    def counting(*args: Any, **options: Any) -> Any:
        step = make(*args, **options)

        def counted(*step_args: Any) -> Any:
            traces.append("train")
            return step(*step_args)

        return counted

    monkeypatch.setattr(programs, "make_train_step", counting)
    terms = NotesElbo.terms

    def counted_terms(*args: Any) -> Any:
        traces.append("terms")
        return terms(*args)

    monkeypatch.setattr(NotesElbo, "terms", counted_terms)
    assert train(*base, "--epochs", "4", "--run-dir", str(tmp_path / "run")) == 0
    assert traces.count("train") == 1
    assert traces.count("terms") == 2  # In the train step, and in the evaluation.


@pytest.mark.long
def test_a_run_with_only_damaged_checkpoints_does_not_start_again(base: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*base, "--epochs", "1", "--run-dir", str(run)) == 0
    before = (run / "config.json").read_bytes()
    (run / "checkpoints" / "8" / "state" / "manifest.ocdbt").write_bytes(b"")
    for command in (["evaluate", str(run)], ["train", "--resume", "--epochs", "3", "--run-dir", str(run)]):
        call = [sys.executable, "-m", f"jaxvae.{command[0]}", *command[1:]]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        warning, error = done.stderr.splitlines()
        assert warning.startswith("warning: checkpoint ") and "manifest.ocdbt is not as it was saved" in warning
        assert error.startswith("error: ") and error.endswith("every checkpoint is damaged; none is left to go on from")
    assert (run / "config.json").read_bytes() == before


class TestResumeIsRefused:
    @pytest.fixture
    def run(self, base: list[str], tmp_path: Path) -> Path:
        assert train(*base, "--epochs", "1", "--run-dir", str(tmp_path / "run")) == 0
        return tmp_path / "run"

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--seed", "1"], "seed: 0 -> 1"),
            (["--latent-size", "5", "--batch-size", "4"], "latent_size: 4 -> 5; batch_size: 8 -> 4"),
            (["--preset", "vae"], "preset: notes-vae -> vae"),
            (["--dataset", "digits"], "-> digits"),
            (["--epochs", "9", "--seed", "1"], "seed: 0 -> 1"),
        ],
    )
    def test_with_another_configuration(
        self, args: list[str], words: str, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (run / "config.json").read_bytes()
        assert train("--resume", "--run-dir", str(run), *args) == 2
        assert words in capsys.readouterr().err
        assert (run / "config.json").read_bytes() == before

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_with_other_images_under_the_same_name(
        self, split: str, run: Path, image_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with np.load(image_file) as archive:
            arrays = dict(archive)
        np.savez(image_file, **(arrays | {split: arrays[split][::-1]}))
        before = (run / "config.json").read_bytes()
        assert train("--resume", "--epochs", "2", "--run-dir", str(run)) == 2
        assert str(image_file) in capsys.readouterr().err
        assert (run / "config.json").read_bytes() == before

    @pytest.mark.parametrize("line", ["garbage", "[]", '{"epoch": 1}', "{}"])
    def test_with_a_line_that_is_no_record(self, line: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = run / "metrics.jsonl"
        path.write_text(line + "\n" + path.read_text())
        assert train("--resume", "--epochs", "2", "--run-dir", str(run)) == 2
        assert capsys.readouterr().err == f"error: {path}, line 1: not a record of metrics\n"


@pytest.mark.long
def test_python_m_runs_outside_the_checkout(image_file: Path, tmp_path: Path) -> None:
    def run(module: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"jaxvae.{module}", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    trained = run("train", "--dataset", str(image_file), *SMALL, "--epochs", "1", "--run-dir", "run")
    assert trained.returncode == 0, trained.stderr
    assert "epoch 1/1  step 8  train loss" in trained.stderr and "per pixel" in trained.stderr
    assert run("evaluate", "run").stdout.startswith("notes-vae, changed: hidden 16,8, ")
    assert run("generate", "run", "-n", "3").stdout == "3 images -> samples.png\n"
    refused = run("train", "--preset", "nope")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_import_is_cheap() -> None:
    code = "import sys, jaxvae; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"jax", "flax", "optax"} <= set(loaded)
    late = {
        "orbax",
        "matplotlib",
        "sklearn",
        "tensorflow_datasets",
        "tensorflow",
        "tensorboard",
        "PIL",
        "tyro",
    }
    assert not late & set(loaded)
