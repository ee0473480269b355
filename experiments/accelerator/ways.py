"""Ways to compile the steps, timed in turn."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers import MODELS, in_turn, small, timed, trainer_of

from jaxvae.train import programs

PIECES = Path(__file__).parent / "pieces.py"
STEPS = 1875  # An epoch.

# "options" replace those of `jaxvae.train.programs.compiler_options`; "block": steps without asking the host; "turn":
# steps in a turn of that loop; "flat": Adam on one vector of all parameters. XLA tries kernels where EXACT is not among
# the options; a way without options does as `programs.worth_trials` says.
CONCURRENT = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
EXACT = {"xla_gpu_exclude_nondeterministic_ops": True}
RECORDED = {"xla_gpu_enable_command_buffer": programs.RECORDED}
PALLAS = ["--step-kernels", "pallas"]
TF32 = ["--matmul-precision", "default"]
WAYS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "one kernel after another": {"options": RECORDED},
    "no command buffers": {"options": {"xla_gpu_enable_command_buffer": ""}},
    "host asked at every step": {"block": 1},
    "host asked every 512 steps": {"block": 512},
    "loop outside the command buffers": {"options": CONCURRENT},
    "8 steps a turn": {"turn": 8},
    "Adam on one vector": {"flat": True},
    "kernels tried": {"options": {**CONCURRENT, **RECORDED}},
    "deterministic": {"options": {**CONCURRENT, **RECORDED, **EXACT}},
    "deterministic, one kernel after another": {"options": {**RECORDED, **EXACT}},
    "products not split": {"options": {**CONCURRENT, **RECORDED, "xla_gpu_enable_split_k_autotuning": False}},
    "TF32": {"flags": TF32},
    "pallas": {"flags": PALLAS},
    "pallas, loop in a command buffer": {"flags": PALLAS, "options": {**CONCURRENT, **RECORDED}},
    "pallas, TF32": {"flags": [*PALLAS, *TF32]},
    "bfloat16": {"flags": ["--compute-dtype", "bfloat16"]},
}
# Models besides the notes' VAE, and the ways of theirs.
OTHERS: Mapping[str, Sequence[str]] = {
    "vae": ("as it is", "kernels tried", "loop outside the command buffers", "pallas"),
    "conv": ("as it is", "deterministic", "loop outside the command buffers"),
    "resnet": ("as it is", "deterministic", "loop outside the command buffers"),
}


def compile_as(chosen: Mapping[str, Any]) -> None:
    """Let this process compile its steps in a way of `WAYS`."""
    import jax
    import optax

    from jaxvae import optimizer
    from jaxvae.train import trainer as trainers

    loop, build = jax.lax.fori_loop, optimizer.build_optimizer
    if "options" in chosen:
        options = chosen["options"]
        vars(programs)["compiler_options"] = lambda backend, recorded, tried: options if backend == "gpu" else {}
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
    trainer = trainer_of(args, [*MODELS[args.case], *chosen.get("flags", ())], chosen.get("block"))
    count = 1 if args.small else min(STEPS, trainer.steps_per_epoch)
    state, _ = timed(trainer, trainer.start(None), count)
    for _ in sys.stdin:
        state, seconds = timed(trainer, state, count)
        print(json.dumps({"seconds": seconds / count}), flush=True)


def ways(args: argparse.Namespace) -> Any:
    """Steps per second of the notes' VAE at batch size 32, and a few models more, compiled in ways that take turns."""
    start = [sys.executable, str(PIECES), "way", "--data-dir", str(args.data_dir), "--out", os.devnull, *small(args)]
    cases = {name: ("notes-vae", name) for name in WAYS}
    cases |= {f"{model}, {name}": (model, name) for model, names in OTHERS.items() for name in names}
    commands = {case: [*start, "--case", model, "--way", name] for case, (model, name) in cases.items()}
    found = in_turn(dict(list(commands.items())[: 2 if args.small else None]), 1, args.small)
    return {case: {**WAYS[cases[case][1]], "steps_per_second": speeds} for case, speeds in found.items()}
