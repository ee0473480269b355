"""The pieces of the campaign: each measures one thing and writes it as JSON. `run.py` starts them."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent
sys.path.insert(0, str(EXPERIMENTS / "speed"))

# What is trained where any model serves: a preset with flags of `jaxvae.train`.
MODELS: Mapping[str, Sequence[str]] = {
    "notes-ae": ("--preset", "notes-ae", "--batch-size", "32"),
    "notes-vae": ("--preset", "notes-vae", "--batch-size", "32"),
    "vae": ("--preset", "vae", "--batch-size", "128"),
    "iwae": ("--preset", "iwae", "--batch-size", "20"),
    "conv": ("--preset", "vae", "--architecture", "conv", "--batch-size", "128"),
    "resnet": ("--preset", "vae", "--architecture", "resnet", "--batch-size", "128"),
}
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # Several processes on one GPU.
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"

# Ways to compile the steps. "options" replace those of `jaxvae.train.programs.compiler_options`; "block": steps without
# asking the host; "turn": steps in a turn of that loop; "flat": Adam on one vector of all parameters.
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


def python(*arguments: str, flags: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with XLA's `flags` and environment `variables`; what it printed. Raises `CalledProcessError`."""
    environment = {**os.environ, **SHARED, "XLA_FLAGS": flags, **variables}
    done = subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", flush=True)
    done.check_returncode()
    return done


def data_flags(args: argparse.Namespace) -> list[str]:
    """The flags that name the images."""
    return ["--dataset", "mnist", "--data-dir", str(args.data_dir)]


def trainer_of(args: argparse.Namespace, given: Sequence[str], block: int | None = None) -> Any:
    """The trainer that ``python -m jaxvae.train`` with the flags `given` would use."""
    from jaxvae import benchmark, data
    from jaxvae.train.trainer import Trainer

    _, [config], _ = benchmark.parse(given)
    return Trainer(config, data.prepared(data.load("mnist", args.data_dir), config), block=block)


def timed(trainer: Any, state: Any, count: int) -> tuple[Any, float]:
    """Take `count` steps in one call; the state and the seconds. Past an epoch's end, its last batch is repeated."""
    import jax

    start = time.perf_counter()
    state, values = trainer.run_steps(state, 0, count)
    jax.block_until_ready((state, values))
    return state, time.perf_counter() - start


def machine(args: argparse.Namespace) -> Any:
    """The machine, and what it can do: products and copies."""
    import jax
    import jax.numpy as jnp

    from jaxvae import benchmark

    products = {}
    for dtype, precision in (("float32", "highest"), ("float32", "default"), ("bfloat16", "default")):
        timer = benchmark.matmul_timer(dtype, precision)  # type: ignore[arg-type]
        products[f"{dtype}-{precision}"] = median(timer() for _ in range(2 if args.small else 5))
    size, turns = (2**20, 4) if args.small else (2**28, 100)

    @jax.jit
    def copies(x: Any) -> Any:
        return jax.lax.fori_loop(0, turns, lambda _, x: x + 1, x)

    x = jax.block_until_ready(copies(jnp.zeros(size, jnp.float32)))
    start = time.perf_counter()
    jax.block_until_ready(copies(x))
    seconds = (time.perf_counter() - start) / turns
    return {**benchmark.machine(), "flops_per_second": products, "bytes_per_second": 2 * 4 * size / seconds}


def losses(args: argparse.Namespace) -> Any:
    """The loss at every one of the first steps of every model."""
    import numpy as np

    from jaxvae.train.computer import advance

    found = {}
    for name, given in MODELS.items():
        trainer = trainer_of(args, given)
        _, calls = advance(trainer, trainer.start(None), 0, 2 if args.small else 64)
        found[name] = [float(value) for taken, terms in calls for value in np.asarray(terms["loss"])[:taken]]
    return found


def same(args: argparse.Namespace) -> Any:
    """The first losses here, and on the CPU of this machine."""

    def on(platform: str) -> Any:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "losses.json"
            own = {"JAX_PLATFORMS": platform} if platform else {}
            python(__file__, "losses", "--data-dir", str(args.data_dir), "--out", str(out), *small(args), **own)
            return json.loads(out.read_text())

    with ThreadPoolExecutor() as pool:
        here, cpu = pool.map(on, ("", "cpu"))
    apart = {name: [abs(a - b) / abs(b) for a, b in zip(here[name], cpu[name], strict=True)] for name in here}
    return {
        name: {"first": apart[name][0], "most": max(apart[name]), "steps": len(apart[name]), "losses": here[name]}
        for name in here
    }


def small(args: argparse.Namespace) -> list[str]:
    """The flag for a worker."""
    return ["--small"] * args.small


def resume(args: argparse.Namespace) -> Any:
    """Whether a run, the same run again, and one that was killed and resumed write the same bytes."""

    def metrics(run_dir: Path) -> str:
        path = run_dir / "metrics.jsonl"
        return path.read_text() if path.exists() else ""

    def chain(case: tuple[str, str]) -> Any:
        name, flags = case
        with tempfile.TemporaryDirectory() as directory:
            runs = [Path(directory) / run for run in ("whole", "again", "killed")]
            command = ["-m", "jaxvae.train", *MODELS[name], *data_flags(args), "--epochs", "3", "--image-every", "0"]
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
                "model": name,
                "flags": flags,
                "lines": whole.count("\n"),
                "lines_before_the_kill": lines,
                "again_the_same": again == whole,
                "resumed_the_same": killed == whole,
                "last_line": [text.splitlines()[-1] for text in (whole, again, killed)],
                "seconds_of_a_run": seconds,
            }

    cases = [(name, flags) for name in ("notes-vae", "conv") for flags in ("", DETERMINISTIC)]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(chain, cases[:1] if args.small else cases))


def benchmark_of(*given: str) -> Callable[[argparse.Namespace], Any]:
    """A piece: what ``python -m jaxvae.benchmark`` finds with these flags."""

    def piece(args: argparse.Namespace) -> Any:
        from jaxvae import benchmark

        own = ["--batch-size", "32"] if args.small else []
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "benchmark.json"
            own += ["--rounds", "1" if args.small else "3", "--skip-first-step", "--json", str(out)]
            benchmark.main([*given, *data_flags(args), *own])
            return json.loads(out.read_text())

    return piece


def kernels(args: argparse.Namespace) -> Any:
    """The kernels of a step of every model, by the profiler: how many, and how long they take."""
    import jax

    found = {}
    for name, given in MODELS.items():
        trainer = trainer_of(args, given)
        count = 8 if args.small else 64
        state, _ = timed(trainer, trainer.start(None), count)
        state, seconds = timed(trainer, state, count)
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                timed(trainer, state, count)
            [trace] = Path(directory).rglob("*.xplane.pb")
            profile = jax.profiler.ProfileData.from_file(str(trace))
        totals: dict[str, list[float]] = {}
        for plane in profile.planes:
            if "GPU" in plane.name:
                for line in plane.lines:
                    if line.name.startswith("Stream"):
                        for event in line.events:
                            totals.setdefault(event.name, []).append(event.duration_ns)
        found[name] = {
            "steps": count,
            "batch_size": trainer.config.batch_size,
            "seconds_per_step_unprofiled": seconds / count,
            "kernels_per_step": sum(map(len, totals.values())) / count,
            "kernel_seconds_per_step": sum(map(sum, totals.values())) / count / 1e9,
            "kernels": sorted(
                ([what, len(each) / count, sum(each) / count / 1e9] for what, each in totals.items()),
                key=itemgetter(2),
                reverse=True,
            )[:80],
        }
        if name in ("notes-vae", "vae"):
            found[name]["hlo"] = trainer._program._compiled.as_text()
    return found


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
        programs.compiler_options = lambda: chosen["options"] if jax.default_backend() == "gpu" else {}
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
        command = [sys.executable, __file__, "way", "--data-dir", str(args.data_dir), "--out", os.devnull]
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


def sweep(args: argparse.Namespace) -> Any:
    """Steps per second of all members together, for several numbers of members of the notes' VAE."""
    from jaxvae.sweep.trainer import MembersTrainer

    found = []
    for members in (1, 2) if args.small else (1, 4, 16, 64, 256):
        single = trainer_of(args, MODELS["notes-vae"])
        numbers = {name: [value] * members for name, value in single.config.traced().items()}
        trainer = MembersTrainer(single.config, single.images, range(members), numbers)
        count = trainer.usable(2 if args.small else 512)
        state, _ = timed(trainer, trainer.start(None), count)
        speeds = []
        for _ in range(3):
            state, seconds = timed(trainer, state, count)
            speeds.append(members * count / seconds)
        found.append({"members": members, "model_steps_per_second": speeds})
        print(found[-1], flush=True)
    return found


def comparison(args: argparse.Namespace) -> Any:
    """Steps per second of all contenders of experiments/speed, in turn."""
    import compare
    from contenders import CONTENDERS
    from turns import Process

    os.environ.update(SHARED)
    sizes = (32,) if args.small else (32, 4096)
    cases = [(size, name) for size in sizes for name in CONTENDERS]
    processes = {
        (size, name): Process(compare.command(name, "notes-vae", size, args.data_dir), None) for size, name in cases
    }

    def ready(case: tuple[int, str]) -> bool:
        try:
            processes[case].epoch()
        except ValueError:  # It ended without an answer.
            return False
        return True

    with ThreadPoolExecutor(len(cases)) as pool:  # They compile side by side.
        cases = [case for case, well in zip(cases, pool.map(ready, cases), strict=True) if well]
    found: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for _ in range(1 if args.small else 3):
        for size, name in cases:
            found[size, name].append(compare.IMAGES // size / processes[size, name].epoch())
    results = [
        {"batch_size": size, "name": name, "steps_per_second": found[size, name], **processes[size, name].ask("test")}
        for size, name in cases
    ]
    for process in processes.values():
        process.end()
    return results


def nats(args: argparse.Namespace) -> Any:
    """Nats in seconds, as experiments/speed/nats.py, with few seeds."""
    with tempfile.TemporaryDirectory() as directory:
        out, plot = Path(directory) / "nats.json", Path(directory) / "nats.png"
        seeds = "1" if args.small else "3"
        given = ["--data-dir", str(args.data_dir), "--seeds", seeds, "--out", str(out), "--plot", str(plot)]
        done = python(str(EXPERIMENTS / "speed" / "nats.py"), *given)
        return {**json.loads(out.read_text()), "table": done.stdout}


SIZES = ("--batch-size", "32", "512", "4096", "32768")
PIECES: Mapping[str, Callable[[argparse.Namespace], Any]] = {
    "machine": machine,
    "same": same,
    "resume": resume,
    "ways": ways,
    "kernels": kernels,
    "dense": benchmark_of("--preset", "notes-vae", *SIZES),
    "dense-bfloat16": benchmark_of("--preset", "notes-vae", "--compute-dtype", "bfloat16", *SIZES),
    "dense-tf32": benchmark_of("--preset", "notes-vae", "--matmul-precision", "default", *SIZES),
    "conv": benchmark_of(*MODELS["conv"][:-2], *SIZES[:-2]),
    "resnet": benchmark_of(*MODELS["resnet"][:-2], *SIZES[:-2]),
    "sweep": sweep,
    "comparison": comparison,
    "nats": nats,
}
WORKERS: Mapping[str, Callable[[argparse.Namespace], Any]] = {"losses": losses, "way": way}


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("piece", choices=[*PIECES, *WORKERS])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    found = {**PIECES, **WORKERS}[args.piece](args)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
