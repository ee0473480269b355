"""Two processes on one machine: how long a step takes, by what its collectives are.

    python experiments/scaling/processes.py --out processes.json

Of each batch size, in turn within every round: one process alone; two whose gradients the compiler averages (a
collective for every array of parameters); and two that average one vector, as `jaxvae.train` does. Repeated with
XLA's threads off, and with a core for each process. Result: processes.json and the table in NOTES.md beside this file.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCHES = (32, 256, 2048)
ROUNDS = 7
STEPS = 20  # Of a call.


def measure(preset: str, batch_size: int) -> dict[str, Any]:
    """Milliseconds a step in this job, by the way of averaging; and of the collective alone."""
    import jax
    import numpy as np

    from jaxvae import data
    from jaxvae.config import preset as preset_of
    from jaxvae.distributed import devices as parallel
    from jaxvae.keys import purpose_key
    from jaxvae.models.build import build_model
    from jaxvae.objectives.build import build_objective
    from jaxvae.optimizer import build_optimizer
    from jaxvae.train.step import epoch_order, init_state, make_run_steps, make_train_step, on_every_device

    config = dataclasses.replace(preset_of(preset), batch_size=batch_size)
    digits = data.load("digits").train
    images = np.concatenate([digits] * -(-batch_size * STEPS // len(digits)))
    placement = parallel.data_parallel(jax.devices())
    shared = placement.batch if placement.shares > 1 else None
    model = build_model(config, images.shape[1:])
    steps = len(images) // batch_size
    optimizer = build_optimizer(config, steps)
    objective = build_objective(config, steps, len(images))
    ways = {"one program": make_train_step(model, objective, optimizer)}
    if shared is not None:
        ways = {
            "one collective an array": ways["one program"],
            "one collective": on_every_device(make_train_step(model, objective, optimizer, parallel.AXIS), shared),
        }
    everywhere = placement.replicated
    placed = parallel.place(images, everywhere)
    key = jax.jit(lambda: purpose_key(0, "train-noise"), out_shardings=everywhere)()
    order = jax.jit(lambda key: epoch_order(key, 0, len(images)), out_shardings=everywhere)(key)
    make_state = jax.jit(lambda key: init_state(model, optimizer, key), out_shardings=everywhere)
    calls: dict[str, Any] = {}
    for name, step in ways.items():
        run = make_run_steps(step, batch_size, steps, batch_sharding=shared)
        calls[name] = jax.jit(run, static_argnums=4, out_shardings=everywhere)
        jax.block_until_ready(calls[name](make_state(key), placed, order, key, STEPS))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            state = jax.block_until_ready(make_state(key))
            start = time.perf_counter()
            jax.block_until_ready(call(state, placed, order, key, STEPS))
            times[name].append(1000 * (time.perf_counter() - start) / STEPS)
    result: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}
    if shared is not None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(make_state(key).params))
        result["the collective alone"] = 1000 * parallel.collective_seconds(size, placement, ROUNDS)
    return result


def job(processes: int, preset: str, batch_size: int, threads: bool, pinned: bool) -> dict[str, Any]:
    """What process 0 of a job measures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=1" + ("" if threads else " --xla_cpu_multi_thread_eigen=false")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    started = []
    for number in range(processes):
        command = [sys.executable, __file__, "--process", str(number), "--processes", str(processes)]
        command += ["--address", address, "--preset", preset, "--batch-size", str(batch_size)]
        if pinned:
            command += ["--core", str(number)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    measured: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return measured


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="notes-vae")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("processes.json"))
    for name in ("--process", "--processes", "--batch-size", "--core"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.process is not None:
        if arguments.core is not None:
            os.sched_setaffinity(0, {arguments.core})
        from jaxvae.distributed import job as distributed

        if arguments.processes > 1:
            distributed.join(arguments.address, arguments.processes, arguments.process)
        print(json.dumps(measure(arguments.preset, arguments.batch_size)), flush=True)
        return 0
    rows = []
    for batch_size in BATCHES:
        for processes, threads, pinned in ((1, True, False), (2, True, False), (2, False, False), (2, True, True)):
            measured = job(processes, arguments.preset, batch_size, threads, pinned)
            row = {"batch_size": batch_size, "processes": processes, "threads": threads, "pinned": pinned}
            rows.append({**row, "milliseconds": measured})
            print(rows[-1], flush=True)
    content = {"preset": arguments.preset, "cores": os.cpu_count(), "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
