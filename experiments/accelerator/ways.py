"""Ways to compile the steps, timed in turn."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers import MODELS, SHARED, small, timed, trainer_of

PIECES = Path(__file__).parent / "pieces.py"

# "options" replace those of `jaxvae.train.programs.compiler_options`; "block": steps without asking the host; "turn":
# steps in a turn of that loop; "flat": Adam on one vector of all parameters.
CONCURRENT = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
EXACT = {"xla_gpu_exclude_nondeterministic_ops": True}
LOOPS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "one kernel after another": {"options": {}},
    "no command buffers": {"options": {"xla_gpu_enable_command_buffer": ""}},
    "host asked at every step": {"block": 1},
    "host asked every 512 steps": {"block": 512},
    "loop in a command buffer": {"options": {**CONCURRENT, **LOOPS}},
    "loop of any length in a command buffer": {"options": {**CONCURRENT, **LOOPS}, "block": 1},
    "8 steps a turn": {"turn": 8},
    "Adam on one vector": {"flat": True},
    "deterministic": {"options": {**CONCURRENT, **EXACT}},
    "deterministic, one kernel after another": {"options": EXACT},
    "TF32": {"flags": ["--matmul-precision", "default"]},
}


def way(args: argparse.Namespace) -> Any:
    """A worker of `ways`: steps per second whenever a line comes on stdin."""
    import jax
    import optax

    from jaxvae import optimizer
    from jaxvae.train import programs
    from jaxvae.train import trainer as trainers

    chosen = WAYS[args.way]
    loop, build = jax.lax.fori_loop, optimizer.build_optimizer
    if "options" in chosen:
        programs.compiler_options = lambda backend: chosen["options"] if backend == "gpu" else {}
    if "flat" in chosen:
        for module in (programs, trainers):
            vars(module)["build_optimizer"] = lambda *given: optax.flatten(build(*given))
    if "turn" in chosen:
        jax.lax.fori_loop = lambda lower, upper, *rest: loop(
            lower, upper, *rest, unroll=chosen["turn"] if isinstance(upper, int) else None
        )
    trainer = trainer_of(args, [*MODELS["notes-vae"], *chosen.get("flags", ())], chosen.get("block"))
    count = 64 if args.small else 1875
    state = trainer.start(None)
    seconds = trainer.compile(state)
    state, _ = timed(trainer, state, count)
    print(seconds, flush=True)
    for _ in sys.stdin:
        turns = 1 if args.small else 2
        seconds = 0.0
        for _ in range(turns):
            state, taken = timed(trainer, state, count)
            seconds += taken
        print(turns * count / seconds, flush=True)


def ways(args: argparse.Namespace) -> Any:
    """Steps per second of the notes' VAE at batch size 32, compiled in several ways that take turns."""
    names = list(WAYS)[:2] if args.small else list(WAYS)
    workers = {}
    for name in names:
        command = [sys.executable, str(PIECES), "way", "--data-dir", str(args.data_dir), "--out", os.devnull]
        workers[name] = subprocess.Popen(
            [*command, "--way", name, *small(args)],
            env={**os.environ, **SHARED},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    found: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        assert worker.stdout is not None
        said = worker.stdout.readline()
        found[name] = {"compile_seconds_beside_the_others": float(said), "steps_per_second": []} if said else {}
    for _ in range(1 if args.small else 3):
        for name, worker in workers.items():
            if found[name]:
                assert worker.stdin is not None and worker.stdout is not None
                print("go", file=worker.stdin, flush=True)
                found[name]["steps_per_second"].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.kill()
        worker.wait()
    return {name: {**WAYS[name], **result} for name, result in found.items()}
