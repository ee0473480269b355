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
PALLAS = "pallas"
TOGETHER = 10  # Processes side by side.
DETERMINISTIC, TRIED = (f"--xla_gpu_exclude_nondeterministic_ops={value}" for value in ("true", "false"))
# What is run twice, and killed and resumed: a model, more flags of `jaxvae.train`, XLA's flags, and whether what one
# process compiled is kept for the next. Where it is not, each chooses its algorithms anew.
RESUMED: Sequence[tuple[str, Sequence[str], str, bool]] = [
    *[(name, (), "", True) for name in ("notes-vae", "conv", "resnet")],
    ("notes-vae", ("--step-kernels", "pallas"), "", False),
    *[(name, (), flags, False) for name in ("notes-vae", "conv") for flags in (TRIED, DETERMINISTIC)],
]


def losses(args: argparse.Namespace) -> Any:
    """A worker of `same`: the loss at every one of a model's first steps; None: it cannot be trained in this way."""
    import numpy as np

    from jaxvae import benchmark
    from jaxvae.train.computer import advance
    from jaxvae.train.fused import refusal

    given, chosen = MODELS[args.case], WAYS[args.way] if args.way else {}
    if args.way == PALLAS and refusal(benchmark.parse(given)[1][0], (28, 28, 1)):
        return None
    compile_as(chosen)
    trainer = trainer_of(args, [*given, *chosen.get("flags", ())])
    _, calls = advance(trainer, trainer.start(None), 0, 2 if args.small else 70)
    return [float(value) for taken, terms in calls for value in np.asarray(terms["loss"])[:taken]]


def same(args: argparse.Namespace) -> Any:
    """The first losses here, by plain steps and by fused ones, against those on the CPU of this machine."""

    def of(case: tuple[str, str, str]) -> Any:
        platform, way, model = case
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "losses.json"
            own = {"JAX_PLATFORMS": platform} if platform else {}
            given = ["--case", model, "--data-dir", str(args.data_dir), "--out", str(out), *small(args)]
            python(str(PIECES), "losses", *given, *(["--way", way] if way else []), **own)
            return json.loads(out.read_text())

    ways = ("",) if args.small else ("", PALLAS)  # The last needs a GPU.
    found = {}
    with ThreadPoolExecutor(TOGETHER) as pool:
        cpu = {model: pool.submit(of, ("cpu", "", model)) for model in MODELS}
        here = {(way, model): pool.submit(of, ("", way, model)) for way in ways for model in MODELS}
        for (way, model), future in here.items():
            losses, wanted = future.result(), cpu[model].result()
            if losses is None:
                continue
            apart = [abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True)]
            key = f"{model}, {way}" if way else model
            found[key] = {"first": apart[0], "most": max(apart), "steps": len(apart), "losses": losses}
            print(key, apart[0], max(apart), flush=True)
    return found


def resume(args: argparse.Namespace) -> Any:
    """Whether a run, the same run again, and one that was killed and resumed write the same bytes."""

    def metrics(run_dir: Path) -> str:
        path = run_dir / "metrics.jsonl"
        return path.read_text() if path.exists() else ""

    def chain(case: tuple[str, Sequence[str], str, bool]) -> Any:
        name, given, flags, kept = case
        with tempfile.TemporaryDirectory() as directory:
            runs = [Path(directory) / run for run in ("whole", "again", "killed")]
            command = ["-m", "jaxvae.train", *MODELS[name], *given, *data_flags(args), "--epochs", "3"]
            command += ["--image-every", "0"]
            command += ["--log-every", "1", *(("--batch-size", "100") if args.small else ())]
            own = {"XDG_CACHE_HOME": directory, "JAX_ENABLE_COMPILATION_CACHE": str(kept).lower()}
            own["JAX_COMPILATION_CACHE_DIR"] = ""  # jaxvae's own cache, not the campaign's.
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
            result = {
                "model": " ".join([name, *given]),
                "flags": flags,
                "programs_kept": kept,
                "lines": whole.count("\n"),
                "lines_before_the_kill": lines,
                "again_the_same": again == whole,
                "resumed_the_same": killed == whole,
                "last_line": [text.splitlines()[-1] for text in (whole, again, killed)],
                "seconds_of_a_run": seconds,
            }
            print(json.dumps(result), flush=True)
            return result

    with ThreadPoolExecutor(len(RESUMED)) as pool:
        return list(pool.map(chain, RESUMED[:1] if args.small else RESUMED))
