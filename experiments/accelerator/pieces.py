"""The pieces of the campaign: each measures one thing and writes it as JSON. `run.py` starts them."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from forms import FORMS, take_form
from sameness import losses, resume, same
from trainers import MODELS, data_flags, in_turn, python, rounds, small, started, timed, trainer_of
from ways import WAYS, way, ways

EXPERIMENTS = Path(__file__).parents[1]
PIECE = (sys.executable, __file__)


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


def benchmark_of(*given: str) -> Callable[[argparse.Namespace], Any]:
    """A piece: what ``python -m jaxvae.benchmark`` finds with these flags."""

    def piece(args: argparse.Namespace) -> Any:
        from jaxvae import benchmark

        own = ["--batch-size", "32"] if args.small else []
        quick = args.small or args.only_compile
        if args.only_compile:
            benchmark.ROUND_SECONDS = 0.0
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "benchmark.json"
            own += ["--rounds", "1" if quick else "3", "--skip-first-step", "--json", str(out)]
            benchmark.main([*given, *data_flags(args), *own])
            return json.loads(out.read_text())

    return piece


# What is profiled: a model of `MODELS`, a form of convolutions or "", and more flags.
PROFILED: Mapping[str, tuple[str, str, Sequence[str]]] = {
    **{name: (name, "", ()) for name in MODELS},
    "notes-vae, pallas": ("notes-vae", "", ("--step-kernels", "pallas")),
    "conv, batch 512": ("conv", "", ("--batch-size", "512")),
    **{f"{name}, {form}": (name, form, ()) for name in ("conv", "resnet") for form in FORMS},
}


def kernels(args: argparse.Namespace) -> Any:
    """The kernels of a step of every model, by the profiler: how many, and how long they take."""
    own = ["--data-dir", str(args.data_dir), "--out", os.devnull, *small(args)]
    names = list(MODELS)[:1] if args.small else list(PROFILED)
    processes = started({name: [*PIECE, "profile", "--case", name, *own] for name in names})
    found = {}
    for name, process in processes.items():
        found[name] = process.ask("profile")
        print(name, json.dumps({**found[name], "kernels": found[name]["kernels"][:16]}, indent=1), flush=True)
        process.end()
    return found


def profile(args: argparse.Namespace) -> Any:
    """A worker of `kernels`: takes some steps for the first line on stdin, and profiles them for the second."""
    import jax

    model, form, given = PROFILED[args.case]
    if form:
        take_form(form)
    trainer = trainer_of(args, [*MODELS[model], *given])
    count = 8 if args.small else 64
    state = trainer.start(None)
    sys.stdin.readline()
    state, seconds = timed(trainer, state, count)
    print(json.dumps({"seconds": seconds}), flush=True)
    sys.stdin.readline()
    taken = []
    for _ in range(3):
        state, seconds = timed(trainer, state, count)
        taken.append(seconds / count)
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            timed(trainer, state, count)
        [trace] = Path(directory).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    lines = [line for plane in planes if "GPU" in plane.name for line in plane.lines]
    totals: dict[str, list[float]] = {}
    for line in lines:
        if line.name.startswith("Stream"):
            for event in line.events:
                totals.setdefault(event.name, []).append(event.duration_ns)
    each = ([name, len(times) / count, sum(times) / count / 1e9] for name, times in totals.items())
    found = {
        "steps": count,
        "batch_size": trainer.config.batch_size,
        "seconds_per_step_unprofiled": median(taken),
        "kernels_per_step": sum(map(len, totals.values())) / count,
        "kernel_seconds_per_step": sum(map(sum, totals.values())) / count / 1e9,
        "kernels": sorted(each, key=itemgetter(2), reverse=True)[:80],
    }
    print(json.dumps(found), flush=True)


def predicted(args: argparse.Namespace) -> Any:
    """What ``python -m jaxvae.benchmark --compile-for`` counts and predicts for a device like this one, every model."""
    import jax

    from jaxvae.compiled.accelerators import ACCELERATORS

    kind = jax.devices()[0].device_kind
    names = [name for name, each in ACCELERATORS.items() if each.name == kind and each.platform == "cuda"]
    if not names:
        return {"note": f"{kind} is not described"}
    found = {}
    for model, given in MODELS.items():
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "compiled.json"
            python("-m", "jaxvae.benchmark", "--compile-for", names[0], *given, *data_flags(args), "--json", str(out))
            found[model] = json.loads(out.read_text())
    return found


def sweep(args: argparse.Namespace) -> Any:
    """Steps per second of all members together, for several numbers of members of the notes' VAE."""
    from jaxvae.sweep.trainer import MembersTrainer

    found = []
    for members in (1, 2) if args.small else (1, 4, 16, 64, 256):
        single = trainer_of(args, MODELS["notes-vae"])
        numbers = {name: [value] * members for name, value in single.config.traced().items()}
        trainer = MembersTrainer(single.config, single.images, range(members), numbers)
        count = trainer.usable(0, 2 if args.small else 512)
        state, _ = timed(trainer, trainer.start(None), count)
        speeds = []
        for _ in range(0 if args.only_compile else 3):
            state, seconds = timed(trainer, state, count)
            speeds.append(members * count / seconds)
        found.append({"members": members, "model_steps_per_second": speeds})
        print(found[-1], flush=True)
    return found


def comparison(args: argparse.Namespace) -> Any:
    """Steps per second of all contenders of experiments/speed that train dense models, in turn, and their test losses.

    The losses are those after all rounds: four epochs, or two if small.
    """
    import compare
    from contenders import CONTENDERS

    from jaxvae.train.fused import MOST_IMAGES

    results = []
    for size in (32,) if args.small else (32, 4096):
        commands = {name: compare.command(name, "notes-vae", size, args.data_dir) for name in CONTENDERS}
        if not args.small and size <= MOST_IMAGES:
            commands["jaxvae, pallas"] = [*commands["jaxvae"], "--step-kernels", "pallas"]
        for name in () if args.small else ("best PyTorch", "jaxvae", "jaxvae, pallas"):
            if name in commands:
                commands[f"{name}, TF32"] = [*commands[name], "--tf32"]
        processes = started(commands)
        for name, speeds in rounds(processes, compare.IMAGES // size, args.small).items():
            results.append({"batch_size": size, "name": name, "steps_per_second": speeds})
            print(results[-1], flush=True)
        for result in results[-len(processes) :]:
            process = processes[result["name"]]
            result["test_loss"] = process.ask("test")["loss"]
            process.end()
            print(result, flush=True)
    return results


def convolutions(args: argparse.Namespace) -> Any:
    """Steps per second of all contenders of experiments/speed that train convolutional models, in turn.

    jaxvae takes part with XLA's own convolutions as well; see forms.py.
    """
    from convolutions import NAMES, command

    images, size = (256, 64) if args.small else (2**14, 128)
    cases = (("resnet", (64, 64, 3)), ("conv", (64, 64, 3)), ("conv", (28, 28, 1)))
    results = []
    for architecture, shape in cases[: 1 if args.small else None]:
        commands = {name: command(name, architecture, shape, size, images) for name in NAMES}
        ours = command("jaxvae", architecture, shape, size, images)[2:]  # Without Python and the script.
        for form in FORMS:
            commands[f"jaxvae, {form}"] = [sys.executable, str(Path(__file__).parent / "forms.py"), form, *ours]
        for name in () if args.small else ("PyTorch compiled", "jaxvae"):
            commands[f"{name}, TF32"] = [*commands[name], "--tf32"]
        speeds = in_turn(commands, images // size, args.small)
        case = {"architecture": architecture, "shape": shape, "batch_size": size}
        results += [{**case, "name": name, "steps_per_second": each} for name, each in speeds.items()]
        print(*results[-len(speeds) :], sep="\n", flush=True)
    return results


def nats(args: argparse.Namespace) -> Any:
    """Nats in seconds, as experiments/speed/nats.py, with few seeds."""
    with tempfile.TemporaryDirectory() as directory:
        out, plot = Path(directory) / "nats.json", Path(directory) / "nats.png"
        seeds = "1" if args.small else "3"
        given = ["--data-dir", str(args.data_dir), "--seeds", seeds, "--out", str(out), "--plot", str(plot)]
        given += ["--all-cores"]
        done = python(str(EXPERIMENTS / "speed" / "nats.py"), *given)
        return {**json.loads(out.read_text()), "table": done.stdout}


def record(args: argparse.Namespace) -> Any:
    """Nats of the rows of the table of record that had no result yet, trained one at a time. Small: only their names.

    Side by side is no faster. The runs lie beside the piece's JSON, in the folder "record": what was cut off goes on
    when the piece runs again.
    """
    sys.path.insert(0, str(EXPERIMENTS / "record"))
    from rows import ROWS

    done = {path.stem.rsplit("-", 1)[0] for path in (EXPERIMENTS / "record" / "results").glob("*.json")}
    names = [row.name for row in ROWS if not row.waits and row.name not in done]
    if args.small:
        return names
    folder, found = args.out.parent / "record", {}
    for name in names:
        given = ["--runs", str(folder / "runs"), "--results", str(folder / "results"), "--data-dir", str(args.data_dir)]
        python(str(EXPERIMENTS / "record" / "reproduce.py"), name, *given)
        found[name] = [json.loads(path.read_text())["nats"] for path in (folder / "results").glob(f"{name}-[0-9].json")]
        print(name, found[name], flush=True)
    return found


SIZES = ("--batch-size", "32", "512", "4096", "32768")
PIECES: Mapping[str, Callable[[argparse.Namespace], Any]] = {
    "machine": machine,
    "same": same,
    "resume": resume,
    "ways": ways,
    "kernels": kernels,
    "predicted": predicted,
    "dense": benchmark_of("--preset", "notes-vae", *SIZES),
    "dense-bfloat16": benchmark_of("--preset", "notes-vae", "--compute-dtype", "bfloat16", *SIZES),
    "dense-tf32": benchmark_of("--preset", "notes-vae", "--matmul-precision", "default", *SIZES),
    "conv": benchmark_of(*MODELS["conv"][:-2], *SIZES[:-2]),
    "resnet": benchmark_of(*MODELS["resnet"][:-2], *SIZES[:-2]),
    "sweep": sweep,
    "comparison": comparison,
    "convolutions": convolutions,
    "nats": nats,
    "record": record,
}
# What is compiled ahead, side by side.
COMPILED = ("dense", "dense-bfloat16", "dense-tf32", "conv", "resnet", "sweep")
WORKERS: Mapping[str, Callable[[argparse.Namespace], Any]] = {"losses": losses, "profile": profile, "way": way}


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("piece", choices=[*PIECES, *WORKERS])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--case", choices=PROFILED)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only-compile", action="store_true", help="write nothing of use; fill JAX's cache")
    args = parser.parse_args()
    found = {**PIECES, **WORKERS}[args.piece](args)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
