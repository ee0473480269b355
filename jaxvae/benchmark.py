"""Measure training on this machine: ``python -m jaxvae.benchmark``."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import cli, data, flags
from jaxvae import config as configs
from jaxvae.cli import number
from jaxvae.compiled.command import compile_only
from jaxvae.config import Config
from jaxvae.distributed import devices as parallel
from jaxvae.errors import InputError, one_line
from jaxvae.keys import key_of
from jaxvae.machine import cores, processor
from jaxvae.models.layers import Precision, with_precision
from jaxvae.train.computer import advance
from jaxvae.train.cost import flops_per_step, products_of
from jaxvae.train.programs import steps_per_epoch
from jaxvae.train.trainer import Trainer

DESCRIPTION = """Measure training on this machine: steps per second, memory, and how close to the machine's limit.

The flags of jaxvae.train describe what is trained. --batch-size takes several values, by default 32 128 512 4096, and
so does --devices. Every number is the median over rounds of compiled calls on real images, after a warm-up. Each round
first times large matrix products, so that drift of the machine affects both alike."""

BATCH_SIZES = ("32", "128", "512", "4096")  # The default, up to the number of images.
IMAGES = 60_000  # Training images: a smaller set is repeated,
IMAGE_BYTES = 2**30  # within this much of the device's memory.
ROUND_SECONDS = 1.0  # The least time of the steps of a round.
BOUND = 0.6  # Part of the peak of products: from here on, products bound a step.
FIRST_STEPS = 3  # Times that the command is started, cold and warm.


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure, and how."""

    config: Config
    devices: tuple[int, ...] = (1,)
    """One or more numbers of local devices that share each batch."""
    rounds: int = 5
    """Rounds to measure, after the warm-up."""
    compile_for: str | None = None
    """Measure nothing: compile for an accelerator that need not be here, and count. h100, h200, a100, h100:8 (eight in
    a machine), v5e:2x2, v6e:4x4 (a slice of TPUs), ..."""
    skip_first_step: bool = False
    """Do not measure how long jaxvae.train takes from its start to its first step."""
    json: Path | None = None
    """File to write everything to, as JSON."""


def parse(argv: Sequence[str]) -> tuple[Arguments, list[Config], bool]:
    """Parse the command line: `Arguments`, the configuration at each batch size, and whether sizes were given.

    Raises:
      InputError: in one line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--batch-size", "--batch_size", nargs="+")
    try:
        sizes, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    known = flags.peek(argv)
    default = Arguments(flags.defaults(configs.preset(known.preset or Config.preset), known))
    parsed = [
        flags.parse(default, [*rest, "--batch-size", size], prog="python -m jaxvae.benchmark", description=DESCRIPTION)
        for size in sizes.batch_size or BATCH_SIZES
    ]
    arguments = parsed[0]
    if not arguments.devices:
        raise InputError("--devices needs at least one value")
    if arguments.compile_for is not None and arguments.devices != Arguments(arguments.config).devices:
        raise InputError("--compile-for names the number of devices itself: leave --devices out")
    if arguments.compile_for is not None and (arguments.rounds != Arguments.rounds or arguments.skip_first_step):
        raise InputError("--compile-for measures nothing: leave --rounds and --skip-first-step out")
    if arguments.rounds < 1:
        raise InputError(f"--rounds must be at least 1, not {arguments.rounds}")
    return arguments, [each.config for each in parsed], sizes.batch_size is not None


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


def measure(config: Config, images: data.ImageData, devices: int, rounds: int) -> dict[str, Any]:
    """The numbers of one configuration, as one of the results in the ``--json`` file. Raises `InputError`."""
    placement = parallel.data_parallel(parallel.select_devices(devices))
    trainer = Trainer(config, images, placement)
    trainer.check_fits()
    state, step = trainer.start(None), 0
    compile_seconds = trainer.compile(state)
    matmul = matmul_timer(config.compute_dtype, config.matmul_precision)

    def timed(count: int) -> float:
        nonlocal state, step
        start = time.perf_counter()
        state, calls = advance(trainer, state, step, count)
        jax.block_until_ready((state, calls))
        seconds = time.perf_counter() - start
        step += count
        if not all(np.isfinite(terms["loss"]).all() for _, terms in calls):
            raise InputError(f"the loss is not finite at batch size {config.batch_size}: nobody would train like that")
        return seconds

    count = 1
    while timed(count) < ROUND_SECONDS:
        count *= 2
    speeds, peaks = [], []
    for _ in range(rounds):
        peaks.append(matmul())
        speeds.append(count / timed(count))
    flops, missed = flops_per_step(config, images)
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
        "flops_not_counted": missed,
        "flops_per_second": speed * flops,
        "products": products_of(config),
        "matmul_flops_per_second_rounds": peaks,
        "peak_fraction": float(np.median([s * flops / (p * machines) for s, p in zip(speeds, peaks, strict=True)])),
        "program_bytes": trainer.program_bytes(),
        "device_peak_bytes": memory.get("peak_bytes_in_use"),
    }


def first_step_seconds(config: Config, caches: Path) -> float:
    """Seconds from the start of ``python -m jaxvae.train`` to the end of its first step.

    Args:
      config: to train.
      caches: the user's cache directory. If it is empty, everything is compiled.

    Raises:
      InputError: the command ended before that.
    """
    with tempfile.TemporaryDirectory() as directory:
        run_dir, log = Path(directory) / "run", Path(directory) / "log"
        # A line of metrics a step.
        given = flags.flags_of(dataclasses.replace(config, log_every=1))
        command = [sys.executable, "-m", "jaxvae.train", *given, "--run-dir", str(run_dir)]
        if config.step_kernels != "plain":  # These are for one device.
            command += ["--devices", "1"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(caches)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        with log.open("wb") as output:
            start = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                while not _text(run_dir / "metrics.jsonl"):
                    if process.poll() is not None:
                        said = one_line(_text(log)[-500:]).strip()
                        raise InputError(f"jaxvae.train {shlex.join(given)} ended before its first step: {said}")
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
    own = processor()
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "local_devices": jax.local_device_count(),
        "processor": own.get("model name") or own["processor"],
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "jaxvae")},
        "date": datetime.date.today().isoformat(),
    }


def distortions(load: float, environment: Mapping[str, str]) -> list[str]:
    """Reasons why the numbers are not those of the bare machine, a sentence each.

    Args:
      load: the machine's load average before the benchmark.
      environment: ``os.environ``.
    """
    found = []
    if load > 0.3:
        found.append(f"other work is running on this machine (load average {load:.1f}): the numbers are too low")
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        found.append(f"{jax.device_count()} emulated CPU devices share these cores")
    if cores() < (os.cpu_count() or 1):
        found.append(f"this process may use {cores()} of {os.cpu_count()} cores")
    quota = _text(Path("/sys/fs/cgroup/cpu.max")).split()
    if quota and quota[0] != "max" and int(quota[0]) < cores() * int(quota[1]):
        found.append(f"a quota limits this process to {int(quota[0]) / int(quota[1]):.3g} cores")
    slow = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit", "jax_enable_checks", "jax_enable_x64")
    found += [f"{name} is set" for name in slow if getattr(jax.config, name)]
    by_the_user = ("XLA_FLAGS", "OMP_NUM_THREADS", "NPROC", "JAX_COMPILATION_CACHE_DIR")
    found += [f"{name}={environment[name]}" for name in by_the_user if environment.get(name)]
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results, a line each."""
    lines = [
        f"{'batch':>6} {'devices':>7} {'steps/s':>9} {'(least-most)':>17} {'images/s':>9} {'compile':>8} "
        f"{'memory':>10} {'MFLOP/step':>11} {'GFLOP/s':>8}  of the peak of products"
    ]
    for r in results:
        rounds = r["steps_per_second_rounds"]
        spread = f"({number(min(rounds))}-{number(max(rounds))})"
        part = f"{r['peak_fraction']:.0%} of {r['products']}" if r["flops_per_step"] else "no products"
        lines.append(
            f"{r['batch_size']:>6} {r['devices']:>7} {number(r['steps_per_second']):>9} {spread:>17} "
            f"{number(r['images_per_second']):>9} {r['compile_seconds']:>6.1f} s "
            f"{r['program_bytes'] / 2**20:>6,.0f} MiB {number(r['flops_per_step'] / 1e6):>11} "
            f"{number(r['flops_per_second'] / 1e9):>8}  {part}"
        )
    return "\n".join(lines)


def conclusion(results: Sequence[Mapping[str, Any]]) -> str:
    """What bounds training, and what would be faster: a sentence, for the fewest devices measured."""
    fewest = min(r["devices"] for r in results)
    mine = sorted((r["batch_size"], r["peak_fraction"]) for r in results if r["devices"] == fewest)
    bound = [size for size, part in mine if part >= BOUND]
    if len(bound) == len(mine):
        return "matrix products limit every step: only a smaller model, or a lower precision on a GPU or TPU, is faster"
    rest = "small operations and memory limit a step: use a larger batch, or train several models with jaxvae.sweep"
    return f"matrix products limit a step from batch size {bound[0]} on; below that, {rest}" if bound else rest


def repeated(images: data.ImageData) -> data.ImageData:
    """`images` with those for training repeated to `IMAGES`, or as many as fit in `IMAGE_BYTES`; never fewer."""
    count = min(IMAGES, IMAGE_BYTES // images.train[:1].nbytes)
    if len(images.train) >= count:
        return images
    repeats = {name: np.resize(values, (count, *values.shape[1:])) for name, values in images.split("train").items()}
    return dataclasses.replace(images, train=repeats.pop("image"), others={**images.others, "train": repeats})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    argv = sys.argv[1:] if argv is None else argv
    arguments, sized, sizes_given = parse(argv)
    if arguments.json is not None:
        cli.check_writable("--json", arguments.json)
    if arguments.compile_for is not None:
        jax.config.update("jax_platforms", "cpu")  # Nothing runs on an accelerator that is here.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    config = arguments.config
    images = data.load_for(config)
    images = data.prepared(images, config)
    found, images = len(images.train), repeated(images)
    if len(images.train) > found:
        print(f"{images.source}: its {found:,} images are repeated to make {len(images.train):,}")
    if not sizes_given:
        sized = [each for each in sized if each.batch_size <= len(images.train)] or sized[:1]
    sized = [data.for_run(each, images) for each in sized]
    if arguments.compile_for is not None:
        content = compile_only(arguments.compile_for, sized, images)
        cli.save_json(arguments.json, {"command": _command(argv), **content})
        return cli.EXIT_OK
    todo = [(each, devices) for each in sized for devices in arguments.devices]
    for each, devices in todo:  # Refuse what cannot be measured before anything is measured.
        steps_per_epoch(each, len(images.train))
        if devices < 1 or each.batch_size % devices:
            raise InputError(f"--batch-size {each.batch_size} does not divide over {devices} devices")

    started: dict[str, list[float]] = {"cold_seconds": [], "warm_seconds": []}
    if not arguments.skip_first_step:
        # Before this process takes the device: some devices serve only one process.
        for _ in range(FIRST_STEPS):
            with tempfile.TemporaryDirectory() as caches:
                for temperature in started.values():
                    temperature.append(first_step_seconds(sized[0], Path(caches)))
    here, notes = machine(), distortions(load, os.environ)
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    print(f"{here['device']} ({here['processor']}, {here['cores']} cores), Python {here['python']}, {versions}")
    for note in notes:
        print(f"note: {note}")
    if not arguments.skip_first_step:
        first, again = (np.median(seconds) for seconds in started.values())
        print(f"from the start of jaxvae.train to its first step done: {again:.1f} s; {first:.1f} s the first time")
    model = configs.describe(config, without=("batch_size",))
    print(f"{model}, on {images.name}:")
    results: list[dict[str, Any]] = []
    for devices in arguments.devices:
        parallel.select_devices(devices)
    for each, devices in todo:
        results.append(measure(each, images, devices, arguments.rounds))
        header, line = table(results[-1:]).splitlines()
        print(line if results[1:] else f"{header}\n{line}", flush=True)
    print(conclusion(results))
    for missed in results[-1]["flops_not_counted"]:
        print(f"note: FLOP: {missed}")
    content = {"machine": here, "command": _command(argv), "model": model, "notes": notes}
    cli.save_json(arguments.json, {**content, "first_step": started, "results": results})
    return cli.EXIT_OK


def _command(argv: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "jaxvae.benchmark", *argv])


if __name__ == "__main__":
    sys.exit(cli.run(main))
