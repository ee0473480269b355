"""The lock of a run directory, against real other processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvae.errors import InputError
from jaxvae.run.lock import RunLock, check_free

HOLD = """
import sys
from pathlib import Path
from jaxvae.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(run_dir: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(run_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_the_holder_is_named_and_a_dead_one_is_no_holder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        named = f"{tmp_path} is in use by process {process.pid} on {os.uname().nodename}"
        with pytest.raises(InputError, match=named):
            RunLock(tmp_path)
        with pytest.raises(InputError, match=named):
            check_free(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (tmp_path / "lock").read_text()  # As it left it.
    check_free(tmp_path)
    with RunLock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            RunLock(tmp_path)
    RunLock(tmp_path).__exit__(None, None, None)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
