"""Ways to compile the steps, timed in turn."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers import MODELS, in_turn, small, timed, trainer_of

PIECES = Path(__file__).parent / "pieces.py"
STEPS = 1875  # An epoch.

# "options" replace those of `jaxvae.train.programs.compiler_options`; "block": steps without asking the host; "turn":
# steps in a turn of that loop; "flat": Adam on one vector of all parameters.
CONCURRENT = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
EXACT = {"xla_gpu_exclude_nondeterministic_ops": True}
LOOPS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}
PALLAS = ["--step-kernels", "pallas"]
TF32 = ["--matmul-precision", "default"]
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
    "products not split": {"options": {**CONCURRENT, "xla_gpu_enable_split_k_autotuning": False}},
    "TF32": {"flags": TF32},
    "TF32, loop in a command buffer": {"flags": TF32, "options": {**CONCURRENT, **LOOPS}},
    "pallas": {"flags": PALLAS},
    "pallas, loop in a command buffer": {"flags": PALLAS, "options": {**CONCURRENT, **LOOPS}},
    "pallas, TF32": {"flags": [*PALLAS, *TF32]},
    "bfloat16": {"flags": ["--compute-dtype", "bfloat16"]},
}


def compile_as(chosen: Mapping[str, Any]) -> None:
    """Let this process compile its steps in a way of `WAYS`."""
    import jax
    import optax

    from jaxvae import optimizer
    from jaxvae.train import programs
    from jaxvae.train import trainer as trainers

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


def way(args: argparse.Namespace) -> Any:
    """A worker of `ways`: takes steps whenever a line comes on stdin, and says how many seconds they took."""
    chosen = WAYS[args.way]
    compile_as(chosen)
    trainer = trainer_of(args, [*MODELS["notes-vae"], *chosen.get("flags", ())], chosen.get("block"))
    state, _ = timed(trainer, trainer.start(None), STEPS)
    for _ in sys.stdin:
        state, seconds = timed(trainer, state, 1 if args.small else STEPS)
        print(json.dumps({"seconds": seconds}), flush=True)


def ways(args: argparse.Namespace) -> Any:
    """Steps per second of the notes' VAE at batch size 32, compiled in several ways that take turns."""
    start = [sys.executable, str(PIECES), "way", "--data-dir", str(args.data_dir), "--out", os.devnull, *small(args)]
    names = list(WAYS)[:2] if args.small else list(WAYS)
    found = in_turn({name: [*start, "--way", name] for name in names}, 1 if args.small else STEPS, args.small)
    return {name: {**WAYS[name], "steps_per_second": speeds} for name, speeds in found.items()}
