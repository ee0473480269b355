"""Jobs of two real processes on this machine."""

import dataclasses
import hashlib
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import (
    COMPARED,
    PATIENCE,
    SMALL,
    Job,
    assert_same_curve,
    assert_same_run,
    assert_same_training,
    environment,
    float64_steps,
    free_address,
    state_of,
    train,
)

from jaxvae import cli
from jaxvae.config import PRESETS
from jaxvae.data.images import ImageData
from jaxvae.distributed import devices as parallel
from jaxvae.distributed import job as distributed
from jaxvae.distributed import meeting
from jaxvae.errors import InputError
from jaxvae.models.quantizers import DEAD
from jaxvae.train.computer import advance
from jaxvae.train.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS_OF_A_JOB = """
import pickle, sys
from pathlib import Path
from jaxvae.distributed import devices as parallel, job as distributed
from runs import float64_steps
preset, address, process, file = sys.argv[1:]
distributed.join(address, 2, int(process))
result = float64_steps(preset, "shard_map", parallel.select_devices())
Path(file).write_bytes(pickle.dumps(result))
"""


def in_two_processes(
    code: str, argument: str, directory: Path, devices: int = 2, codes: Sequence[int] = (0, 0)
) -> list[bytes]:
    """What `code` writes in each of two processes; argv: `argument`, an address, the process, the file to write."""
    address = free_address()
    files = [directory / f"process-{number}" for number in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, argument, address, str(number), str(file)],
            cwd=Path(__file__).parent,
            env=environment(devices),
            stdout=subprocess.DEVNULL,  # Where the library below JAX's CPU collectives prints.
        )
        for number, file in enumerate(files)
    ]
    try:
        assert [process.wait(PATIENCE) for process in processes] == list(codes)
    finally:
        for process in processes:
            process.kill()
    return [file.read_bytes() for file in files]


def errors_in(said: str) -> list[str]:
    """stderr without the lines about waiting."""
    return [line for line in said.splitlines() if not line.startswith("waiting for") and " is here" not in line]


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize("preset", COMPARED)
def test_200_steps_are_the_same_in_two_processes(preset: str, tmp_path: Path) -> None:
    expected = float64_steps(preset, "jit", jax.devices()[:1])
    for result in in_two_processes(STEPS_OF_A_JOB, preset, tmp_path, devices=1):
        assert_same_training(*pickle.loads(result), *expected)


@pytest.mark.long
@pytest.mark.unoptimized
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """The command line, in float32, for as many steps as differences stay as small as rounding."""
    cadence = ["--log-every", "1", "--image-every", "0", "--checkpoint-every", "0"]
    args = ["--preset", "notes-ae", "--dataset", "digits", "--epochs", "3", *cadence]
    assert train(*args, "--run-dir", str(tmp_path / "one")) == 0
    codes, said = Job([*args, "--run-dir", str(tmp_path / "two")], devices=2).wait()
    assert codes == [0, 0], said
    assert "x 4 in 2 processes" in said[0] and "epoch 3/3" in said[0]
    assert said[1].startswith("waiting for process 0 at 127.0.0.1:") and said[1].count("\n") == 1  # Process 0 prints.
    assert_same_curve(tmp_path / "two", tmp_path / "one", 100)


@pytest.fixture
def base(image_file: Path) -> list[str]:
    return ["--dataset", str(image_file), *SMALL]


@pytest.mark.long
def test_a_job_of_two_resumes_bit_for_bit_what_it_left(base: list[str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert Job([*base, "--epochs", "4", "--run-dir", str(whole)]).wait()[0] == [0, 0]
    assert Job([*base, "--epochs", "2", "--run-dir", str(parts)]).wait()[0] == [0, 0]
    assert Job(["--resume", "--epochs", "4", "--run-dir", str(parts)]).wait()[0] == [0, 0]
    assert_same_run(whole, parts)


STATE_OF_A_JOB = """
import hashlib, sys
from pathlib import Path
import jax, numpy as np
from jaxvae import config_file, data
from jaxvae.distributed import devices as parallel, job as distributed
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.train.trainer import Trainer
run_dir, address, process, file = sys.argv[1:]
distributed.join(address, 2, int(process))
config = config_file.load(Path(run_dir) / "config.json")
images = data.load(config.dataset)
placement = parallel.data_parallel(parallel.select_devices())
trainer = Trainer(config, images, placement)
with Checkpoints(Path(run_dir) / "checkpoints", read_only=True) as checkpoints:
    saved = checkpoints.restore(trainer.abstract_state()).state
zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), trainer.abstract_state())
state = trainer.start(distributed.from_lead(saved if distributed.is_lead() else zeros))
for leaf in jax.tree.leaves(state):
    assert len(leaf.addressable_shards) == 2 and len(leaf.sharding.device_set) == 4
    digests = {hashlib.sha256(np.asarray(s.data).tobytes()).hexdigest() for s in leaf.addressable_shards}
    with open(file, "a") as out:
        print(*digests, file=out)
"""


@pytest.mark.long
@pytest.mark.unoptimized
def test_a_checkpoint_of_eight_devices_starts_in_two_processes_bit_for_bit(base: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(*base, "--epochs", "2", "--devices", "8", "--run-dir", str(run_dir)) == 0
    state = state_of(run_dir)
    expected = [hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for leaf in jax.tree.leaves(state)]
    for printed in in_two_processes(STATE_OF_A_JOB, str(run_dir), tmp_path):
        assert printed.decode().split() == expected
    codes, said = Job(["--resume", "--epochs", "3", "--run-dir", str(run_dir)], devices=2).wait()
    assert codes == [0, 0], said
    assert "going on from step 16" in said[0]
    assert state_of(run_dir).step == 24


def codebook_of(devices: Sequence[jax.Device]) -> list[list[NDArray[np.float32]]]:
    """The arrays of vq's codebook after six steps, each as every device here has it. Most of its codes restart."""
    config = dataclasses.replace(
        PRESETS["vq-vae"], hidden=(4,), batch_size=8, codes=40, code_size=2, code_prior_layers=0, learning_rate=1e-5
    )
    whole = np.random.default_rng(0).integers(0, 256, (56, 6, 5, 1), np.uint8)
    images = ImageData("digits", "a test", whole[:48], whole[48:])
    local = parallel.data_parallel(jax.local_devices()[:1])
    first = jax.device_get(Trainer(config, images, local).start(None))
    used = first.collections["codebook"]["quantizer"]
    used["frequencies"] = np.full_like(used["frequencies"], 0.9 * DEAD / 40)
    trainer = Trainer(config, images, parallel.data_parallel(devices))
    state, _ = advance(trainer, trainer.start(first), 0, 6)
    return [[np.asarray(s.data) for s in leaf.addressable_shards] for leaf in jax.tree.leaves(state.collections)]


CODEBOOK_OF_A_JOB = """
import pickle, sys
from pathlib import Path
from jaxvae.distributed import devices as parallel, job as distributed
from test_processes import codebook_of
_, address, process, file = sys.argv[1:]
distributed.join(address, 2, int(process))
Path(file).write_bytes(pickle.dumps(codebook_of(parallel.select_devices())))
"""


@pytest.mark.long
@pytest.mark.unoptimized
def test_processes_have_one_codebook(tmp_path: Path) -> None:
    """Bit for bit on all devices, and that of one device to rounding, restarts included."""
    expected = codebook_of(jax.devices()[:1])
    of_processes = [pickle.loads(found) for found in in_two_processes(CODEBOOK_OF_A_JOB, "vq", tmp_path)]
    for (one,), *shards in zip(expected, *of_processes, strict=True):
        copies = [copy for process in shards for copy in process]
        assert len(copies) == 4 and len({copy.tobytes() for copy in copies}) == 1
        np.testing.assert_allclose(copies[0], one, rtol=1e-4, atol=1e-6)


def wait_for_lines(run_dir: Path, count: int) -> None:
    """Wait until a run has written `count` lines of metrics."""
    end = time.monotonic() + PATIENCE
    while not (run_dir / "metrics.jsonl").exists() or (run_dir / "metrics.jsonl").read_text().count("\n") < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(told: int, base: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    args = [*base, "--image-every", "0", "--epochs", "400"]
    job = Job([*args, "--run-dir", str(cut)])
    wait_for_lines(cut, 6)
    job.processes[told].send_signal(signal.SIGTERM)
    codes, said = job.wait()
    assert codes == [143, 143], said
    assert "SIGTERM: saving, then stopping" in said[told]
    stopped = int(state_of(cut).step)
    assert 0 < stopped < 8 * 400 and f"saved at step {stopped:,}" in said[0]
    epochs = str(stopped // 8 + 2)
    assert Job(["--resume", "--run-dir", str(cut), "--epochs", epochs]).wait()[0] == [0, 0]
    assert Job([*args[:-1], epochs, "--run-dir", str(whole)]).wait()[0] == [0, 0]
    assert_same_run(whole, cut)


@pytest.mark.long
@pytest.mark.unoptimized
def test_a_loss_that_is_not_finite_stops_both(base: list[str], tmp_path: Path) -> None:
    codes, said = Job(["--preset", "vae", *base, "--learning-rate", "1e30", "--run-dir", str(tmp_path / "run")]).wait()
    assert codes == [3, 3], said
    assert all("error: the loss is" in words for words in said)


FAILING_SAVE = """
import sys
from pathlib import Path
from jaxvae import cli
from jaxvae.train import __main__ as train
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.errors import SaveError
def fail(self, step, *_):
    if step == int(at):
        raise SaveError("the disk is on fire")
args, address, process, file = sys.argv[1:]
at, *args = args.split()
Checkpoints._write = fail
job = ["--coordinator", address, "--num-processes", "2", "--process-id", process]
Path(file).write_text(str(cli.run(lambda: train.main([*args, *job]))))
"""


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize("at", [16, 32])
def test_a_save_that_fails_ends_both_with_its_code(at: int, base: list[str], tmp_path: Path) -> None:
    """In the middle of a run, and at its end."""
    args = [str(at), *base, "--checkpoint-every", "1", "--epochs", "4", "--run-dir", str(tmp_path / "run")]
    assert in_two_processes(FAILING_SAVE, " ".join(args), tmp_path, devices=1) == [b"4", b"4"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([[], ["--seed", "7"]], "seed: 0 and 7"),
        ([[], ["--dataset", "digits"]], "dataset: "),
        ([[], ["--dataset", "nowhere.npz"]], "nowhere.npz"),
        ([["--data-dir", "/nowhere"], []], "--data-dir"),
        ([["--devices", "3"]] * 2, "--devices 3: process 0 has 2"),
        ([["--batch-size", "6"]] * 2, "--batch-size 6 does not divide over 4 devices"),
    ],
)
def test_bad_input_to_one_process_is_reported_by_both(
    flags: list[list[str]], words: str, base: list[str], tmp_path: Path
) -> None:
    codes, said = Job([*base, "--run-dir", str(tmp_path / "run")], flags, devices=2).wait()
    assert codes == [2, 2], said
    assert all(words in errors_in(process)[-1] and len(errors_in(process)) == 1 for process in said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.unoptimized
def test_an_error_of_process_0_is_reported_by_both(base: list[str], tmp_path: Path) -> None:
    args = [*base, "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert train(*args) == 0
    (tmp_path / "run" / "checkpoints" / "8" / "record.json").unlink()
    codes, said = Job(["--resume", "--epochs", "2", "--run-dir", str(tmp_path / "run")]).wait()
    assert codes == [2, 2], said
    assert all("every checkpoint is damaged" in process for process in said)


FAILING = """
import os, sys
from pathlib import Path
from jaxvae import cli
from jaxvae.data import images
from jaxvae.train import __main__ as train, trainer
args, address, process, file = sys.argv[1:]
place, error, *args = args.split()
def fail(*_):
    raise {"MemoryError": MemoryError, "ZeroDivisionError": ZeroDivisionError}[error]("of the test")
if process == "1":
    module, name = {"prepare": (images, "digest"), "steps": (trainer.Trainer, "run_steps")}[place]
    setattr(module, name, fail)
job = ["--coordinator", address, "--num-processes", "2", "--process-id", process]
os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o644), 2)
sys.exit(cli.run(lambda: train.main([*args, *job])))
"""


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize(
    ("place", "error", "code"),
    [("prepare", "MemoryError", 6), ("prepare", "ZeroDivisionError", 1), ("steps", "ZeroDivisionError", 1)],
)
def test_an_error_in_one_process_ends_both(place: str, error: str, code: int, base: list[str], tmp_path: Path) -> None:
    """During preparation, where `agreed` reports it, and later, where the watch does."""
    args = " ".join([place, error, *base, "--epochs", "2", "--run-dir", str(tmp_path / "run")])
    said = in_two_processes(FAILING, args, tmp_path, devices=1, codes=[cli.EXIT_JOB, code])
    [line] = [line for line in said[0].decode().splitlines() if line.startswith("error: ")]
    assert "process 1" in line and f"{error}: of the test" in line
    assert (b"Traceback" in said[1]) == (error != "MemoryError") and b"Traceback" not in said[0]
    assert b"of the test" in said[1]


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_other(lost: int, base: list[str], tmp_path: Path) -> None:
    job = Job([*base, "--image-every", "0", "--epochs", "100000", "--run-dir", str(tmp_path / "run")])
    wait_for_lines(tmp_path / "run", 1)
    job.processes[lost].kill()
    start = time.monotonic()
    codes, said = job.wait()
    assert time.monotonic() - start < 10
    assert (codes[1 - lost], codes[lost]) == (cli.EXIT_JOB, -signal.SIGKILL), said
    *_, last = said[1 - lost].splitlines()
    assert last.startswith(f"error: process {lost} (pid {job.processes[lost].pid} on ")
    assert f"--resume --run-dir {tmp_path / 'run'}" in last
    assert "*** Check failure" not in said[1 - lost] and "Traceback" not in said[1 - lost]
    assert said[1 - lost].count("error") == 1


SCHEDULED = """
import sys
from pathlib import Path
from jaxvae.distributed import job as distributed
scheduler, address, process, file = sys.argv[1:]
import os
port = address.rpartition(":")[2]
os.environ |= {
    "slurm": {"SLURM_JOB_ID": port, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": process,
              "SLURM_LOCALID": process},
    "gke": {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": process, "JAX_COORDINATOR_PORT": port},
}[scheduler]
distributed.join()
Path(file).write_text(" ".join(map(str, distributed.gather(int(process)))))
"""


@pytest.mark.long
@pytest.mark.parametrize("scheduler", ["slurm", "gke"])
def test_processes_that_a_scheduler_started_meet(scheduler: str, tmp_path: Path) -> None:
    assert in_two_processes(SCHEDULED, scheduler, tmp_path, devices=1) == [b"0 1", b"0 1"]


def test_waiting_for_missing_processes_ends() -> None:
    address = free_address()
    with pytest.raises(InputError, match=f"--coordinator {address}: of 3 processes, number 1, 2 did not connect"):
        distributed.join(address, 3, 0, timeout=0.3)


def _meet(address: str, count: int, number: int) -> list[meeting.Link]:
    return meeting.meet("--coordinator", address, meeting.this_process(number), count, 20)


@pytest.mark.parametrize(("number", "count"), [(1, 3), (0, 2)])
def test_a_process_of_another_job_is_turned_away(number: int, count: int) -> None:
    address = free_address()
    with ThreadPoolExecutor() as threads:
        lead = threads.submit(_meet, address, 2, 0)
        with pytest.raises(InputError, match=f"process {number or 2} of {count} does not fit a job of 2"):
            _meet(address, count, number or 2)
        with pytest.raises(InputError, match="does not fit a job of 2"):
            lead.result()


def test_a_stranger_at_the_port_is_ignored() -> None:
    address = free_address()
    host, _, port = address.rpartition(":")
    with ThreadPoolExecutor() as threads:
        lead = threads.submit(_meet, address, 2, 0)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"kind": "here", "of": 2, "peer": 1}\n', b""):
            with meeting.connect(host, int(port), time.monotonic() + PATIENCE) as stranger:
                stranger.sendall(words)
        links = [*_meet(address, 2, 1), *lead.result()]
        assert [str(link.peer) for link in links] == [str(meeting.this_process(number)) for number in (0, 1)]
        for link in links:
            link.close()
