"""What lower precision of the products does to the final loss, emulated on a CPU.

    python experiments/accelerator/precision.py --data-dir DIR [--out FILE] [--seeds 3]    # DIR: MNIST's IDX files

On a GPU or TPU, `--matmul-precision default` rounds what a product multiplies, and sums in float32. A CPU does not, so
here the lowering of the products does it: to 10 bits behind the point (TF32, a GPU), or to 7 (bfloat16, a TPU), to the
nearest. `--compute-dtype bfloat16` needs no emulation: a CPU rounds as it says. Every other operation is float32.
A forecast, not a measurement: accelerators sum in another order, and may round in another way.

Each run is a process of its own; those that FILE (default: precision.json beside this) holds are not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir

HERE = Path(__file__).parent
MODELS = {
    "notes-vae": "--preset notes-vae --epochs 6",
    "vae": "--preset vae --inputs dynamic --epochs 6",
    "conv": "--preset vae --inputs dynamic --architecture conv --hidden 16 32 --epochs 3",
}
# What is trained, and to how many bits behind the point products round.
WAYS: dict[str, tuple[str, int | None]] = {
    "float32": ("", None),
    "TF32": ("--matmul-precision default", 10),
    "bfloat16 products": ("--matmul-precision default", 7),
    "bfloat16 layers": ("--compute-dtype bfloat16", None),
}


def round_products(bits: int) -> None:
    """Make all products of default precision round both arguments to `bits` bits behind the point, from now on."""
    from jax._src.interpreters import mlir as internal

    product = lax.dot_general_p
    entry = internal._platform_specific_lowerings["cpu"].get(product) or internal._lowerings[product]
    plain: Any = getattr(entry, "rule", entry)

    def rounded(a: jax.Array, b: jax.Array, **given: Any) -> jax.Array:
        arguments = (lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits) for x in (a, b))
        result: jax.Array = product.bind(*arguments, **given)
        return result

    def lower(ctx: Any, *arguments: Any, precision: Any, **given: Any) -> Any:
        highest = (lax.Precision.HIGHEST,) * 2
        if precision == highest or any(a.dtype != "float32" for a in ctx.avals_in):
            return plain(ctx, *arguments, precision=precision, **given)
        traced = mlir.lower_fun(lambda a, b: rounded(a, b, precision=highest, **given), multiple_results=False)
        return traced(ctx, *arguments)

    mlir.register_lowering(product, lower, platform="cpu")


def train(way: str, flags: list[str]) -> int:
    """Train in this process; the exit code."""
    from jaxvae import cli
    from jaxvae.train import __main__ as command

    more, bits = WAYS[way]
    if bits is not None:
        round_products(bits)
    return cli.run(lambda: command.main([*flags, *more.split(), "--devices", "1"]))


def measure(model: str, way: str, seed: int, data_dir: Path) -> dict[str, Any]:
    """The test loss of a run, and its test metrics."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        flags = [*MODELS[model].split(), "--dataset", "mnist", "--data-dir", str(data_dir), "--seed", str(seed)]
        flags += ["--image-every", "0", "--checkpoint-every", "0", "--run-dir", str(run)]
        command = [sys.executable, __file__, "--train", way, "--", *flags]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "test"][-1]
    return {"model": model, "way": way, "seed": seed, "test": last}


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "precision.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", choices=WAYS, help="train only: the flags follow --")
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    if args.train:
        return train(args.train, args.flags)
    if args.data_dir is None:
        parser.error("--data-dir is needed")
    runs: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(run["model"], run["way"], run["seed"]) for run in runs}
    for seed in range(args.seeds):
        for model in MODELS:
            for way in WAYS:
                if (model, way, seed) in done:
                    continue
                runs.append(measure(model, way, seed, args.data_dir))
                args.out.write_text("".join(["[\n", ",\n".join(map(json.dumps, runs)), "\n]\n"]))
    print(table(runs))
    return 0


def table(runs: list[dict[str, Any]]) -> str:
    """The mean test loss of each way, and its difference from float32: the mean over seeds, and its spread."""
    lines = ["| model | way | test loss | more than float32 (+- between seeds) |", "| --- | --- | --- | --- |"]
    for model in MODELS:
        found = {(run["way"], run["seed"]): run["test"]["loss"] for run in runs if run["model"] == model}
        for way in WAYS:
            seeds = [seed for name, seed in found if name == way]
            losses = [found[way, seed] for seed in seeds]
            more = [found[way, seed] - found["float32", seed] for seed in seeds]
            spread = f" +- {stdev(more):.2g}" if len(more) > 1 and way != "float32" else ""
            difference = "" if way == "float32" else f"{mean(more):+.2g}{spread}"
            lines.append(f"| `{model}` | {way} | {mean(losses):.5g} | {difference} |")
        between = stdev([found["float32", seed] for seed in seeds]) if len(seeds) > 1 else float("nan")
        lines.append(f"| | float32 between seeds | | +- {between:.2g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
