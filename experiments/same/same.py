"""Do two checkouts of jaxvae compute the same? Compares what their command lines write, to the byte.

    python experiments/same/same.py OLD_CHECKOUT NEW_CHECKOUT [--cases NAME ...] [--old-runs DIR] [--speed ROUNDS]

Expected, where behaviour stays: a table in which everything is the same, and exit code 0. See NOTES.md for the
protocol. Imports nothing of jaxvae: its modules may be moved and renamed.
"""

import argparse
import itertools
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_IWAE = "--preset iwae --epochs 3 --hidden 50 50"
CASES = {
    "notes-ae": "train --preset notes-ae --epochs 2",
    "notes-vae": "train --preset notes-vae --epochs 2",
    "vae": "train --preset vae --epochs 3",
    "iwae": f"train {_IWAE}",
    "dreg": f"train {_IWAE} --objective dreg",
    "two-layer": "train --preset iwae --epochs 3 --architecture two-layer --hidden 40 20",
    "info": "train --preset vae --epochs 3 --objective info --mmd-weight 10",
    "beta-tc": "train --preset vae --epochs 3 --objective beta-tc --beta 4",
    "logistic": "train --preset vae --epochs 3 --likelihood logistic",
    "gaussian": "train --preset vae --epochs 3 --likelihood gaussian --dequantize",
    "gaussian-global": "train --preset vae --epochs 3 --likelihood gaussian-global",
    "gaussian-pixel": "train --preset vae --epochs 3 --likelihood gaussian-pixel",
    "conv": "train --preset vae --epochs 2 --architecture conv --hidden 8 16",
    "static": "train --preset vae --epochs 3 --inputs static --static-seed 3 --head logvar --activation gelu",
    "regularised": "train --preset vae --epochs 3 --schedule cosine --warmup-epochs 1 --kl-warmup-epochs 1.5 "
    "--free-bits 0.05 --clip-norm 1 --weight-decay 0.01 --log-every 7",
    "denoising": "train --preset notes-ae --epochs 2 --corruption 0.3",
    "bfloat16": "train --preset vae --epochs 3 --compute-dtype bfloat16",
    "sweep": "sweep --preset vae --epochs 2 --seeds 2 --beta 1 4 --devices 1",
}
SPEED_EPOCHS = {"notes-vae": (2, 60), "vae": (3, 80)}  # On MNIST, and on the much smaller digits.
SAMPLES = "10"  # Latents an image in `evaluate`'s estimate of log p(x).
NOT_COMPARED = "-"


class Row(NamedTuple):
    """A line of the table. `metrics` and `parameters` are "same", "differ", "fails" or `NOT_COMPARED`."""

    case: str
    command: str
    steps: str
    metrics: str
    parameters: str
    largest: str

    @property
    def same(self) -> bool:
        """Whether nothing that was compared differs or fails."""
        return {self.metrics, self.parameters} <= {"same", NOT_COMPARED}


# --- Comparisons: "" where nothing differs, or how it does -------------------------------------------------------


def only(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for the names in `old` alone, and one for those in `new` alone."""
    sides = (("missing", old.keys() - new.keys()), ("added", new.keys() - old.keys()))
    return [f"{word} {what}: {some(names)}" for word, names in sides if names]


def some(names: set[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a JSON value, by their path: "kl_per_dimension/3"."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    leaves = [flatten(item, f"{name}/{key}" if name else str(key)) for key, item in items]
    return {path: leaf for of_one in leaves for path, leaf in of_one.items()}


def relative_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, float]:
    """|new - old| / max(|new|, |old|) of what differs, by name; infinite for no finite number, or one side's alone."""
    found = {}
    for name in old.keys() | new.keys():
        a, b = old.get(name), new.get(name)
        if name not in old or name not in new or (a != b and (a == a or b == b)):
            numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (a, b))
            found[name] = abs(b - a) / max(abs(b), abs(a)) if numbers else math.inf  # type: ignore[operator, arg-type]
    return found


def values_difference(old: Any, new: Any) -> str:
    """How two JSON values differ: the largest relative difference, and the names of what one has alone."""
    a, b = flatten(old), flatten(new)
    found = relative_differences(a, b)
    said = [f"{max(found.values()):.1e} ({max(found, key=lambda name: found[name])})"] if found else []
    return "; ".join(said + only("values", a, b))


def metrics_difference(old: bytes, new: bytes) -> str:
    """How two metrics.jsonl differ: the largest relative difference of a term, after the first epoch and in all."""
    if old == new:
        return ""
    sides: list[dict[str, Any]] = [{}, {}]
    for text, side in zip((old, new), sides, strict=True):
        for line in map(json.loads, text.splitlines()):
            member = f"member {line['member']} " if "member" in line else ""
            side[f"{member}step {line['step']} {line['split']}"] = line
    found = {
        (line.get("epoch", 0), f"{term}, {key}"): value
        for key, line in sides[0].items()
        for term, value in relative_differences(line, sides[1].get(key, line)).items()
    }
    first = min((line.get("epoch", 0) for line in sides[0].values()), default=0)
    said = only("lines", *sides)
    for when, last in ((f"after epoch {first}", first), ("in all", math.inf)):
        values = {where: value for (epoch, where), value in found.items() if epoch <= last} or {"no term": 0.0}
        where = max(values, key=lambda name: values[name])
        said.append(f"{values[where]:.1e} {when} ({where})")
    return "metrics: " + "; ".join(said)


def newest(checkpoints: Path) -> Path:
    """The newest step of a directory of checkpoints. Raises `FileNotFoundError` if there is none."""
    steps = [path for path in checkpoints.glob("*") if path.name.isdigit()]
    if not steps:
        raise FileNotFoundError(f"{checkpoints} holds no checkpoint")
    return max(steps, key=lambda path: int(path.name))


def checkpoints_difference(old: Path, new: Path) -> tuple[str, list[str]]:
    """How the arrays of two checkpoints, as RUN/checkpoints/20, differ; and what keys one record has alone."""
    a, b = (json.loads((step / "record.json").read_text(encoding="utf-8")) for step in (old, new))
    notes = only("keys of record.json", a, b) + only("keys of the record", a["record"], b["record"])
    a, b = a["arrays"], b["arrays"]
    forms = {name: [(side[name]["dtype"], side[name]["shape"]) for side in (a, b)] for name in a.keys() & b.keys()}
    reformed = {f"{name} {was} -> {now}" for name, (was, now) in forms.items() if was != now}
    differ = {name for name, (was, now) in forms.items() if was == now and a[name]["sha256"] != b[name]["sha256"]}
    said = only("arrays", a, b) + ([f"other dtype or shape: {some(reformed)}"] if reformed else [])
    if differ:
        stored = stored_arrays(old / "state"), stored_arrays(new / "state")
        largest = {name: float(abs(stored[1][name] - stored[0][name]).max()) for name in differ}
        worst = max(largest, key=lambda name: largest[name])
        said.append(f"{len(differ)} of {len(a)}, by up to {largest[worst]:.1e} ({worst}): {some(differ)}")
    return "arrays: " + "; ".join(said) if said else "", notes


def stored_arrays(state: Path) -> dict[str, Any]:
    """The arrays that Orbax stored in a directory, as float64, by their names in record.json."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(state.absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(leaf, np.float64) for p, leaf in leaves}


def compare_runs(case: str, command: str, old: Path, new: Path) -> Row:
    """The row of two runs, or two sweeps: their metrics.jsonl and newest checkpoints, program by program.

    Raises:
      OSError, ValueError, KeyError: a file is missing, or not what a run leaves.
    """
    sides = [{p.parent.relative_to(run).as_posix(): p.parent for p in run.rglob("metrics.jsonl")} for run in (old, new)]
    if not sides[0]:
        raise FileNotFoundError(f"{old} holds no metrics.jsonl")
    missing = only("metrics.jsonl of", *sides)
    metrics, arrays, notes, steps = list(missing), list(missing), [], set()
    for part in sorted(sides[0].keys() & sides[1].keys()):
        pair = [newest(side[part] / "checkpoints") for side in sides]
        steps |= {step.name for step in pair}
        metrics.append(metrics_difference(*((side[part] / "metrics.jsonl").read_bytes() for side in sides)))
        difference, changes = checkpoints_difference(*pair)
        arrays.append(difference)
        notes += changes
    words = ["differ" if any(said) else "same" for said in (metrics, arrays)]
    found = [said for said in dict.fromkeys(metrics + arrays + notes) if said]
    return Row(case, command, ", ".join(sorted(steps, key=int)), words[0], words[1], "; ".join(found) or "0")


# --- Runs -------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A command failed. The message says of which checkout, and how."""


class Checkout(NamedTuple):
    """A version of jaxvae, the interpreter that runs it, and the directory where it runs."""

    name: str
    path: Path
    python: str
    work: Path

    def run(self, *arguments: str | Path) -> str:
        """Run Python with `arguments` and this jaxvae, on the CPU; its stdout. Raises `Failed`."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        env |= {"PYTHONPATH": str(self.path), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
        # In `work`: -m and -c look in the current directory first, and there may be another jaxvae.
        done = subprocess.run([self.python, *arguments], cwd=self.work, env=env, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise Failed(f"{self.name} exits with {done.returncode}: {last}")
        return done.stdout

    def jaxvae(self, command: str, *more: str | Path) -> None:
        """Run "train --preset vae" or the like, with more arguments. Raises `Failed`."""
        module, *arguments = shlex.split(command)
        self.run("-m", f"jaxvae.{module}", *arguments, *more)

    def check(self) -> None:
        """Raise `Failed` if ``python -m jaxvae.train`` would be that of another place."""
        origin = self.run("-c", "import importlib.util as u; print(u.find_spec('jaxvae').origin)").strip()
        if self.path not in Path(origin).parents:
            raise Failed(f"{self.name} would run {origin}, which is not in {self.path}")


Pair = tuple[Checkout, Checkout]
Arguments = list[str | Path]


def compare(case: str, command: str, pair: Pair, more: list[Arguments], made: list[Path]) -> Row:
    """Run a command, with more arguments, in each checkout; the row of what they made: runs, or JSON files."""
    try:
        for checkout, arguments in zip(pair, more, strict=True):
            checkout.jaxvae(command, *arguments)
        if made[0].is_dir():
            return compare_runs(case, command, *made)
        said = values_difference(*(json.loads(path.read_text(encoding="utf-8")) for path in made))
    except (Failed, OSError, ValueError, KeyError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
        return Row(case, command, NOT_COMPARED, "fails", "fails", said)
    return Row(case, command, NOT_COMPARED, "differ" if said else "same", NOT_COMPARED, said or "0")


def case_rows(case: str, pair: Pair, work: Path, dataset: Arguments) -> Iterator[Row]:
    """Train a case with both checkouts; then `reuse_rows` of the run that the old one made."""
    runs = [work / checkout.name for checkout in pair]
    # A checkpoint every epoch: see `reuse_rows`.
    more: list[Arguments] = [[*dataset, "--checkpoint-every", "1", "--run-dir", run] for run in runs]
    row = compare(case, CASES[case], pair, more, runs)
    yield row
    if row.metrics != "fails":
        yield from reuse_rows(case, pair, work, runs[0])


def reuse_rows(case: str, pair: Pair, work: Path, run: Path) -> Iterator[Row]:
    """What both checkouts make of one run, or sweep, of an old version: resumed (as copies), extracted, evaluated."""
    work.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for path in run.rglob("metrics.jsonl") for line in path.read_text("utf-8").splitlines()]
    if not lines:
        yield Row(case, "", NOT_COMPARED, "fails", "fails", f"{run} holds no metrics")
        return
    sweep = (run / "sweep.json").is_file()
    content = json.loads((run / ("sweep.json" if sweep else "config.json")).read_text(encoding="utf-8"))
    config = content["config"] if sweep else content
    copies = [Path(shutil.copytree(run, work / f"{checkout.name}-resumed")) for checkout in pair]
    command = "sweep --resume --devices 1" if sweep else "train --resume"
    if config.get("schedule", "constant") == "constant" and config.get("kl_cycles", 1) == 1:
        command += f" --epochs {max(line['epoch'] for line in lines) + 1}"
    else:  # Its length may not change: it goes on from the checkpoint before the newest, if there is one.
        for checkpoints in [found for copy in copies for found in copy.rglob("checkpoints")]:
            if sum(path.name.isdigit() for path in checkpoints.iterdir()) > 1:
                shutil.rmtree(newest(checkpoints))
    yield compare(case, command, pair, [["--run-dir", copy] for copy in copies], copies)
    if sweep:
        made = [work / f"{checkout.name}-extracted" for checkout in pair]
        yield compare(case, "sweep --extract 0", pair, [["--run-dir", run, "--to", to] for to in made], made)
        run = made[0]
    command = f"evaluate --samples {SAMPLES}" if lines[0].get("unit") == "nats/image" else "evaluate"
    files = [work / f"{checkout.name}.json" for checkout in pair]
    yield compare(case, command, pair, [[run, "--json", file] for file in files], files)


# --- Speed ------------------------------------------------------------------------------------------------------


def steps_per_second(timing: str) -> float:
    """The mean speed that a timing.jsonl records: all steps by all their seconds."""
    spans = [line for line in map(json.loads, timing.splitlines()) if line["event"] == "steps"]
    return float(sum(span["steps"] for span in spans) / sum(span["seconds"] for span in spans))


def speed_line(preset: str, rounds: list[tuple[float, float]]) -> str:
    """A line of the table of speeds: medians in steps/s, and of new/old round by round the median and the range."""
    old, new = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = [after / before for before, after in rounds]
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return f"| {preset} | {len(rounds)} | {old:.1f} | {new:.1f} | {spread} |"


def speed_lines(pair: Pair, rounds: int, work: Path, dataset: Arguments, digits: bool) -> Iterator[str]:
    """Train with both checkouts in turn, `rounds` times, each preset of `SPEED_EPOCHS`. Raises `Failed`."""
    for preset, epochs in SPEED_EPOCHS.items():
        command = f"train --preset {preset} --epochs {epochs[digits]} --image-every 0 --checkpoint-every 0"
        speeds: dict[str, list[float]] = {checkout.name: [] for checkout in pair}
        for number in range(rounds):
            for checkout in pair[:: 1 if number % 2 == 0 else -1]:  # Neither always comes first.
                run = work / f"{preset}-{number}-{checkout.name}"
                checkout.jaxvae(command, *dataset, "--run-dir", run)
                speeds[checkout.name].append(steps_per_second((run / "timing.jsonl").read_text(encoding="utf-8")))
        yield speed_line(preset, list(zip(*speeds.values(), strict=True)))


def main() -> int:
    """Run the command line; 0 if all is the same."""
    parser = argparse.ArgumentParser(description="Show that two checkouts of jaxvae compute the same.")
    parser.add_argument("old", type=Path, help="checkout of the old version")
    parser.add_argument("new", type=Path, help="checkout of the new version")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all, unless --old-runs or --speed is given")
    parser.add_argument("--dataset", default="digits", help="of the cases")
    parser.add_argument("--data-dir", type=Path, help="IDX files of --dataset; for --speed, of mnist if that is digits")
    parser.add_argument("--work", type=Path, help="empty directory for the runs; default: a new temporary one")
    parser.add_argument("--python", default=sys.executable, help="interpreter of both versions")
    parser.add_argument(
        "--old-runs", type=Path, help="directory with runs of old versions, to be resumed and evaluated"
    )
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="compare speeds, in so many rounds")
    given = parser.parse_args()
    work: Path = (given.work or Path(tempfile.mkdtemp(prefix="jaxvae-same-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        parser.error(f"--work {work} is not empty")
    python = os.path.abspath(shutil.which(given.python) or given.python)
    pair = (Checkout("old", given.old.resolve(), python, work), Checkout("new", given.new.resolve(), python, work))
    for checkout in pair:
        checkout.check()
    print(f"old: {pair[0].path}; new: {pair[1].path}; runs: {work}\n", flush=True)
    source: Arguments = ["--data-dir", given.data_dir.resolve()] if given.data_dir else []
    dataset: Arguments = ["--dataset", given.dataset, *(source if given.dataset != "digits" else [])]
    jobs: list[Iterator[Row]] = []
    if given.cases or not (given.old_runs or given.speed):
        jobs += [case_rows(case, pair, work / case, dataset) for case in given.cases or CASES]
    if given.old_runs:
        root = given.old_runs.resolve()
        runs = {path.parent for name in ("config.json", "sweep.json") for path in root.rglob(name)}
        if not runs:
            parser.error(f"--old-runs {root} holds no run")
        for run in sorted(runs):
            jobs.append(reuse_rows(str(run.relative_to(root)), pair, work / "old-runs" / run.relative_to(root), run))
    same = True
    if jobs:
        columns = ("case", "command", "steps", "metrics same?", "parameters same?", "largest difference")
        print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for row in itertools.chain(*jobs):
        print(f"| {' | '.join(row)} |", flush=True)
        same = same and row.same
    if given.speed:
        digits = given.dataset == "digits" and not source
        dataset = ["--dataset", "mnist", *source] if given.dataset == "digits" and source else dataset
        print("\n| preset | rounds | old steps/s | new steps/s | new/old, median (range) |\n" + "| --- " * 5 + "|")
        for line in speed_lines(pair, given.speed, work / "speed", dataset, digits):
            print(line, flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"error: {error}")
