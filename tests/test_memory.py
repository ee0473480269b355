"""What does not fit in memory is refused before anything is compiled; out-of-memory errors are one line."""

import dataclasses
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import environment, train

from jaxvae import cli, data, memory
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.models.build import build_model
from jaxvae.optimizer import build_optimizer
from jaxvae.sweep import room as members
from jaxvae.train.step import init_state

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
def test_the_state_takes_four_numbers_a_parameter() -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(16,), latent_size=3)
    state = init_state(build_model(config, (6, 5, 1)), build_optimizer(config), jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    required = memory.required_bytes(state, (6, 5, 1), share=8, samples=2)
    assert 0 <= required["state"] - 16 * count < 100  # And some counters of steps.
    assert required["batch"] == 8 * 3 * 30 * 4
    in_parts = memory.required_bytes(state, (6, 5, 1), share=8, samples=2, part=4)
    assert in_parts["batch"] == (8 + 4 * 2) * 30 * 4


@pytest.mark.parametrize(
    ("flags", "named", "free", "words"),
    [
        (["--hidden", "65536", "65536"], "--hidden", 2**33, "8.0 GiB"),
        (["--batch-size", "60000", "--samples", "500"], "--batch-size", 2**31, "2.0 GiB"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_compiles(
    flags: list[str],
    named: str,
    free: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "host_free_bytes", lambda: free)
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((70_000, 6, 5), np.uint8))
    small = ["--preset", "vae", "--hidden", "16", "--validation", "0", "--dataset", str(path)]
    assert train(*small, *flags, "--run-dir", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {named} ") and words in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_devices_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_free_bytes", lambda: 1000)
    memory.check_fits({"state": 200, "batch": 50}, 10**9, jax.devices()[:4])
    with pytest.raises(InputError, match="--hidden"):
        memory.check_fits({"state": 200, "batch": 51}, 0, jax.devices()[:4])


def test_an_accelerator_holds_the_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_stats", lambda device: {"bytes_limit": 1000, "bytes_in_use": 300})
    memory.check_fits({"state": 200, "batch": 300}, 200, jax.devices()[:4])
    with pytest.raises(InputError, match="--batch-size"):
        memory.check_fits({"state": 200, "batch": 300}, 201, jax.devices()[:4])


def test_a_device_that_is_only_compiled_for_holds_its_images() -> None:
    """JAX refuses to tell of its memory; a run for it is compiled as one with resident images."""

    class Described:
        process_index = 0

        def memory_stats(self) -> None:
            raise jax.errors.JaxRuntimeError("MemoryStats is only supported for addressable PjRt devices.")

    device: Any = Described()
    assert memory.device_stats(device) is None
    assert memory.images_fit({"state": 10**15}, 10**15, [device])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_least_of_what_limits_a_process_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    write(tmp_path / "proc/meminfo", "MemTotal: 900 kB\nMemAvailable: 500 kB\nSwapFree: 100 kB\n")
    assert memory.host_free_bytes() == 600 * 1024
    # Version 1, whose group a container does not see under its own name, then version 2 with a limit above it.
    write(tmp_path / "proc/self/cgroup", "4:memory:/elsewhere\n1:cpu:/\n")
    for name, text in (("limit_in_bytes", "300000"), ("usage_in_bytes", "100000"), ("stat", "inactive_file 5000")):
        write(tmp_path / f"cgroups/memory/memory.{name}", text)
    assert memory.host_free_bytes() == 205_000
    write(tmp_path / "proc/self/cgroup", "0::/slice/job\n")
    for name, text in (("max", "max"), ("current", "7000"), ("stat", "inactive_file 0")):
        write(tmp_path / f"cgroups/slice/job/memory.{name}", text)
    for name, text in (("max", "90000"), ("current", "8000"), ("stat", "inactive_file 0")):
        write(tmp_path / f"cgroups/slice/memory.{name}", text)
    assert memory.host_free_bytes() == 82_000
    write(tmp_path / "proc/self/statm", "2 1 1 1 0 1 0\n")
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * page, 4 * page))
    assert memory.host_free_bytes() == page


@pytest.mark.parametrize(
    "allocate", [lambda: jnp.zeros(2**42).block_until_ready(), lambda: np.zeros(2**45) + 1], ids=["XLA", "NumPy"]
)
def test_an_allocation_that_fails_is_reported_in_one_line(allocate: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: int(allocate()[0])) == cli.EXIT_NO_MEMORY == 6
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert "16,384.0 GiB" in error or "256. TiB" in error
    assert "free" in error


LIMITED = """
import resource, sys
from pathlib import Path
from jaxvae import cli, memory
from jaxvae.train import __main__ as train
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, used + 2**32))
sys.exit(cli.run(lambda: train.main(sys.argv[1:])))
"""


@pytest.mark.long
def test_a_limit_of_the_process_counts(image_file: Path, tmp_path: Path) -> None:
    """Training needs 13 GB, which most machines have, but the limit leaves 4 GiB."""
    args = ["--preset", "vae", "--dataset", str(image_file), "--batch-size", "8", "--hidden", "28000", "28000"]
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, *args, "--run-dir", str(tmp_path / "run")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2, found.stderr
    assert "--hidden" in found.stderr and found.stderr.count("\n") == 1


@pytest.mark.slow
def test_memory_in_use_leaves_less_room_for_members(images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is a CPU that is made to report the bytes of its live arrays."""
    kept = jnp.ones(1000)  # In use before.
    device = jax.devices()[1]

    def in_use() -> int:
        # By address: looking at the shards of an array makes arrays that lie in the same place.
        shards = (shard.data for array in jax.live_arrays() for shard in array.addressable_shards)
        return sum({s.unsafe_buffer_pointer(): s.nbytes for s in shards if s.device == device}.values())

    before = in_use()
    monkeypatch.setattr(memory, "device_stats", lambda _: {"bytes_limit": 10**8, "bytes_in_use": in_use()})
    config = dataclasses.replace(PRESETS["vae"], hidden=(16,), latent_size=3, batch_size=8)
    all_images = data.ImageData("test", "test", np.repeat(images[:64], 100, axis=0), images[64:])
    room = members.room(config, all_images, [device], wanted=10**9)
    expected = members.MEMORY_FRACTION * (10**8 - before) - all_images.nbytes
    assert room.free_bytes == pytest.approx(expected, abs=2)
    assert room.members == int(room.free_bytes // room.member_bytes)
    del kept
