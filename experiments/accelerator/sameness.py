"""Whether an accelerator computes what a CPU does, and whether it computes the same bits twice."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainers import MODELS, SHARED, data_flags, python, small, trainer_of
from ways import WAYS, compile_as

PIECES = Path(__file__).parent / "pieces.py"
LOOP, PALLAS = "loop in a command buffer", "pallas"
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"
# What is run twice, and killed and resumed: a model, more flags of `jaxvae.train`, and XLA's flags.
RESUMED: Sequence[tuple[str, Sequence[str], str]] = [
    *[(name, (), flags) for name in ("notes-vae", "conv") for flags in ("", DETERMINISTIC)],
    ("notes-vae", ("--step-kernels", "pallas"), ""),
]


def losses(args: argparse.Namespace) -> Any:
    """The loss at every one of the first steps of every model."""
    import numpy as np

    from jaxvae import benchmark
    from jaxvae.train.computer import advance
    from jaxvae.train.fused import refusal

    chosen = WAYS[args.way] if args.way else {}
    compile_as(chosen)
    found = {}
    for name, given in MODELS.items():
        if args.way == PALLAS and refusal(benchmark.parse(given)[1][0], (28, 28, 1)):
            continue
        trainer = trainer_of(args, [*given, *chosen.get("flags", ())])
        _, calls = advance(trainer, trainer.start(None), 0, 2 if args.small else 70)
        found[name] = [float(value) for taken, terms in calls for value in np.asarray(terms["loss"])[:taken]]
    return found


def same(args: argparse.Namespace) -> Any:
    """The first losses here, computed in several ways, against those on the CPU of this machine."""

    def of(case: tuple[str, str]) -> Any:
        platform, way = case
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "losses.json"
            own = {"JAX_PLATFORMS": platform} if platform else {}
            given = [
                "--data-dir",
                str(args.data_dir),
                "--out",
                str(out),
                *small(args),
                *(["--way", way] if way else []),
            ]
            python(str(PIECES), "losses", *given, **own)
            return json.loads(out.read_text())

    pallas = [] if args.small else [("", PALLAS)]  # These need a GPU.
    with ThreadPoolExecutor() as pool:
        cpu, *here = pool.map(of, (("cpu", ""), ("", ""), ("", LOOP), *pallas))
    found = {}
    for way, losses in zip(("", LOOP, PALLAS), here, strict=False):
        for name in losses:
            apart = [abs(a - b) / abs(b) for a, b in zip(losses[name], cpu[name], strict=True)]
            key = f"{name}, {way}" if way else name
            found[key] = {"first": apart[0], "most": max(apart), "steps": len(apart), "losses": losses[name]}
    return found


def resume(args: argparse.Namespace) -> Any:
    """Whether a run, the same run again, and one that was killed and resumed write the same bytes."""

    def metrics(run_dir: Path) -> str:
        path = run_dir / "metrics.jsonl"
        return path.read_text() if path.exists() else ""

    def chain(case: tuple[str, Sequence[str], str]) -> Any:
        name, given, flags = case
        with tempfile.TemporaryDirectory() as directory:
            runs = [Path(directory) / run for run in ("whole", "again", "killed")]
            command = ["-m", "jaxvae.train", *MODELS[name], *given, *data_flags(args), "--epochs", "3"]
            command += ["--image-every", "0"]
            command += ["--log-every", "1", *(("--batch-size", "100") if args.small else ())]
            # What one process compiled must not be what the next runs: each chooses its algorithms anew.
            own = {"XDG_CACHE_HOME": directory, "JAX_ENABLE_COMPILATION_CACHE": "false"}
            start = time.perf_counter()
            for run in runs[:2]:
                python(*command, "--run-dir", str(run), flags=flags, **own)
            seconds = (time.perf_counter() - start) / 2
            environment = {**os.environ, **SHARED, **own, "XLA_FLAGS": flags}
            words = [sys.executable, *command, "--run-dir", str(runs[2])]
            process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while '"test"' not in metrics(runs[2]) and '"validation"' not in metrics(runs[2]):
                if process.poll() is not None:
                    raise RuntimeError("the run to be killed ended by itself")
                time.sleep(0.002)
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            lines = metrics(runs[2]).count("\n")
            python(*command, "--run-dir", str(runs[2]), "--resume", flags=flags, **own)
            whole, again, killed = map(metrics, runs)
            return {
                "model": " ".join([name, *given]),
                "flags": flags,
                "lines": whole.count("\n"),
                "lines_before_the_kill": lines,
                "again_the_same": again == whole,
                "resumed_the_same": killed == whole,
                "last_line": [text.splitlines()[-1] for text in (whole, again, killed)],
                "seconds_of_a_run": seconds,
            }

    with ThreadPoolExecutor(len(RESUMED)) as pool:
        return list(pool.map(chain, RESUMED[:1] if args.small else RESUMED))
