"""What a run survives. Each fault is real, and the run then gives the same bytes as without it."""

import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import PATIENCE, SMALL, assert_same_run, environment, state_of, train, train_command

from jaxvae import cli, evaluate, generate
from jaxvae.config import PRESETS
from jaxvae.data.images import ImageData
from jaxvae.errors import SaveError
from jaxvae.run import plots, records
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.run.step_files import read_step
from jaxvae.train import loop, pipeline, programs, stream
from jaxvae.train.signals import StopSignals
from jaxvae.train.trainer import Trainer

pytestmark = pytest.mark.unoptimized

# Metrics of two steps, a checkpoint every epoch: something happens all the time.
BUSY = ["--log-every", "2", "--checkpoint-every", "1", "--image-every", "0"]
# `python -m jaxvae.train`, with streamed blocks of so many bytes.
WITH_BLOCKS = """
import runpy
from jaxvae.train import stream

stream.BLOCK_BYTES = {}
runpy.run_module("jaxvae.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def _short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one or a few steps, as if a step took long, so that a run can be stopped anywhere."""
    monkeypatch.setattr(pipeline, "CALL_SECONDS", 1e-3)


@pytest.fixture
def base(image_file: Path) -> list[str]:
    return ["--dataset", str(image_file), *SMALL]


def newest(run_dir: Path) -> Path:
    steps = (path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())
    return max(steps, key=lambda path: int(path.name))


def start(*args: str, block_bytes: int = 0) -> "subprocess.Popen[str]":
    command = train_command(*args)
    if block_bytes:
        command[1:3] = ["-c", WITH_BLOCKS.format(block_bytes)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(process: "subprocess.Popen[str]", run_dir: Path, count: int) -> None:
    """Wait until a run has written so many lines of metrics, or has ended."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and lines(run_dir) < count:
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.005)


def killed(process: "subprocess.Popen[str]") -> None:
    """Kill a run that has not ended."""
    process.kill()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, said


# --- Killed --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_kills_at_random_moments_some_during_a_save(base: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    epochs = ["--epochs", "150"]
    assert train(*base, *BUSY, *epochs, "--run-dir", str(whole)) == 0
    rng = random.Random(0)
    args, in_save = [*base, *BUSY, *epochs], 0
    for number in range(8):
        process = start(*args, "--run-dir", str(cut))
        wait_for_lines(process, cut, lines(cut) + rng.randrange(1, 50))
        if number % 2:
            while process.poll() is None and not list((cut / "checkpoints").glob("*.tmp")):
                time.sleep(0.002)
        process.kill()
        in_save += bool(list((cut / "checkpoints").glob("*.tmp")))
        killed(process)
        args = ["--resume"]
    assert in_save >= 2
    assert train("--resume", "--run-dir", str(cut)) == 0
    assert not list((cut / "checkpoints").glob("*.tmp"))
    assert_same_run(whole, cut)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["vq-vae", "factor", "streamed"])
def test_more_than_weights_survives_kills(
    kind: str,
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A codebook that averages move, a discriminator with an optimiser of its own, images in three blocks an epoch."""
    block = 3 * 8 * 6 * 5  # Bytes of three of the eight batches of an epoch.
    monkeypatch.setattr(stream, "BLOCK_BYTES", block)
    flags = {
        "vq-vae": ["--preset", "vq-vae", "--hidden", "8", "--codes", "12", "--code-size", "4", "--batch-size", "8"],
        "factor": ["--preset", "vae", "--objective", "factor", "--beta", "3", "--discriminator-width", "8"],
        "streamed": ["--stream", "always"],
    }[kind]
    if kind == "vq-vae":
        base = [*base[:2], "--code-prior-width", "8", "--code-prior-layers", "1"]
    args = [*base, *flags, *BUSY, "--epochs", "40"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(*args, "--run-dir", str(whole)) == 0
    assert ("streamed in blocks of 3 steps" in capsys.readouterr().err) == (kind == "streamed")
    for more in (7, 17):
        process = start(*args, "--run-dir", str(cut), block_bytes=block)
        wait_for_lines(process, cut, lines(cut) + more)
        while process.poll() is None and not (saved := [*(cut / "checkpoints").glob("*[0-9]")]):
            time.sleep(0.005)
        killed(process)
        assert saved
        args = ["--resume"]
        assert int(newest(cut).name) < int(newest(whole).name)
    assert train("--resume", "--run-dir", str(cut)) == 0
    assert_same_run(whole, cut)


@pytest.mark.long
def test_resume_at_every_position(images: NDArray[np.uint8], tmp_path: Path) -> None:
    """From each step of three epochs: through a checkpoint, all remaining losses and the end, bit for bit."""
    config = dataclasses.replace(PRESETS["vae"], hidden=(8,), latent_size=2, batch_size=16)
    data = ImageData("digits", "a test", images[:64], images[64:])
    computer = Trainer(config, data)
    state = computer.start(None)
    losses: list[Any] = []
    with Checkpoints(tmp_path, keep=99) as checkpoints:
        for step in range(12):
            checkpoints.save(state, {})
            state, terms = computer.run_steps(state, step, 1)
            losses.append(np.asarray(terms["loss"])[0].item())
    end = jax.device_get(state)
    for position in range(12):
        found = read_step(tmp_path / str(position), computer.abstract_state())
        again = Trainer(config, data)
        again._program = computer._program  # The program is the same, and need not be compiled again.
        state = again.start(found.state)
        rest = []
        for step in range(position, 12):
            state, terms = again.run_steps(state, step, 1)
            rest.append(np.asarray(terms["loss"])[0].item())
        assert rest == losses[position:]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), end)


# --- Told to stop --------------------------------------------------------------------------------------------

PHASES: dict[str, tuple[Any, str]] = {
    "compile": (Trainer, "compile"),
    "training": (Trainer, "run_steps"),
    "evaluation": (Trainer, "evaluate"),
    "save": (Checkpoints, "_write"),
    "plotting": (plots, "save_png"),
}


def at_nth_call(monkeypatch: pytest.MonkeyPatch, phase: str, count: int, action: Callable[[], None]) -> None:
    """Do `action` within the `count`-th call of a phase of the run."""
    owner, name = PHASES[phase]
    whole, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def wrapped(*args: Any, **options: Any) -> Any:
        if next(calls) == count:
            action()
        return whole(*args, **options)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_stops(
    phase: str,
    number: signal.Signals,
    base: list[str],
    finished: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = tmp_path / "cut"
    args = [*base, "--log-every", "1", "--checkpoint-every", "1", "--epochs", "9"]
    whole = finished(*args[2:])
    told_at: list[int] = []

    def tell() -> None:
        told_at.append(max((r["step"] for r in records.read_records(cut / "metrics.jsonl")), default=0))
        os.kill(os.getpid(), number)

    at_nth_call(monkeypatch, phase, 1 if phase == "compile" else 3, tell)
    assert train(*args, "--run-dir", str(cut)) == 128 + number
    monkeypatch.undo()
    if phase == "compile":
        assert not list((cut / "checkpoints").iterdir())  # There is nothing to save.
    else:
        step = int(state_of(cut).step)
        assert newest(cut).name == str(step)
        # The call that runs and the one queued behind it, of an epoch's 8 steps at most, are taken; no more.
        assert told_at[0] <= step <= told_at[0] + 16
    assert train("--resume", "--run-dir", str(cut)) == 0
    assert_same_run(whole, cut)


def blocked(method: str, *args: str) -> "subprocess.Popen[str]":
    """A run with a trainer method that stays in compiled code for minutes, where Python runs no handler."""
    code = (
        "import hashlib, sys\n"
        "from jaxvae import cli\n"
        "from jaxvae.train.__main__ import main\n"
        "from jaxvae.train.trainer import Trainer\n"
        "def block(*_):\n"
        "    print('blocked', file=sys.stderr, flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
        f"Trainer.{method} = block\n"
        "cli.leave(cli.run(main))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for("blocked", process)
    return process


def wait_for(words: str, process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    while words not in process.stderr.readline():
        assert process.poll() is None


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_at_once_and_a_second_one_ends_the_run_whatever_a_step_costs(
    number: signal.Signals, base: list[str], tmp_path: Path
) -> None:
    process = blocked("run_steps", *base, "--run-dir", str(tmp_path / "run"))
    process.send_signal(number)
    wait_for("once more to end at once", process)
    process.send_signal(number)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(PATIENCE) == 128 + number


@pytest.mark.slow
def test_one_signal_ends_a_compilation_at_once(base: list[str], tmp_path: Path) -> None:
    process = blocked("compile", *base, "--run-dir", str(tmp_path / "run"))
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 143
    assert "nothing to save" in said and "Traceback" not in said


def test_two_signals_of_different_kinds_do_not_end_the_run_at_once() -> None:
    """As a closing terminal sends them, or a scheduler in a hurry."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    old = [signal.getsignal(number) for number in numbers]
    with StopSignals() as stop:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        assert stop.received == signal.SIGINT
    assert [signal.getsignal(number) for number in numbers] == old


# --- Damaged -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    base: list[str], finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut"
    whole = finished(*SMALL, *BUSY, "--epochs", "5")
    assert train(*base, *BUSY, "--epochs", "3", "--run-dir", str(cut)) == 0
    victim = newest(cut)
    data = max((path for path in victim.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[-9] ^= 1
    data.write_bytes(content)
    capsys.readouterr()
    assert train("--resume", "--run-dir", str(cut), "--epochs", "5") == 0
    said = capsys.readouterr().err
    assert f"checkpoint {victim} is damaged: " in said and data.name in said and "set aside as" in said
    assert (cut / "checkpoints" / f"damaged-{victim.name}").is_dir()
    assert victim.is_dir()  # Saved again.
    assert_same_run(whole, cut)


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut short", "half a line", "lost"])
def test_a_log_that_lost_its_end_is_mended_or_the_run_goes_on_without(
    damage: str, finished: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(*SMALL, *BUSY, "--epochs", "2"), run)
    path = run / "metrics.jsonl"
    content = path.read_bytes()
    kept = {"cut short": content[:-1], "half a line": content + b'{"step": 1', "lost": b""}[damage]
    path.write_bytes(kept)
    assert train("--resume", "--run-dir", str(run), "--epochs", "3") == 0
    lines = records.read_records(path)
    assert [line["step"] for line in lines][-1] == int(state_of(run).step)


# --- No room -------------------------------------------------------------------------------------------------


def with_file_system(options: str, directory: Path, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command with a tmpfs at `directory` that only it sees; it lists the checkpoints at the end."""
    if shutil.which("unshare") is None:
        pytest.skip("no file system can be mounted here")
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = f'mount -t tmpfs -o {options} none "$0"'
    if subprocess.run([*unshare, mount, str(directory)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    script = mount + ' && "$@"; code=$?; ls "$0"/run/checkpoints 2>/dev/null; exit $code'
    return subprocess.run(
        [*unshare, script, str(directory), *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.long
def test_a_disk_that_fills_up(image_file: Path, tmp_path: Path) -> None:
    """Room for some checkpoints of 3 MB and no more: a clear error, and those before intact."""
    disk = tmp_path / "disk"
    disk.mkdir()
    args = ["--dataset", str(image_file), "--hidden", "256", "256", "256", "--batch-size", "8", "--epochs", "30"]
    cadence = ["--checkpoint-every", "1", "--keep-checkpoints", "99", "--image-every", "0"]
    done = with_file_system("size=12m", disk, train_command(*args, *cadence, "--run-dir", str(disk / "run")))
    assert done.returncode == cli.EXIT_NOT_SAVED, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: checkpoint ") and "could not be saved: " in error
    assert "space" in error.lower(), error
    steps = done.stdout.split()
    assert steps and all(step.isdigit() for step in steps), "the failed save left files"


@pytest.mark.long
def test_a_run_directory_that_cannot_be_written_is_refused_before_anything_compiles(
    base: list[str], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    for run_dir in (tmp_path / "disk" / "run", Path("/proc/run")):
        done = with_file_system("ro", tmp_path / "disk", train_command(*base, "--run-dir", str(run_dir)))
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --run-dir {run_dir} cannot be written: "), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["lock", "config.json.tmp", "metrics.jsonl.tmp", "checkpoints", "images", "tensorboard"]
)
def test_a_run_to_resume_that_cannot_be_written_is_refused_in_one_line(
    what: str, finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(*SMALL, "--epochs", "1"), run)
    before = (run / "config.json").read_bytes()
    # A directory in place of the file, a file in place of the directory: not even root can write there.
    shutil.rmtree(run / what) if (run / what).is_dir() else (run / what).unlink(missing_ok=True)
    (run / what).write_text("") if what in ("checkpoints", "images", "tensorboard") else (run / what).mkdir()
    capsys.readouterr()
    assert train("--resume", "--epochs", "2", "--run-dir", str(run)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert (run / "config.json").read_bytes() == before or what not in ("lock", "config.json.tmp", "images")


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"\xff", b"run"])
def test_a_run_directory_name_that_is_not_utf8_is_refused_at_once(
    name: bytes, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / os.fsdecode(name)
    code = train(*base, "--epochs", "1", "--run-dir", str(run))
    error = capsys.readouterr().err
    if name == b"run":
        assert code == 0
    else:
        assert code == 2 and error.endswith("its name is not UTF-8\n") and error.count("\n") == 1
        assert not run.exists()


def test_object_storage_is_refused_at_once(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*base, "--epochs", "1", "--run-dir", "gs://bucket/runs/vae") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --run-dir gs://bucket/runs/vae: runs are written to directories")
    assert error.count("\n") == 1 and not list(tmp_path.glob("gs*"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["config.json", "lock", "metrics.jsonl", "timing.jsonl"])
def test_a_pipe_in_place_of_a_file_does_not_hang(
    what: str, finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(*SMALL, "--epochs", "1"), run)
    (run / what).unlink()
    os.mkfifo(run / what)
    capsys.readouterr()

    def hangs(*_: object) -> None:
        raise AssertionError("it waits for the pipe")

    old = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    try:
        assert train("--resume", "--epochs", "2", "--run-dir", str(run)) == 2
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and what in error and error.count("\n") == 1, error


@pytest.mark.long
def test_a_run_goes_on_when_its_output_has_no_reader(
    base: list[str], finished: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its output goes to `head`, or to a terminal that is closed."""
    run = tmp_path / "run"
    whole = finished(*SMALL, "--epochs", "3")
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, open(write, "w") as nobody:
        patch.setattr(sys, "stderr", nobody)
        assert train(*base, "--epochs", "3", "--run-dir", str(run)) == 0
    assert_same_run(whole, run)


@pytest.mark.long
def test_a_run_without_stderr_is_like_any_other(base: list[str], finished: Callable[..., Path], tmp_path: Path) -> None:
    """Descriptor 2 is free for the first file that is opened, and must not become a file of the run."""
    run = tmp_path / "run"
    whole = finished(*SMALL, "--epochs", "2")
    command = train_command(*base, "--epochs", "2", "--run-dir", str(run))
    assert subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], env=environment()).returncode == 0
    assert_same_run(whole, run)


def test_nohup_is_heeded() -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.long
@pytest.mark.parametrize("size", ["64k", "88k"])
def test_a_disk_that_fills_up_with_metrics(size: str, base: list[str], tmp_path: Path) -> None:
    """The last lines of a log, which did not fit, are not written again when it is closed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    cadence = ["--checkpoint-every", "0", "--image-every", "0", "--log-every", "1", "--epochs", "300"]
    done = with_file_system(f"size={size}", disk, train_command(*base, *cadence, "--run-dir", str(disk / "run")))
    assert done.returncode == cli.EXIT_NOT_SAVED, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: --run-dir {disk / 'run'} cannot be written: ") and "space" in error.lower(), error
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_disk_that_fills_up_with_pictures(tmp_path: Path) -> None:
    """The files that are written all the time meet the full disk first, not a checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    args = ["--dataset", "digits", "--preset", "vae", "--hidden", "8", "--epochs", "400", "--checkpoint-every", "0"]
    done = with_file_system("size=1m", disk, train_command(*args, "--run-dir", str(disk / "run")))
    assert done.returncode == cli.EXIT_NOT_SAVED, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: --run-dir {disk / 'run'} cannot be written: ") and "space" in error.lower(), error


@pytest.mark.long
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_save_that_fails_ends_the_run_with_its_own_code(
    at: int,
    base: list[str],
    finished: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first, one in the middle, and the last, which no save follows."""
    run = tmp_path / "run"

    def fail() -> None:
        raise SaveError("checkpoint could not be saved: the disk is on fire")

    at_nth_call(monkeypatch, "save", at, fail)
    assert train(*base, *BUSY, "--epochs", "3", "--run-dir", str(run)) == cli.EXIT_NOT_SAVED
    assert "error: checkpoint could not be saved: the disk is on fire" in capsys.readouterr().err
    saved = [int(path.name) for path in (run / "checkpoints").glob("[0-9]*")]
    assert len(saved) == at - 1  # No save follows the failed one.
    monkeypatch.undo()
    whole = finished(*SMALL, *BUSY, "--epochs", "3")
    assert train("--resume", "--run-dir", str(run)) == 0
    assert_same_run(whole, run)


# --- Two at once ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_second_run_is_refused_and_a_dead_one_is_no_obstacle(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # Without checkpoints, so that it does not matter how far it gets.
    process = start(*base, "--epochs", "1000000", "--checkpoint-every", "0", "--run-dir", str(run))
    while lines(run) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    before = (run / "config.json").read_bytes()
    for args in ([*base, "--run-dir", str(run)], ["--resume", "--run-dir", str(run)]):
        capsys.readouterr()
        assert train(*args) == 2
        assert f"error: --run-dir {run} is in use by process {process.pid} on " in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before
    process.kill()
    process.communicate()
    assert train("--resume", "--run-dir", str(run), "--epochs", "1") == 0


# --- Diverged ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_nan_stops_the_run_with_the_last_finite_checkpoint_left(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = programs.make_train_step

    def poisoned(*args: Any, **options: Any) -> Any:
        step = make(*args, **options)

        def train_step(state: Any, batch: Any, key: Any) -> Any:
            new, terms = step(state, batch, key)
            poison = jax.numpy.where(new.step == 21, jax.numpy.float32("nan"), jax.numpy.float32(0))
            return new._replace(params=jax.tree.map(lambda p: p + poison, new.params)), terms

        return train_step

    monkeypatch.setattr(programs, "make_train_step", poisoned)
    run = tmp_path / "run"
    args = [*base, "--checkpoint-every", "1", "--epochs", "5", "--run-dir", str(run)]
    assert train(*args) == cli.EXIT_DIVERGED
    assert "error: the loss is nan at step 22; " in capsys.readouterr().err
    assert newest(run).name == "16"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_of(run)))
    assert max(record["step"] for record in records.read_records(run / "metrics.jsonl")) == 16


@pytest.mark.long
def test_the_best_checkpoint_is_kept_and_used(base: list[str], tmp_path: Path) -> None:
    """By the validation images, with a learning rate so high that their bound goes down again."""
    run = tmp_path / "run"
    rate = ["--preset", "vae", "--learning-rate", "0.1", "--checkpoint-every", "1", "--keep-checkpoints", "1"]
    assert train(*base, *rate, "--validation", "0.25", "--epochs", "9", "--run-dir", str(run)) == 0
    lines = records.read_records(run / "metrics.jsonl")
    best = max((r for r in lines if r["split"] == "validation"), key=lambda record: record["unnormalised_elbo"])
    assert best["step"] < 54, "the last is the best: the test shows nothing"
    assert {int(p.name) for p in (run / "checkpoints").glob("[0-9]*")} == {best["step"], 54}
    assert evaluate.evaluate_run(run)["step"] == 54
    assert evaluate.evaluate_run(run, best=True)["step"] == best["step"]


@pytest.mark.long
def test_a_better_epoch_that_was_not_saved_is_told(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    rate = ["--preset", "vae", "--learning-rate", "0.1", "--checkpoint-every", "8"]
    assert train(*base, *rate, "--validation", "0.25", "--epochs", "9", "--run-dir", str(run)) == 0
    bounds = {
        record["epoch"]: record["unnormalised_elbo"]
        for record in records.read_records(run / "metrics.jsonl")
        if record["split"] == "validation"
    }
    best, saved = max(bounds, key=lambda epoch: bounds[epoch]), max((8, 9), key=lambda epoch: bounds[epoch])
    assert best < 8, "the best epoch was saved: the test shows nothing"
    capsys.readouterr()
    assert evaluate.evaluate_run(run, best=True)["epoch"] == saved
    said = f"epoch {saved} is the best of those that were saved; by the unnormalised_elbo of the validation images,"
    assert f"{said} epoch {best} was better" in capsys.readouterr().err
    evaluate.evaluate_run(run)
    assert "was better" not in capsys.readouterr().err


@pytest.mark.long
def test_a_stop_during_the_evaluation_of_the_best_checkpoint(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved without having been evaluated; it is evaluated on resume, and is the best all the same."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = [*base, "--preset", "vae", "--learning-rate", "0.1", "--checkpoint-every", "1", "--keep-checkpoints", "1"]
    args += ["--validation", "0.25", "--epochs", "9"]
    assert train(*args, "--run-dir", str(whole)) == 0
    best = evaluate.evaluate_run(whole, best=True)["step"]
    assert best < 54, "the last is the best: the test shows nothing"
    # It is asked before each of an epoch's 6 steps, and once before its evaluation.
    asked = iter(range(7 * best // 6))

    def stopping(driver: pipeline.Pipeline[Any]) -> bool:
        if driver.stopped_by is None and next(asked) == 7 * best // 6 - 1:
            driver.stopped_by = signal.SIGTERM
        return driver.stopped_by is not None

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "_wanted", lambda _: 1)
        patch.setattr(pipeline.Pipeline, "_stopping", stopping)
        assert train(*args, "--run-dir", str(cut)) == 143
    assert state_of(cut).step == best
    assert train("--resume", "--run-dir", str(cut)) == 0
    assert_same_run(whole, cut)
    assert evaluate.evaluate_run(cut, best=True)["step"] == best


@pytest.mark.slow
def test_a_run_that_holds_no_images_out_has_no_best_checkpoint(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the notes' presets do: nothing is chosen by the test images."""
    run = tmp_path / "run"
    assert (
        train(*base, "--checkpoint-every", "1", "--keep-checkpoints", "1", "--epochs", "3", "--run-dir", str(run)) == 0
    )
    assert {int(p.name) for p in (run / "checkpoints").glob("[0-9]*")} == {24}
    capsys.readouterr()
    for command in (evaluate.main, generate.main):
        assert cli.run(functools.partial(command, [str(run), "--best"])) == 2
        error = capsys.readouterr().err
        assert "--validation" in error and error.count("\n") == 1


# --- Time and place ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_clock_that_jumps(
    base: list[str], finished: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    whole = finished(*SMALL, "--epochs", "4")
    clock, jump, write = time.time, [0.0], loop.RunFiles.write_epoch

    def jumping(self: Any, step: int, *values: Any) -> None:
        jump[0] = {8: 1e7, 16: -1e7}.get(step, 0.0)
        write(self, step, *values)

    monkeypatch.setattr(time, "time", lambda: clock() + jump[0])
    monkeypatch.setattr(loop.RunFiles, "write_epoch", jumping)
    assert train(*base, "--epochs", "2", "--run-dir", str(run)) == 0
    assert train("--resume", "--epochs", "4", "--run-dir", str(run)) == 0
    assert_same_run(whole, run)
    timing = [line for line in (run / "timing.jsonl").read_text().splitlines() if "seconds" in line]
    assert timing and not any("-" in line.partition("seconds")[2][:6] for line in timing)


@pytest.mark.long
def test_a_run_that_was_moved_elsewhere(base: list[str], finished: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = finished(*SMALL, "--epochs", "4")
    assert train(*base, "--epochs", "2", "--run-dir", str(run)) == 0
    moved = tmp_path / "other" / "place"
    moved.parent.mkdir()
    shutil.move(run, moved)
    assert train("--resume", "--epochs", "4", "--run-dir", str(moved)) == 0
    assert_same_run(whole, moved)


@pytest.mark.slow
def test_a_run_of_an_older_version(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its configuration lacks a newer field, or has a removed one."""
    import json

    run = tmp_path / "run"
    shutil.copytree(finished(*SMALL, "--epochs", "1"), run)
    config = json.loads((run / "config.json").read_text())
    del config["keep_best_checkpoints"]
    (run / "config.json").write_text(json.dumps(config))
    assert train("--resume", "--epochs", "2", "--run-dir", str(run)) == 0
    (run / "config.json").write_text(json.dumps({**config, "warp_factor": 9}))
    capsys.readouterr()
    assert train("--resume", "--epochs", "3", "--run-dir", str(run)) == 2
    assert "config.json has a field this version does not know: warp_factor" in capsys.readouterr().err
