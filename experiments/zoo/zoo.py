"""Every kind of model on the same images for the same number of epochs: one table, and eight samples of each.

    python experiments/zoo/zoo.py --data-dir DIR --epochs 3 --runs runs/zoo    # DIR: MNIST's IDX files

Trains, evaluates, draws and measures by the commands of jaxvae, on MNIST with pixels drawn as 0 or 1 anew each time an
image is seen. What has been evaluated or measured is skipped, so a stopped run goes on. The speeds come last, one model
at a time: nothing else should run then. Writes zoo.json and README.md's table beside this file, and
docs/images/zoo.png. Nothing is chosen by the test images.
"""

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import jaxvae
from jaxvae import machine
from jaxvae.generate import generate
from jaxvae.run import plots

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "images" / "zoo.png"
DRAWN = 8
# They have no prior: their samples are from a mixture fitted to their codes.
AUTOENCODERS = ("notes-ae", "autoencoder", "rae")

# The flags of each model besides those that all have.
MODELS: Mapping[str, str] = {
    "notes-ae": "--preset notes-ae",
    "notes-vae": "--preset notes-vae",
    "autoencoder": "--preset vae --objective mse",
    "rae": "--preset vae --objective rae",
    "vae": "--preset vae",
    "vae, label": "--preset vae --condition label",
    "iwae": "--preset vae --objective iwae --samples 5",
    "iwae, its preset": "--preset iwae --schedule constant",
    "beta-tc": "--preset vae --objective beta-tc --beta 4",
    "factor": "--preset vae --objective factor --beta 11",
    "capacity": "--preset vae --objective capacity --capacity 25",
    "mixture prior": "--preset vae --prior mixture",
    "VampPrior": "--preset vae --prior vamp",
    "flow prior": "--preset vae --prior realnvp",
    "gated": "--preset vae --architecture gated --hidden 300 300",
    "vamp, its preset": "--preset vamp",
    "two-layer": "--preset vae --architecture two-layer --hidden 200 100",
    "conv": "--preset vae --architecture conv --hidden 32 64",
    "resnet": "--preset vae --architecture resnet --hidden 32 64 --blocks 1",
    "ladder": "--preset ladder",
    "vq-vae": "--preset vq-vae",
    "fsq": "--preset fsq",
}
SHARED = "--dataset mnist --inputs dynamic --validation 0 --batch-size 128 --image-every 0 --checkpoint-every 0"
MARK = "<!-- the table: made by zoo.py -->"


def run(*command: str) -> None:
    """Run a command of jaxvae. Raises `CalledProcessError`."""
    subprocess.run([sys.executable, "-m", *command], check=True)


def evaluated(name: str, runs: Path, data_dir: str, epochs: int) -> dict[str, Any]:
    """Train a model and evaluate it, if that was not done: what `jaxvae.evaluate --json` wrote."""
    run_dir = runs / name.replace(" ", "-").replace(",", "")
    result = run_dir / "zoo.json"
    if not result.exists():
        if (run_dir / "config.json").exists():
            run("jaxvae.train", "--resume", "--run-dir", str(run_dir))
        else:
            flags = shlex.split(f"{MODELS[name]} {SHARED}")
            run("jaxvae.train", *flags, "--data-dir", data_dir, "--epochs", str(epochs), "--run-dir", str(run_dir))
        quality = [] if name in AUTOENCODERS else ["--metric", "fid"]
        run("jaxvae.evaluate", str(run_dir), *quality, "--json", str(result))
    return {**json.loads(result.read_text()), "run_dir": str(run_dir)}


def timed(name: str, run_dir: Path, data_dir: str) -> dict[str, Any]:
    """What `jaxvae.benchmark --json` wrote of a model; measured, if that was not done."""
    result = run_dir / "speed.json"
    if not result.exists():
        flags = shlex.split(f"{MODELS[name]} {SHARED}")
        run("jaxvae.benchmark", *flags, "--data-dir", data_dir, "--skip-first-step", "--json", str(result))
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def summary(name: str, result: Mapping[str, Any], speed: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of a model."""
    (pace,) = speed["results"]
    run_dir = Path(result["run_dir"])
    loaded = jaxvae.load(run_dir)
    leaves = [leaf.size for leaf in _leaves(loaded.variables["params"])]
    bound = next((key for key in ("elbo", "iwae_bound") if key in result), None)
    fid = next((key for key in result if key.startswith("fid[") and key.endswith("]")), None)
    return {
        "model": name,
        "flags": MODELS[name],
        "parameters": int(sum(leaves)),
        "bound": bound,
        "nats": None if bound is None else -result[bound],
        "psnr": result["psnr"],
        "fid": None if fid is None else result[fid],
        "features": fid,
        "steps_per_second": pace["steps_per_second"],
        "peak_fraction": pace["peak_fraction"],
    }


def _leaves(tree: Any) -> list[NDArray[Any]]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [np.asarray(tree)]


def drawn(name: str, run_dir: Path) -> NDArray[np.float32]:
    """Eight samples."""
    if name in AUTOENCODERS:
        return generate(run_dir, DRAWN, fit_mixture=10)
    if name == "vae, label":
        return generate(run_dir)[: 8 * DRAWN : 8]  # One of each of the first classes.
    return generate(run_dir, DRAWN)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def shown(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    heads = ("model", "flags", "parameters", "-bound, nats", "PSNR, dB", "FID", "steps/s", "of the peak")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [row["model"], f"`{row['flags']}`", f"{row['parameters']:,}", shown(row["nats"], 1)]
        cells += [shown(row["psnr"], 2), shown(row["fid"], 1)]
        cells += [shown(row["steps_per_second"], 1), f"{row['peak_fraction']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not trained, then write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    args = parser.parse_args()
    results = {name: evaluated(name, args.runs, args.data_dir, args.epochs) for name in args.models}
    pictures = [drawn(name, Path(result["run_dir"])) for name, result in results.items()]
    speeds = {name: timed(name, Path(result["run_dir"]), args.data_dir) for name, result in results.items()}
    rows = [summary(name, results[name], speeds[name]) for name in args.models]
    facts = {
        "machine": f"{machine.cores()} cores, {machine.processor().get('model name', platform.machine())}",
        "python": platform.python_version(),
        "jax": version("jax"),
        "date": datetime.date.today().isoformat(),
        "epochs": args.epochs,
        "rows": rows,
    }
    (HERE / "zoo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    plots.save_png(PICTURE, plots.image_grid(np.concatenate(pictures), columns=DRAWN), scale=2)
    page = HERE / "README.md"
    before = page.read_text(encoding="utf-8").split(MARK)[0]
    features = next((row["features"] for row in rows if row["features"]), "fid")
    said = f"{args.epochs} epochs, {facts['machine']}, jax {facts['jax']}, {facts['date']}. FID: `{features}`."
    page.write_text(f"{before}{MARK}\n\n{table(rows)}\n\n{said}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
