"""Train and evaluate rows of the table of record.

    python experiments/record/reproduce.py [ROW ...] --data-dir DIR     # DIR: files of MNIST; without it, a download

Without names, all rows that can be run, in their order. Each is trained by jaxvae.train, or several seeds together by
jaxvae.sweep, into RUNS/ROW/SEED; then evaluated and sampled from. RESULTS gets ROW-SEED.json and ROW-SEED.png. What was
begun is resumed, and what has a result is skipped, so a runner that was stopped is started again in the same way.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rows import LIKELIHOOD, ROWS, Row, by_name

from jaxvae import machine
from jaxvae.config import differences
from jaxvae.config_file import load
from jaxvae.errors import InputError
from jaxvae.versions import package_versions

HERE = Path(__file__).parent
POINTS = 60  # Of a curve, at most.
DRAWN = 16  # Images.


class Failed(Exception):
    """A command ended with an exit code other than 0."""

    def __init__(self, code: int, words: Sequence[str]):
        super().__init__(f"exit code {code}: {shlex.join(words)}")
        self.code = code


class Places(NamedTuple):
    """Directories."""

    runs: Path
    results: Path
    data: Path | None


def command(module: str, *words: object) -> None:
    """Run a command of jaxvae. SIGTERM is passed on to it, so that it saves. Raises `Failed`."""
    line = ["-m", f"jaxvae.{module}", *map(str, words)]
    print("$", shlex.join(["python", *line]), flush=True)
    child = subprocess.Popen([sys.executable, *line])
    stopped: list[int] = []

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:  # A terminal sends Ctrl-C to both.
            child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped or code:
        raise Failed(128 + stopped[0] if stopped else code, line)


def result_file(places: Places, row: Row, seed: int) -> Path:
    """Where the result of a row and seed lies."""
    return places.results / f"{row.name}-{seed}.json"


def sweep_of(folder: Path, seed: int) -> Path | None:
    """The sweep in a row's folder that has trained `seed`, or begun to."""
    for sweep in sorted(folder.glob("sweep-*")):
        first, last = map(int, sweep.name.split("-")[1:])
        if first <= seed <= last:
            return sweep
    return None


def groups(folder: Path, seeds: Sequence[int]) -> dict[Path, list[int]]:
    """What has to be trained: the directory of a run and its seed, or that of a sweep and those of its seeds."""
    begun: dict[Path, list[int]] = {}
    new: list[list[int]] = []
    for seed in seeds:
        sweep = sweep_of(folder, seed)
        if (folder / str(seed) / "config.json").exists():
            begun[folder / str(seed)] = [seed]
        elif sweep is not None:
            begun.setdefault(sweep, []).append(seed)
        elif new and new[-1][-1] == seed - 1:
            new[-1].append(seed)
        else:
            new.append([seed])
    return begun | {
        folder / (f"sweep-{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0])): group for group in new
    }


def train(places: Places, row: Row, seeds: Sequence[int]) -> None:
    """Train a row with `seeds`, each to its end. Raises `Failed`."""
    folder = places.runs / row.name
    given = [*shlex.split(row.flags), "--image-every", "0", "--checkpoint-every", "10"]
    given += [] if places.data is None else ["--data-dir", str(places.data)]
    for directory, group in groups(folder, seeds).items():
        if not directory.name.startswith("sweep-"):
            resume = ["--resume"] if (directory / "config.json").exists() else []
            command("train", *given, "--seed", group[0], "--run-dir", directory, *resume)
            continue
        first, last = map(int, directory.name.split("-")[1:])
        if (directory / "sweep.json").exists():  # It has the grid; no flag of it may be repeated.
            command("sweep", "--run-dir", directory, "--resume", "--epochs", row.config().epochs)
        else:
            command("sweep", *given, "--seed", first, "--seeds", last - first + 1, "--run-dir", directory)
        for seed in group:
            command("sweep", "--run-dir", directory, "--extract", seed - first, "--to", folder / str(seed))


def check_is_of(row: Row, run: Path) -> None:
    """Raises `InputError` if a run is of another configuration or length than its row."""
    own, found = row.config(), load(run / "config.json")
    changed = differences(found, dataclasses.replace(own, seed=found.seed))
    if found.epochs != own.epochs:
        changed.append(f"epochs: {found.epochs} -> {own.epochs}")
    if changed:
        raise InputError(f"{run} is of another configuration than the row: {'; '.join(changed)}")


def curve(run: Path) -> dict[str, Any]:
    """The losses of a run after some of its epochs, more of the early ones: in training, and in evaluation.

    "split" says of which images the latter are: of the validation images if there are any.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses: dict[str, dict[int, float]] = {"train": {}, "validation": {}, "test": {}}
    for line in lines:
        if line["split"] in losses:
            losses[line["split"]][line["epoch"]] = round(line["loss"], 3)
    split = "validation" if losses["validation"] else "test"
    both = sorted(losses["train"].keys() & losses[split].keys())
    wanted = np.geomspace(both[0], both[-1], POINTS)
    epochs = sorted({min(both, key=lambda epoch: abs(epoch - want)) for want in wanted})
    train, evaluated = ([losses[name][epoch] for epoch in epochs] for name in ("train", split))
    return {"split": split, "epoch": epochs, "train": train, "evaluated": evaluated}


def timing(folder: Path, seed: int) -> dict[str, Any]:
    """How long the steps took: of a run, or of all models of the sweep that it was trained in."""
    files, models = [folder / str(seed) / "timing.jsonl"], 1
    if (sweep := sweep_of(folder, seed)) is not None:
        files = list((sweep / "programs").glob("*/timing.jsonl"))
        first, last = map(int, sweep.name.split("-")[1:])
        models = last - first + 1
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    seconds = sum(line["seconds"] for line in lines if line["event"] == "steps")
    return {"seconds": round(seconds), "models": models}


def evaluate(places: Places, row: Row, seed: int) -> None:
    """Evaluate and sample from a trained run, and write its result. Raises `Failed`, `InputError`."""
    folder = places.runs / row.name
    run, figures = folder / str(seed), folder / f"figures-{seed}.json"
    check_is_of(row, run)
    best = ["--best"] if row.best else []
    command("evaluate", run, "--samples", row.samples, "--json", figures, *best)
    command("generate", run, "-n", DRAWN, "--out", places.results / f"{row.name}-{seed}.png", *best)
    found = json.loads(figures.read_text())
    content = {
        "row": row.name,
        "seed": seed,
        "flags": row.flags,
        "nats": -found[row.measure],
        "standard_error": found[f"{row.measure}_standard_error"],
        "sampling_error": found["log_likelihood_sampling_error"] if row.measure == LIKELIHOOD else None,
        "training": timing(folder, seed),
        **about(),
        "evaluation": found,
        "curve": curve(run),
    }
    file = result_file(places, row, seed)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(as_json(content))
    unfinished.replace(file)
    print(f"{row.name}, seed {seed}: {content['nats']:.2f} nats; published: {row.published}", flush=True)


# In a process of its own: one that has seen a GPU keeps some of its memory.
ACCELERATOR = "import jax; one = jax.devices()[0]; print('' if one.platform == 'cpu' else one.device_kind)"


def about() -> dict[str, Any]:
    """The machine, the versions, the day."""
    found = machine.processor()
    accelerator = subprocess.run([sys.executable, "-c", ACCELERATOR], capture_output=True, text=True, check=True)
    parts = [accelerator.stdout.strip(), f"{machine.cores()} cores", found.get("model name") or found["machine"]]
    return {
        "machine": ", ".join(part for part in parts if part),
        "python": platform.python_version(),
        "versions": package_versions(),
        "date": str(datetime.date.today()),
    }


def as_json(content: Mapping[str, Any]) -> str:
    """JSON with a line for each entry, and for each entry of an entry."""

    def lines(value: Any, indent: str) -> str:
        if not isinstance(value, dict):
            return json.dumps(value, allow_nan=False)
        inner = ",\n".join(f"{indent} {json.dumps(name)}: {lines(each, indent + ' ')}" for name, each in value.items())
        return f"{{\n{inner}\n{indent}}}"

    return lines(content, "") + "\n"


def run_row(places: Places, row: Row) -> None:
    """Train and evaluate what has no result yet. Raises `Failed`, `InputError`."""
    row.config()
    pending = [seed for seed in row.seeds if not result_file(places, row, seed).exists()]
    if not pending:
        print(f"{row.name}: done before", flush=True)
        return
    (places.runs / row.name).mkdir(parents=True, exist_ok=True)
    places.results.mkdir(parents=True, exist_ok=True)
    train(places, row, pending)
    for seed in pending:
        evaluate(places, row, seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 1 if a row failed, 128 + N after signal N."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows.py; default: all that can be run")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", default=Path("runs/record"), help="the run directories (runs/record)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", default=HERE / "results", help="the results (results, beside this file)"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="files of MNIST, and Larochelle's; default: downloaded"
    )
    args = parser.parse_args(argv)
    places, failed = Places(args.runs, args.results, args.data_dir), False
    try:
        chosen = [by_name(name) for name in args.rows] or [row for row in ROWS if not row.waits]
    except InputError as error:
        parser.error(str(error))
    for row in chosen:
        try:
            run_row(places, row)
        except Failed as error:
            print(f"{row.name}: {error}", file=sys.stderr, flush=True)
            if error.code > 128:
                return error.code
            failed = True
        except InputError as error:
            print(f"{row.name}: {error}", file=sys.stderr, flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
