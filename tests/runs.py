"""Run the command line of training, in this process or in others, and compare two runs."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae import cli, data
from jaxvae.config import PRESETS
from jaxvae.distributed import devices as parallel
from jaxvae.fitting import result_of
from jaxvae.metrics import classifier
from jaxvae.models.build import build_model
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train import __main__ as command
from jaxvae.train.step import init_state, make_train_step

COMPARED = ("notes-ae", "notes-vae", "vae")  # Presets that are compared over devices and processes.
PATIENCE = 600.0  # Seconds until a test gives up on what hangs. Some machines are very slow.
SMALL = ["--hidden", "16", "8", "--latent-size", "4", "--batch-size", "8"]
# Presets that have no --latent-size: other flags, or the image, decide it. These make their programs small: those of
# deep networks take long to compile.
SHALLOW: dict[str, Any] = {
    "ladder": {"blocks": 1},
    "vq-vae": {"code_prior_layers": 1},
    "fsq": {"code_prior_layers": 1},
}
SIZED = tuple(SHALLOW)


def train(*args: str) -> int:
    """Run the command line in this process, by default on one device; returns its exit code."""
    devices = [] if "--devices" in args else ["--devices", "1"]
    return cli.run(lambda: command.main([*args, *devices]))


def state_of(run_dir: Path) -> Any:
    return result_of(run_dir).state


def assert_same_run(a: Path, b: Path) -> None:
    """The same metrics, byte for byte, and the same state, bit for bit."""
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    one, other = state_of(a), state_of(b)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda x, y: _assert_same_bits(x, y), one, other)


def _assert_same_bits(x: Any, y: Any) -> None:
    np.testing.assert_array_equal(x, y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def train_command(*args: str) -> list[str]:
    """The command line, for a process of its own with one device."""
    return [sys.executable, "-m", "jaxvae.train", *args]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process with so many emulated devices."""
    flags = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags}


def caching(caches: Path) -> dict[str, str]:
    """The environment of a process with one device and user caches in `caches`, without the suite's cache."""
    kept = {name: value for name, value in environment().items() if "CACHE" not in name}
    # Matplotlib's cache stays, since it takes long to make.
    return {**kept, "XDG_CACHE_HOME": str(caches), "MPLCONFIGDIR": str(Path.home() / ".cache" / "matplotlib")}


def keep_classifiers(caches: Path, monkeypatch: Any, steps: int) -> Path:
    """Let the classifiers of `--metric fid` take few steps, and keep them in `caches`, not in the user's; where."""
    matplotlib = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "matplotlib"  # It takes long to make.
    monkeypatch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(matplotlib)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    monkeypatch.setattr(classifier, "STEPS", steps)
    return caches / "jaxvae-classifiers"


def free_address() -> str:
    """HOST:PORT on this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Job:
    """Processes of `jaxvae.train`, started together; `flags` of each are appended to `args`."""

    def __init__(
        self,
        args: Sequence[str],
        flags: Sequence[Sequence[str]] = ((), ()),
        devices: int = 1,
        env: dict[str, str] | None = None,
    ):
        address = free_address()
        self.processes = [
            subprocess.Popen(
                train_command(
                    *args, *own, "--coordinator", address, "--num-processes", str(len(flags)), "--process-id", str(i)
                ),
                env=env or environment(devices),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i, own in enumerate(flags)
        ]

    def wait(self) -> tuple[list[int], list[str]]:
        """Exit codes, and what each printed to stderr. All are killed if they hang."""
        try:
            said = [process.communicate(timeout=PATIENCE)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], said


def assert_same_curve(a: Path, b: Path, steps: int) -> None:
    """The losses of the first steps agree in two runs that logged every step.

    Adam divides by the size of the gradient, so it multiplies rounding. How much depends on the processor: 1.3e-5 was
    seen in ten steps of `vae`.
    """
    curves = []
    for run_dir in (a, b):
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        curves.append([line["loss"] for line in lines if line["split"] == "train"][:steps])
        assert len(curves[-1]) == steps
    np.testing.assert_allclose(*curves, rtol=1e-4)


def float64_steps(preset: str, way: str, devices: Sequence[jax.Device], steps: int = 200) -> tuple[Any, Any]:
    """The losses of some steps of a preset with narrow layers on digits, 32 a batch, and the last parameters; float64.

    Args:
      preset: its name.
      way: "jit", "pmap" or "shard_map".
      devices: which share each batch.
    """
    # Narrow: eight emulated devices on a few cores update all parameters eight times over.
    config = dataclasses.replace(PRESETS[preset], hidden=(64, 64), batch_size=32)
    images = data.load("digits").train
    chosen = np.random.default_rng(0).integers(0, len(images), (steps, config.batch_size))
    batches = images[chosen] / 255.0
    with jax.enable_x64(True):
        model = build_model(config, (28, 28, 1)).clone(dtype=jax.numpy.float64)
        optimizer = build_optimizer(config)
        state = jax.device_get(init_state(model, optimizer, jax.random.key(0)))
        state = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, state)

        def many(axis_name: str | None) -> Any:
            step = make_train_step(model, build_objective(config), optimizer, axis_name)
            return lambda state, batches, seed: jax.lax.scan(
                lambda s, batch: step(s, batch, jax.random.key(seed)), state, batches
            )

        seed = np.uint32(1)
        placement = parallel.data_parallel(devices)
        spread = jax.sharding.NamedSharding(placement.batch.mesh, jax.P(None, *placement.batch.spec))
        if way == "pmap":
            shares = batches.reshape(steps, len(devices), -1, *batches.shape[2:])
            run = jax.pmap(many("data"), axis_name="data", in_axes=(None, 1, None), devices=devices)
            state, terms = jax.tree.map(lambda a: a[0], run(state, shares, seed))
        elif way == "shard_map":
            specs = {"in_specs": (jax.P(), spread.spec, jax.P()), "out_specs": jax.P(), "check_vma": False}
            run = jax.shard_map(many("data"), mesh=placement.batch.mesh, **specs)
            state, terms = jax.jit(run)(parallel.place(state, placement.state), parallel.place(batches, spread), seed)
        else:
            run = jax.jit(many(None), out_shardings=placement.replicated)
            state, terms = run(parallel.place(state, placement.state), parallel.place(batches, spread), seed)
        return np.asarray(terms["loss"]), jax.device_get(state.params)


def assert_same_training(losses: Any, params: Any, other_losses: Any, other_params: Any) -> None:
    """To rounding in float64. 200 steps of `notes-vae` multiply it, where a sigma is almost 0.

    Measured: losses 3e-14 and parameters 5e-13 apart at most; with the presets' own widths 6e-11 and 3e-10.
    """
    assert losses.dtype == np.float64 and len(losses) >= 200
    np.testing.assert_allclose(losses, other_losses, rtol=1e-11)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10), params, other_params)
