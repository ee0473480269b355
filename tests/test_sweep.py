"""Sweeps: every member against a run of its own, and what the command line does with them."""

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
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import SMALL, assert_same_run, environment, train

import jaxvae.sweep
from jaxvae import checkpoint, cli, data, members
from jaxvae.config import PRESETS, SWEPT, Config
from jaxvae.data import ImageData
from jaxvae.errors import InputError
from jaxvae.evaluate import evaluate_run
from jaxvae.generate import main as generate
from jaxvae.grid import Grid, load_sweep, programs_of, to_json
from jaxvae.keys import purpose_key
from jaxvae.members import MembersTrainer, make_run_members, train_members
from jaxvae.models import build_model
from jaxvae.sweep import extract, parse, restore
from jaxvae.tables import summary, table
from jaxvae.train_step import build_optimizer, init_state, make_run_steps, make_train_step
from jaxvae.trainer import Schedule, Trainer, schedule
from jaxvae.variational import build_objective

# Seed, learning rate and beta, no two alike in all three, and no axis a function of another.
GRID = [(0, 1e-3, 1.0), (7, 1e-3, 4.0), (0, 3e-4, 4.0), (2**32 - 1, 3e-4, 0.5), (7, 3e-3, 1.0)]


def sweep(*args: str) -> int:
    devices = [] if "--devices" in args or "--extract" in args else ["--devices", "2"]
    return cli.run(lambda: jaxvae.sweep.main([*args, *devices]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(run_dir: Path) -> dict[str, bytes]:
    """All that a sweep writes which must not depend on the clock, but the checkpoints."""
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


# --- Members are runs -----------------------------------------------------------------------------------------


def alone(config: Config, images: ImageData) -> tuple[NDArray[Any], Any, Any]:
    """A run of its own: its losses, its state at the end, its test terms."""
    trainer = Trainer(config, schedule(config, len(images.train)), images)
    state, losses = trainer.start(None), []
    for _ in range(config.epochs * trainer.plan.calls_per_epoch):
        state, terms = trainer.run_steps(state)
        losses.append(np.asarray(terms["loss"]))
    test = {name: np.mean(np.asarray(values), dtype=np.float64) for name, values in trainer.evaluate(state).items()}
    return np.concatenate(losses), jax.device_get(state), test


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["notes-ae", "notes-vae", "vae"])
def test_every_member_is_the_single_run_to_the_bit(preset: str) -> None:
    """On a CPU, where members are taken one at a time: every loss of at least 100 steps, and all that is left."""
    config = dataclasses.replace(PRESETS[preset], batch_size=32, epochs=3)
    images = data.load("digits")
    seeds, rates, betas = zip(*GRID, strict=True)
    numbers = {"learning_rate": rates, **({"beta": betas} if config.in_nats else {})}
    result = train_members(config, images, seeds, numbers, jax.devices()[:2])
    assert not np.any(result.state.diverged)
    for index, (seed, rate, beta) in enumerate(GRID):
        own = dataclasses.replace(config, seed=seed, learning_rate=rate, **({"beta": beta} if config.in_nats else {}))
        losses, state, test = alone(own, images)
        assert len(losses) >= 100
        np.testing.assert_array_equal(result.train["loss"][index], losses)
        jax.tree.map(np.testing.assert_array_equal, result.state.member(index), state)
        assert {name: values[index] for name, values in result.test.items()} == test


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["notes-vae", "vae"])
def test_members_taken_together_equal_the_single_run_in_float64(preset: str) -> None:
    """200 steps, three at a time, as on an accelerator: to rounding, which a VAE multiplies, hence float64."""
    at_once = 3
    config = PRESETS[preset]
    images = data.load("digits").train / 255.0
    plan = Schedule(200, 1)
    # 200 batches of 7 are in the 1,500 training images.
    config = dataclasses.replace(config, batch_size=7, hidden=(64, 32))
    grid = GRID if config.in_nats else [(seed, rate, 1.0) for seed, rate, _ in GRID]
    with jax.enable_x64(True):
        model = build_model(config, (28, 28, 1)).clone(dtype=jax.numpy.float64)

        def first(seed: int) -> Any:
            state = jax.device_get(init_state(model, build_optimizer(config), purpose_key(seed, "init")))
            return jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, state)

        states = [first(seed) for seed, _, _ in grid]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        state = members.MembersState(np.int32(0), stacked.params, stacked.opt_state, np.zeros(len(grid), np.int32))
        purposes: Any = ("shuffle", "train-noise")
        keys = {p: jax.numpy.stack([purpose_key(seed, p) for seed, _, _ in grid]) for p in purposes}
        defaults = {name: np.full(len(grid), value) for name, value in config.numbers().items()}
        swept = {"learning_rate": np.array([g[1] for g in grid]), "beta": np.array([g[2] for g in grid])}
        run: Any = jax.jit(make_run_members(config, model, plan, len(images), at_once))
        end, terms = run(state, images, keys, {**defaults, **swept})

        def run_alone(state: Any, images: Any, shuffle_key: Any, noise_key: Any, numbers: Any) -> Any:
            objective = build_objective(config, 200, len(images), numbers)
            step = make_train_step(model, objective, build_optimizer(config, 200, numbers))
            return make_run_steps(step, 7, 200, 200)(state, images, shuffle_key, noise_key)

        one: Any = jax.jit(run_alone)
        for index, (seed, rate, beta) in enumerate(grid):
            numbers = {**config.numbers(), "learning_rate": rate, "beta": beta}
            own_keys = [purpose_key(seed, purpose) for purpose in purposes]
            own, own_terms = one(states[index], images, *own_keys, numbers)
            assert own_terms["loss"].dtype == np.float64
            deviation = np.max(np.abs(terms["loss"][index] / own_terms["loss"] - 1))
            assert deviation < 1e-8
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), end.member(index).params, own.params
            )


@pytest.fixture(scope="module")
def singles() -> dict[int, Any]:
    """Runs of their own of members of `GRID`, as they are made."""
    return {}


@pytest.mark.parametrize(("at_once", "devices"), [(1, 2), (1, 8), (2, 2), (5, 1)])
def test_members_are_the_same_however_they_are_shared_out(
    at_once: int, devices: int, images: NDArray[np.uint8], singles: dict[int, Any]
) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=2)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    seeds, rates, betas = zip(*GRID, strict=True)
    numbers = {**{name: [value] * 5 for name, value in config.numbers().items()}, "learning_rate": rates, "beta": betas}
    trainer = MembersTrainer(
        config,
        schedule(config, 64),
        images_,
        seeds,
        numbers,
        jax.devices()[:devices],
        at_once,  # type: ignore[arg-type]
    )
    assert trainer.mesh.size == min(devices, 5)
    state = trainer.start(None)
    trainer.compile(state)
    for _ in range(2):
        state, terms = trainer.run_steps(state)
    host, last, test = trainer.host(state), trainer.host(terms)["loss"], trainer.host(trainer.evaluate(state))["loss"]
    assert last.shape == (5, 4) and test.shape == (5, 32) and host.step == 8
    forms = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), s) for s in (host, trainer.abstract_state())]
    assert forms[0] == forms[1]
    for index in (1, 4):
        seed, rate, beta = GRID[index]
        own_config = dataclasses.replace(config, seed=seed, learning_rate=rate, beta=beta)
        if index not in singles:
            singles[index] = alone(own_config, images_)
        losses, own, _ = singles[index]
        if at_once == 1:
            np.testing.assert_array_equal(last[index], losses[4:])
            jax.tree.map(np.testing.assert_array_equal, host.member(index), own)
        else:
            np.testing.assert_allclose(last[index], losses[4:], rtol=1e-5)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), host.member(index), own)


@pytest.mark.slow
def test_a_member_that_diverges_harms_nobody(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=3)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    good = train_members(config, images_, [0, 2], {"learning_rate": [1e-3, 1e-3]})
    for at in (0, 2):
        rates = [1e-3, 1e-3]
        rates.insert(at, 1e20)
        seeds = [0, 2]
        seeds.insert(at, 1)
        result = train_members(config, images_, seeds, {"learning_rate": rates}, jax.devices()[: at + 1])
        rest = [i for i in range(3) if i != at]
        assert result.state.diverged[at] == 2 and not np.any(np.asarray(result.state.diverged)[rest])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
        np.testing.assert_array_equal(result.train["loss"][rest], good.train["loss"])
        assert np.isnan(result.test["loss"][at])
        np.testing.assert_array_equal(result.test["loss"][rest], good.test["loss"])
        # It stays where its first call began: at its initial state.
        own = init_state(build_model(config, (6, 5, 1)), build_optimizer(config), purpose_key(1, "init"))
        jax.tree.map(np.testing.assert_array_equal, result.state.member(at).params, jax.device_get(own.params))


def test_weight_decay_may_be_none_for_some(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=2)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    result = train_members(config, images_, [0, 0], {"weight_decay": [0.0, 0.5]})
    for index, decay in enumerate((0.0, 0.5)):
        losses, _, _ = alone(dataclasses.replace(config, weight_decay=decay), images_)
        np.testing.assert_allclose(result.train["loss"][index], losses, rtol=1e-5)


@pytest.mark.parametrize(("seeds", "numbers", "message"), [
    ([0], {"hidden": [3]}, "hidden cannot differ between members; what can: seed, learning_rate, beta"),
    ([0, 1], {"beta": [1.0]}, "--beta has 1 values for 2 members"),
    ([0], {"learning_rate": [-1.0]}, "--learning-rate must be positive and finite, not -1.0"),
    ([2**32], {}, "--seed must be below"),
    ([], {}, "no members"),
])  # fmt: skip
def test_what_cannot_be_trained(seeds: list[int], numbers: Any, message: str, images: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=message):
        train_members(PRESETS["vae"], ImageData("digits", "a test", images, images), seeds, numbers)


def test_room_is_what_the_device_says(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16)
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    found = members.room(config, schedule(config, 64), images_, jax.devices()[:2])
    state = init_state(build_model(config, (6, 5, 1)), build_optimizer(config), purpose_key(0, "init"))
    floor = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert 2 * floor < found.member_bytes < 100 * floor
    assert found.members == 2 * (found.free_bytes // found.member_bytes) > 0


# --- The command line -----------------------------------------------------------------------------------------


@pytest.fixture
def base(image_file: Path) -> list[str]:
    return ["--preset", "vae", "--dataset", str(image_file), *SMALL, "--epochs", "2", "--log-every", "1"]


@pytest.mark.slow
def test_a_sweep_is_its_runs(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    grid = ["--seeds", "2", "--learning-rate", "1e-3", "1e-2", "--beta", "1", "4", "--latent-size", "4", "3"]
    assert sweep(*base, *grid, "--run-dir", str(out)) == 0
    said = capsys.readouterr().err
    assert re.search(r"8 members could share a program; [1-9]\d* fit: \d+ MiB each \(compiled for one\)", said)
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


def test_an_extracted_member_is_a_run(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, one, run = tmp_path / "sweep", tmp_path / "one", tmp_path / "run"
    assert sweep(*base, "--beta", "1", "2", "--run-dir", str(out)) == 0
    best = min(rows_of(out / "members.csv"), key=lambda row: float(row["test_loss"]))
    assert sweep("--run-dir", str(out), "--extract", "best", "--to", str(run)) == 0
    assert f"member {best['member']} of" in capsys.readouterr().err
    assert generate([str(run), "--out", str(tmp_path / "samples.png")]) == 0
    assert checkpoint.load_run(run, best=True).config.beta == float(best["beta"])
    assert train("--resume", "--run-dir", str(run), "--epochs", "4") == 0
    assert train(*base, "--beta", best["beta"], "--epochs", "4", "--run-dir", str(one)) == 0
    assert_same_run(run, one)


@pytest.mark.slow
def test_a_sweep_goes_on_bit_for_bit(base: list[str], tmp_path: Path) -> None:
    """With more epochs, and where one program was cut short and one was not begun."""
    grid = ["--seeds", "3", "--learning-rate", "1e-3", "1e20", "--hidden", "16,8", "8,8"]
    args = ["--preset", "vae", "--dataset", base[3], "--latent-size", "4", "--batch-size", "8", *grid]
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
    with pytest.raises(InputError, match="--extract 6: it diverged at step 2"):
        extract(whole, next(int(r["member"]) for r in rows if r["status"] != "done"), tmp_path / "x")


def test_all_members_may_diverge(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    args = [*base, "--epochs", "50", "--learning-rate", "1e20", "--seeds", "2"]
    assert sweep(*args, "--run-dir", str(out)) == 0
    assert "no finite figure, 2 seeds  2 diverged" in capsys.readouterr().err
    assert [row["status"] for row in rows_of(out / "members.csv")] == ["diverged at step 2"] * 2
    before = files_of(out)
    assert sweep("--resume", "--run-dir", str(out)) == 0
    assert files_of(out) == before
    assert sweep("--run-dir", str(out), "--extract", "best", "--to", str(tmp_path / "x")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_sweep_that_was_stopped(sent: signal.Signals, code: int, base: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = [*base, "--epochs", "400", "--seeds", "3", "--beta", "1", "2", "--checkpoint-every", "20"]
    assert sweep(*args, "--run-dir", str(whole)) == 0
    command = [sys.executable, "-m", "jaxvae.sweep", *args, "--run-dir", str(cut)]
    process = subprocess.Popen(command, env=environment(2), stderr=subprocess.PIPE, text=True)
    log, end = cut / "programs" / "0" / "metrics.jsonl", time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < 2000:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    said = process.communicate(timeout=60)[1]
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


@pytest.mark.parametrize(("flags", "message"), [
    (["--beta", "1", "x"], "--beta: x is not a number"),
    (["--beta", "1", "-1"], "--beta must be finite and not negative, not -1.0"),
    (["--beta"], "expected at least one argument"),
    (["--beta", "1", "1.0"], "--beta has a value twice"),
    (["--latent-size", "2.5"], "--latent-size: 2.5 is not a whole number"),
    (["--latent-size", "2", "0"], "--latent-size must be at least 1"),
    (["--hidden", "8,8", "a,b"], "--hidden: a,b is not"),
    (["--seeds", "0"], "--seeds must be at least 1"),
    (["--seed", str(2**32 - 1), "--seeds", "2"], "--seed must be below 2^32"),
    (["--batch-size", "8", "65"], "--batch-size 65 is larger than the 64 training images"),
    (["--devices", "9"], "--devices 9: this machine has 8"),
    (["--devices", "some"], "--devices must be a number of at least 1, or all, not some"),
    (["--members-per-program", "0"], "--members-per-program must be at least 1"),
    (["--colour", "3"], "--colour"),
    (["--preset", "notes-vae", "--beta", "1", "2"], "needs an objective in nats"),
    (["--resume"], "holds no sweep (no sweep.json)"),
    (["--to", "there"], "--to goes with --extract"),
    (["--extract", "0"], "--extract needs --run-dir, the sweep, and --to"),
    (["--extract", "0", "--to", "there"], "holds no sweep (no sweep.json)"),
])  # fmt: skip
def test_what_cannot_be_is_refused(
    flags: list[str], message: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*base, "--run-dir", str(tmp_path / "run"), *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_directories_are_guarded(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert sweep(*base, "--beta", "1", "2", "--run-dir", str(out)) == 0
    capsys.readouterr()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for args, message in [
        ([*base, "--run-dir", str(out)], "already holds a run (sweep.json)"),
        (["--resume", "--run-dir", str(out), "--beta", "3"], "leave out --beta"),
        (["--resume", "--run-dir", str(out), "--seeds", "3"], "has 1 seeds, not 3"),
        (["--resume", "--run-dir", str(out), "--activation", "tanh"], "activation: relu -> tanh"),
        (["--run-dir", str(out), "--extract", "2", "--to", "x"], "has members 0 to 1"),
        (["--run-dir", str(out), "--extract", "worst", "--to", "x"], "has members 0 to 1"),
        (["--run-dir", str(out), "--extract", "1", "--to", str(tmp_path / "full")], "is not an empty directory"),
    ]:
        assert sweep(*args) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
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


def test_one_device_for_each_core() -> None:
    """Where the user has not said otherwise, and on the command line only."""
    code = "import jax, jaxvae.sweep as s; s.use_every_core(); print(jax.device_count())"
    without = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for env, expected in ((without, len(os.sched_getaffinity(0))), (environment(3), 3)):
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert int(out.stdout) == expected


def test_every_swept_number_is_known_to_the_config() -> None:
    assert set(SWEPT) <= {field.name for field in dataclasses.fields(Config)}


def test_a_refused_resume_leaves_all_as_it_was(
    base: list[str], tmp_path: Path, images: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other images, and figures that cannot be read: found before anything is written."""
    out, other = tmp_path / "sweep", tmp_path / "other.npz"
    np.savez(other, train=images[32:], test=images[:32])
    assert sweep(*base, "--beta", "1", "2", "--run-dir", str(out)) == 0
    log = out / "programs" / "0" / "metrics.jsonl"
    content, whole = log.read_bytes(), (out / "sweep.json").read_bytes()
    capsys.readouterr()
    assert sweep("--resume", "--run-dir", str(out), "--dataset", str(other), "--epochs", "3") == 2
    error = capsys.readouterr().err
    assert "not the images that" in error and error.count("\n") == 1
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


def test_members_of_binarised_images_are_runs_on_them(images: NDArray[np.uint8]) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16, epochs=2, inputs="static")
    images_ = ImageData("digits", "a test", images[:64], images[64:])
    losses, _, _ = alone(config, data.binarized(images_, config.static_seed))
    np.testing.assert_array_equal(train_members(config, images_, [0, 0]).train["loss"], [losses, losses])
