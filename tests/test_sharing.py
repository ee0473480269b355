"""Several processes on one sweep: it ends as one that a single process trained, whatever happens to the others."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runs import PATIENCE, SMALL, environment
from test_sweep import assert_same_sweep, sweep

from jaxvae.run.lock import RunLock
from jaxvae.sweep import sharing
from jaxvae.train.signals import StopSignals


@pytest.fixture
def base(image_file: Path) -> list[str]:
    """Two programs of two members each."""
    images = ["--dataset", str(image_file), "--validation", "0"]
    grid = ["--seeds", "2", "--beta", "1", "4", "--members-per-program", "2"]
    return ["--preset", "vae", *images, *SMALL, *grid, "--epochs", "3", "--log-every", "1"]


@pytest.mark.long
def test_a_program_that_another_process_has_comes_last(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert sweep(*base, "--run-dir", str(whole)) == 0
    (shared / "programs" / "0").mkdir(parents=True)
    shutil.copy(whole / "sweep.json", shared)
    held, others = RunLock(shared / "programs" / "0"), shared / "programs" / "1" / "metrics.jsonl"
    grid = ["--join", "--run-dir", str(shared)]
    assert sweep("--resume", "--epochs", "4", *grid) == 2  # All programs are trained for as long.
    assert "other processes train" in (said := capsys.readouterr().err) and "for --epochs 3" in said

    def release() -> None:
        while not others.exists() or '"epoch": 3, "split": "test"' not in others.read_text():
            time.sleep(0.01)
        held.__exit__(None, None, None)

    other = threading.Thread(target=release, daemon=True)
    other.start()
    assert sweep(*base, *grid) == 0
    other.join()
    said = capsys.readouterr().err
    assert said.index("program 2/2") < said.index("which train: program 1") < said.index("program 1/2")
    assert_same_sweep(whole, shared)


def test_a_wait_for_the_turn_names_the_process_that_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = RunLock(tmp_path, name=sharing.TURN)
    with RunLock(tmp_path, shared=True):
        (tmp_path / "lock").write_text("process 1 on another\n")
        threading.Timer(0.2, lambda: held.__exit__(None, None, None)).start()
        with sharing.turn(tmp_path):
            pass
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    (tmp_path / "programs" / "0").mkdir(parents=True)
    with RunLock(tmp_path / "programs" / "0"):
        stop = StopSignals()
        stop.received = signal.SIGTERM
        assert list(sharing.programs_left(tmp_path, 2, stop)) == [1, None]


@pytest.mark.long
def test_processes_start_together_and_one_is_killed(base: list[str], tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    grid = [*base[:-4], "--epochs", "40", "--log-every", "1", "--members-per-program", "1", "--devices", "1"]
    grid += ["--checkpoint-every", "2"]
    assert sweep(*grid, "--run-dir", str(whole)) == 0
    command = [sys.executable, "-m", "jaxvae.sweep", *grid, "--join", "--run-dir", str(shared)]
    processes = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        deadline = time.monotonic() + PATIENCE
        holder = None
        while holder is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            for index in range(4):
                program = shared / "programs" / str(index)
                if any(program.glob("checkpoints/[0-9]*")):
                    holder = int((program / "lock").read_text().split()[1])
        [lost] = [process for process in processes if process.pid == holder]
        lost.send_signal(signal.SIGKILL)
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [-signal.SIGKILL, 0], errors
    assert_same_sweep(whole, shared)


@pytest.mark.long
def test_what_does_not_go_together_is_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert sweep(*base, "--join") == 2
    assert "--join needs --run-dir" in capsys.readouterr().err
    assert sweep("--run-dir", str(out), "--extract", "0", "--to", str(tmp_path / "to"), "--join") == 2
    assert "leave out --join" in capsys.readouterr().err
    assert sweep(*base, "--run-dir", str(out), "--join") == 0
    capsys.readouterr()
    assert sweep(*base, "--beta", "1", "2", "--run-dir", str(out), "--join") == 2
    assert "--join: " in (said := capsys.readouterr().err) and "holds another sweep" in said
    images = dict(np.load(tmp_path / "images.npz"))
    np.savez(tmp_path / "images.npz", train=images["train"][::-1], test=images["test"])
    assert sweep(*base, "--run-dir", str(out), "--join") == 2
    assert "--join: not the images that " in capsys.readouterr().err
    with RunLock(out, shared=True), RunLock(out, shared=True):
        assert sweep("--resume", "--run-dir", str(out)) == 2
    assert "is in use by process" in capsys.readouterr().err
    with RunLock(out):
        assert sweep(*base, "--run-dir", str(out), "--join") == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.mark.long
def test_the_same_command_again_trains_nothing(base: list[str], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    assert sweep(*base, "--run-dir", str(out), "--join") == 0
    before = {path: path.read_bytes() for path in out.glob("programs/*/metrics.jsonl")}
    assert sweep(*base, "--run-dir", str(out), "--join") == 0
    assert before == {path: path.read_bytes() for path in out.glob("programs/*/metrics.jsonl")}
