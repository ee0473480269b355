"""Measure what this machine does: ``python -m jaxvae.benchmark``."""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import cli, data
from jaxvae import config as configs
from jaxvae.distributed import devices as parallel
from jaxvae.errors import InputError
from jaxvae.keys import key_of, purpose_key
from jaxvae.models.build import build_model
from jaxvae.models.layers import Precision, with_precision
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.options import flag
from jaxvae.train.computer import advance
from jaxvae.train.programs import steps_per_epoch
from jaxvae.train.step import abstract_state, make_train_step
from jaxvae.train.trainer import Trainer

DESCRIPTION = """Measure training on this machine: steps per second, memory, and how near the machine's limit that is.

Every number is the median over rounds of compiled calls on real images, each waited for, warm-up apart; in
every round the machine's own matrix products are timed just before, so that drift hits both alike."""

IMAGES = 60_000  # Images in the timed epochs; a smaller set is repeated.
LEAST_SECONDS = 0.2  # A round repeats its epoch until it has taken this long.
FIRST_STEPS = 3  # Times the command is started afresh, cold and warm.


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    preset: tuple[str, ...] = ("notes-vae",)
    """One or more presets: notes-ae, notes-vae, vae, iwae."""
    batch_size: tuple[int, ...] = (32, 128, 512, 4096)
    """One or more batch sizes."""
    devices: tuple[int, ...] = (1,)
    """One or more numbers of local devices, which share each batch."""
    dataset: str = "auto"
    """Whose images, as of jaxvae.train."""
    data_dir: str | None = None
    """Directory of its IDX files, as of jaxvae.train."""
    matmul_precision: Precision = configs.Config.matmul_precision
    """Of float32 products, as of jaxvae.train; the machine's own are timed at the same."""
    rounds: int = 5
    """Rounds, after one of warm-up."""
    skip_first_step: bool = False
    """Do not measure how long jaxvae.train takes from its start to its first step."""
    json: Path | None = None
    """File to write everything to, as JSON."""


def products(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, and of all that it calls, that are matrix products or convolutions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        values = tuple(equation.params.values())
        if equation.params.get("branches_platforms"):
            # Of one computation a platform, the last is that of all others: the convolution itself.
            values = equation.params["branches"][-1:]
        for value in jax.tree.leaves(values, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def product_flops(jaxpr: Any) -> int:
    """FLOP of the matrix products and convolutions in a jaxpr, 2 a multiplication and addition.

    Args:
      jaxpr: of a function without loops, such as ``jax.make_jaxpr(train_step)(...).jaxpr``.
    """
    total = 0
    for product in products(jaxpr):
        numbers, kernel = product.params["dimension_numbers"], product.invars[1].aval
        if product.primitive.name == "dot_general":
            ((_, contracted), _) = numbers
            terms = math.prod(kernel.shape[axis] for axis in contracted)
        else:
            terms = kernel.size // kernel.shape[numbers.rhs_spec[0]]
        total += 2 * product.outvars[0].aval.size * terms
    return total


def flops_per_step(config: configs.Config, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """FLOP of one training step: of its products, by their shapes, and of everything, as XLA counts it.

    Both are counts of what the mathematics asks for, not of what a machine did.
    """
    model, optimizer = build_model(config, image_shape), build_optimizer(config, steps_per_epoch=1)
    step = make_train_step(model, build_objective(config, steps_per_epoch=1, num_images=1), optimizer)
    batch = jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.uint8)
    example = abstract_state(model, optimizer), batch, purpose_key(config.seed, "train-noise")
    analysis: Any = jax.jit(step).lower(*example).cost_analysis()
    return product_flops(jax.make_jaxpr(step)(*example).jaxpr), int(analysis["flops"])


def products_of(config: configs.Config) -> str:
    """What the products of a training step are computed in: "float32-highest", ..., or "bfloat16"."""
    return config.compute_dtype if config.compute_dtype != "float32" else f"float32-{config.matmul_precision}"


def matmul_timer(dtype: str, precision: Precision) -> Callable[[], float]:
    """A function that multiplies large square matrices and returns the FLOP/s it got.

    Its best is what products of this dtype and precision can reach on this device.
    """
    size, repeats = (2048, 1) if jax.default_backend() == "cpu" else (8192, 20)
    a, b = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(key_of(0)))
    b = b * jnp.asarray(size**-0.5, dtype)  # So that products of products stay near 1.

    @jax.jit
    @with_precision(precision)
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        product: jax.Array = jax.lax.fori_loop(0, repeats, lambda _, a: a @ b, a)
        return product

    multiply(a, b).block_until_ready()

    def flops_per_second() -> float:
        start = time.perf_counter()
        multiply(a, b).block_until_ready()
        return repeats * 2 * size**3 / (time.perf_counter() - start)

    return flops_per_second


def measure(config: configs.Config, images: data.ImageData, devices: int, rounds: int) -> dict[str, Any]:
    """One configuration's numbers, as a result of the ``--json`` file. Raises `InputError`."""
    placement = parallel.data_parallel(parallel.select_devices(devices))
    trainer = Trainer(config, images, placement)
    state, step, steps = trainer.start(None), 0, trainer.steps_per_epoch
    compile_seconds = trainer.compile(state, trainer.usable(steps))
    matmul = matmul_timer(config.compute_dtype, config.matmul_precision)

    def timed(epochs: int) -> float:
        nonlocal state, step
        start = time.perf_counter()
        state, calls = advance(trainer, state, step, epochs * steps)
        jax.block_until_ready((state, calls))
        seconds = time.perf_counter() - start
        step += epochs * steps
        if not all(np.isfinite(terms["loss"]).all() for _, terms in calls):
            raise RuntimeError(f"the loss of {config.preset} at batch size {config.batch_size} is not finite")
        return seconds

    timed(1)
    epochs = math.ceil(LEAST_SECONDS / timed(1))
    speeds, peaks = [], []
    for _ in range(rounds):
        peaks.append(matmul())
        speeds.append(epochs * steps / timed(epochs))
    flops, xla_flops = flops_per_step(config, images.train.shape[1:])
    speed = float(np.median(speeds))
    # A product on one of several emulated CPU devices takes all cores already.
    machines = 1 if jax.default_backend() == "cpu" else devices
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "preset": config.preset,
        "batch_size": config.batch_size,
        "devices": devices,
        "steps_per_second": speed,
        "steps_per_second_rounds": speeds,
        "images_per_second": speed * config.batch_size,
        "compile_seconds": compile_seconds,
        "flops_per_step": flops,
        "xla_flops_per_step": xla_flops,
        "flops_per_second": speed * flops,
        "products": products_of(config),
        "matmul_flops_per_second_rounds": peaks,
        "peak_fraction": float(np.median([s * flops / (p * machines) for s, p in zip(speeds, peaks, strict=True)])),
        "program_bytes": trainer.program_bytes(),
        "device_peak_bytes": memory.get("peak_bytes_in_use"),
    }


def first_step_seconds(preset: str, images: data.ImageData, data_dir: str | None, cache: Path) -> float:
    """Seconds from the start of ``python -m jaxvae.train`` to its first step, compiled programs kept in `cache`.

    Raises:
      RuntimeError: it ended before that.
    """
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = [sys.executable, "-m", "jaxvae.train", "--preset", preset, "--dataset", images.name, "--epochs", "1"]
        command += ["--run-dir", str(run_dir), *(["--data-dir", data_dir] if data_dir else [])]
        caching = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        log = Path(directory) / "log"
        with log.open("wb") as output:
            start = time.perf_counter()
            process = subprocess.Popen(command, env={**os.environ, **caching}, stdout=output, stderr=output)
            try:
                while '"compile"' not in _text(run_dir / "timing.jsonl"):
                    if process.poll() is not None:
                        raise RuntimeError(f"{shlex.join(command)} ended early: {_text(log).strip()}")
                    time.sleep(0.005)
                return time.perf_counter() - start
            finally:
                process.kill()
                process.wait()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def machine() -> dict[str, Any]:
    """What the numbers hold for: hardware, versions, date."""
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "local_devices": jax.local_device_count(),
        "processor": names[0] if names else platform.processor(),
        "cores": _cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "jaxvae")},
        "date": datetime.date.today().isoformat(),
    }


def _cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def distortions(load: float, environment: Mapping[str, str]) -> list[str]:
    """What makes the numbers other than those of the bare machine, a sentence each.

    Args:
      load: the machine's load average before the benchmark.
      environment: ``os.environ``.
    """
    found = []
    if load > 0.3:
        found.append(f"other work is running on this machine (load average {load:.1f}): the numbers are too low")
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        found.append(f"{jax.device_count()} emulated CPU devices share these cores")
    if _cores() < (os.cpu_count() or 1):
        found.append(f"this process may use {_cores()} of {os.cpu_count()} cores")
    quota = _text(Path("/sys/fs/cgroup/cpu.max")).split()
    if quota and quota[0] != "max" and int(quota[0]) < _cores() * int(quota[1]):
        found.append(f"a quota limits this process to {int(quota[0]) / int(quota[1]):.3g} cores")
    slow = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit", "jax_enable_checks", "jax_enable_x64")
    found += [f"{name} is set" for name in slow if getattr(jax.config, name)]
    set_by_user = (name for name in ("XLA_FLAGS", "OMP_NUM_THREADS", "NPROC") if environment.get(name))
    found += [f"{name}={environment[name]}" for name in set_by_user]
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results, a line each."""
    lines = [
        f"{'preset':9} {'batch':>5} {'devices':>7} {'steps/s':>9} {'(least-most)':>15} {'images/s':>11} {'compile':>8} "
        f"{'memory':>9} {'MFLOP/step':>10} {'GFLOP/s':>8} of the peak of products"
    ]
    for r in results:
        rounds = r["steps_per_second_rounds"]
        digits = 0 if min(rounds) >= 100 else 1
        spread = f"({min(rounds):,.{digits}f}-{max(rounds):,.{digits}f})"
        lines.append(
            f"{r['preset']:9} {r['batch_size']:>5} {r['devices']:>7} {r['steps_per_second']:>9,.{digits}f} {spread:>15}"
            f" {r['images_per_second']:>11,.0f} {r['compile_seconds']:>6.1f} s {r['program_bytes'] / 2**20:>5,.0f} MiB"
            f" {r['flops_per_step'] / 1e6:>10,.1f} {r['flops_per_second'] / 1e9:>8,.0f}"
            f" {r['peak_fraction']:.0%} of {r['products']}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `jaxvae.cli`)."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, argv, prog="python -m jaxvae.benchmark", description=DESCRIPTION)
    for name in ("preset", "batch_size", "devices"):
        if not getattr(arguments, name):
            raise InputError(f"{flag(name)} needs at least one value")
    if arguments.rounds < 1:
        raise InputError(f"--rounds must be at least 1, not {arguments.rounds}")
    if arguments.json is not None:
        cli.check_writable("--json", arguments.json)
    todo = [
        (
            dataclasses.replace(configs.preset(preset), batch_size=size, matmul_precision=arguments.matmul_precision),
            devices,
        )
        for preset in arguments.preset
        for size in arguments.batch_size
        for devices in arguments.devices
    ]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    images = data.load(arguments.dataset, arguments.data_dir)
    if len(images.train) < IMAGES:
        print(f"{images.source}: its {len(images.train):,} images are repeated to make {IMAGES:,}")
        images = dataclasses.replace(images, train=np.resize(images.train, (IMAGES, *images.train.shape[1:])))
    for config, devices in todo:  # Refuse what cannot be measured before anything is.
        steps_per_epoch(config, len(images.train))
        if devices < 1 or config.batch_size % devices:
            raise InputError(f"--batch-size {config.batch_size} does not divide over {devices} devices")

    started: dict[str, list[float]] = {"cold_seconds": [], "warm_seconds": []}
    if not arguments.skip_first_step:
        # Before this process takes the device, which some devices give to one process only.
        for _ in range(FIRST_STEPS):
            with tempfile.TemporaryDirectory() as cache:
                for temperature in started.values():
                    preset = arguments.preset[0]
                    temperature.append(first_step_seconds(preset, images, arguments.data_dir, Path(cache)))
    here, notes = machine(), distortions(load, os.environ)
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    print(f"{here['device']} ({here['processor']}, {here['cores']} cores), Python {here['python']}, {versions}")
    for note in notes:
        print(f"note: {note}")
    if not arguments.skip_first_step:
        cold, warm = (np.median(seconds) for seconds in started.values())
        print(f"from the start of jaxvae.train to its first step: {cold:.1f} s; {warm:.1f} s with a compilation cache")
    results = []
    for devices in arguments.devices:
        parallel.select_devices(devices)
    for config, devices in todo:
        results.append(measure(config, images, devices, arguments.rounds))
        header, line = table(results[-1:]).splitlines()
        print(line if results[1:] else f"{header}\n{line}", flush=True)
    if arguments.json is not None:
        command = shlex.join(["python", "-m", "jaxvae.benchmark", *argv])
        content = {"machine": here, "command": command, "notes": notes, "first_step": started, "results": results}
        arguments.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
