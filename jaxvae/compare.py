"""Runs side by side: ``python -m jaxvae.compare RUN_DIR RUN_DIR ...``. Only what was recorded is read."""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import tyro
from flax import linen as nn

from jaxvae import cli, config_file
from jaxvae.config import Config, describe, options_of, values_of
from jaxvae.errors import InputError, warn
from jaxvae.options import options, words
from jaxvae.own import is_own, standing_in
from jaxvae.protocols import Component
from jaxvae.run import directory as run_dirs
from jaxvae.run import plots
from jaxvae.run.records import ordered, read_records, rounded, terms_of
from jaxvae.run.step_files import DamagedError, read_record

DESCRIPTION = """Show runs side by side: in what they differ, the metrics of their last evaluation, parameters and time.

Only what was recorded is read, so the runs may still be training. What does not compare is said on stderr."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which runs."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR", help_behavior_hint="")]
    """Directories of runs of jaxvae.train, two or more."""
    out: Path | None = None
    """PNG file to draw: a loss against the epoch, and against the seconds of training."""
    json: Path | None = None
    """File to write the table to, as JSON."""
    evaluations: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """What jaxvae.evaluate --json wrote, one file a run in the same order: log p(x), PSNR, FID and others."""


class Run(NamedTuple):
    """What a run recorded.

    Attributes:
      name: its directory.
      config: its configuration.
      lines: of ``metrics.jsonl``.
      identity: the record of its newest checkpoint; empty if there is none.
      parameters: how many its model has; None: it has no checkpoint.
      timing: (step, steps, seconds) of stretches of training, each step once.
      evaluation: what ``jaxvae.evaluate --json`` wrote; empty: not given.
    """

    name: str
    config: Config
    lines: list[dict[str, Any]]
    identity: Mapping[str, Any]
    parameters: int | None
    timing: list[tuple[int, int, float]]
    evaluation: Mapping[str, Any] = MappingProxyType({})

    @property
    def step(self) -> int:
        """The last step that was recorded."""
        return max((line["step"] for line in self.lines), default=0)

    def last(self, split: str) -> Mapping[str, Any] | None:
        """The last line of a split."""
        return next((line for line in reversed(self.lines) if line["split"] == split), None)

    def seconds(self, step: int) -> float:
        """Seconds of training up to a step. Within a stretch, they grow evenly with its steps.

        Steps that no line counts, such as the first, take none.
        """
        return sum(seconds * min(max(step - end + steps, 0) / max(steps, 1), 1) for end, steps, seconds in self.timing)


def read(run_dir: Path) -> Run:
    """What a run recorded. Raises `InputError` if it is no run of `jaxvae.train`, or its records cannot be read."""
    run_dirs.require(run_dir)
    config = _config(run_dir / "config.json")
    lines = read_records(run_dir / "metrics.jsonl")
    if not lines:
        raise InputError(f"{run_dir}: has recorded nothing yet")
    identity, parameters = _newest(run_dir / "checkpoints")
    return Run(str(run_dir), config, lines, identity, parameters, _timing(run_dir / "timing.jsonl"))


def with_evaluation(run: Run, path: Path) -> Run:
    """The run with what `path` holds. Raises `InputError` if that is no evaluation of a model like the run's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--evaluations {path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict) or [type(found.get(name)) for name in ("model", "unit", "step")] != [str, str, int]:
        raise InputError(f"--evaluations {path}: jaxvae.evaluate --json did not write it")
    if found["model"] != describe(run.config):
        raise InputError(f"--evaluations {path}: is of {found['model']}, but {run.name} is {describe(run.config)}")
    line = run.last("test") or {}
    own, other = line.get("loss", math.nan), found.get("loss")
    if line.get("step") == found["step"] and not (isinstance(other, float) and math.isclose(own, other, rel_tol=1e-2)):
        raise InputError(
            f"--evaluations {path}: has a loss of {other} where {run.name} had {own}: is it of another run?"
        )
    return run._replace(evaluation=found)


class _NoModel(nn.Module):
    """Stands in for a model that was given in Python."""


def _no_loss(output: Any, batch: Any) -> dict[str, Any]:
    """Stands in for a loss that was given in Python."""
    raise NotImplementedError


def _config(path: Path) -> Config:
    """The configuration of a run, also if its model or its loss cannot be imported here: nothing is computed."""
    try:
        return config_file.load(path, to_use=True)
    except InputError:
        values = config_file.names(path)
        things = {str(values.get("objective")): _no_loss, str(values.get("model")): _NoModel}
        with standing_in({name: thing for name, thing in things.items() if is_own(name)}):
            return config_file.load(path, to_use=True)


def _newest(checkpoints: Path) -> tuple[Mapping[str, Any], int | None]:
    steps = sorted((path for path in checkpoints.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    for path in reversed(steps):
        try:
            content = read_record(path)
            shapes = [array["shape"] for name, array in content["arrays"].items() if name.startswith("params/")]
            return content["record"], sum(math.prod(shape) for shape in shapes)
        except (DamagedError, InputError):
            continue  # Pruned while this reads, or damaged: then an older one says it.
    return {}, None


def _timing(path: Path) -> list[tuple[int, int, float]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        spans = [(line["step"], line["steps"], line["seconds"]) for line in lines if line["event"] == "steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # Times are not needed for the rest.
    kept: list[tuple[int, int, float]] = []
    for step, steps, seconds in spans:
        # A run that was killed takes the steps after its last checkpoint again.
        kept = [span for span in kept if span[0] <= step - steps]
        kept.append((step, steps, seconds))
    return kept


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The fields of their configurations in which runs differ, with the value of each; None: it has no such field."""
    values = [values_of(run.config) for run in runs]
    names = dict.fromkeys(o.name for run in runs for o in options_of(type(run.config)))
    rows = {name: [each.get(name) for each in values] for name in names if name != "data_dir"}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def warnings(runs: Sequence[Run]) -> Iterator[str]:
    """What does not compare between the runs."""
    # A digest that is not known, as of imported weights, may be any.
    digests = {run.identity.get("test_images_sha256") for run in runs} - {None}
    if len(digests) > 1:
        yield "the runs have different test images: their numbers do not compare"
    elif unknown := [run.name for run in runs if "test_images_sha256" not in run.identity]:
        yield f"nothing says which test images {', '.join(unknown)} had: the numbers may not compare"
    if len({run.identity.get("validation_images_sha256") for run in runs} - {None}) > 1:
        yield "the runs have different validation images: their validation metrics do not compare"
    units = {run.lines[-1]["unit"] for run in runs}
    if len(units) > 1:
        yield f"the runs have different units, {' and '.join(sorted(units))}: a row for each"
    elif fields := [name for name in differing(runs) if name in _of_loss(runs)]:
        yield f"loss does not compare: the runs differ in {', '.join(fields)}"
    bounds = {term for run in runs for term in terms_of(run.lines) if term.endswith(("elbo", "iwae_bound"))}
    if len(bounds) > 1:
        yield f"the runs have different bounds, {' and '.join(sorted(bounds))}: these do not compare"
    if len({run.config.samples for run in runs if run.config.parts.objective.tightens}) > 1:
        yield "the bounds are of different numbers of samples: more samples make a tighter bound"
    if len({run.step for run in runs}) > 1:
        yield "the runs have not taken the same number of steps"
    for run in runs:
        if run.evaluation and run.evaluation["step"] != run.step:
            yield f"{run.name} has taken {run.step:,} steps, its evaluation is of step {run.evaluation['step']:,}"
    if len({run.evaluation.get("samples") for run in runs if run.evaluation}) > 1:
        yield "the evaluations have different --samples: their log p(x), and bits per dimension, do not compare"


def _of_loss(runs: Sequence[Run]) -> set[str]:
    """The fields that say what the loss is."""
    chosen = [run.config.parts for run in runs]
    parts: list[Component] = [part for each in chosen for part in (each.objective, each.likelihood, each.inputs)]
    return {"objective", "likelihood", "inputs"} | {o.name for part in parts for o in options(type(part))}


def rows_of(runs: Sequence[Run]) -> dict[str, dict[str, list[Any]]]:
    """The table: by heading and name, a value for each run; None: it has none."""
    found: dict[str, dict[str, list[Any]]] = {"configuration": differing(runs)}
    for split in ("validation", "test"):
        lines = [run.last(split) or {} for run in runs]
        for unit in dict.fromkeys(line["unit"] for line in lines if line):
            same = [line if line.get("unit") == unit else {} for line in lines]
            rows = {term: [line.get(term) for line in same] for term in ordered(terms_of(filter(None, same)))}
            found[f"{split} ({unit})"] = rows
    evaluations = [run.evaluation for run in runs]
    names = dict.fromkeys(name for each in evaluations for name, value in each.items() if _is_figure(name, value))
    terms = {term for run in runs for term in terms_of(run.lines)}  # They have the unit of the objective.
    for unit in dict.fromkeys(each["unit"] for each in evaluations if each):
        same = [each if each.get("unit") == unit else {} for each in evaluations]
        rows = {name: [each.get(name) for each in same] for name in names if _term(name) in terms}
        found[f"evaluation ({unit})"] = {name: row for name, row in rows.items() if row != [None] * len(runs)}
    found["evaluation"] = {name: [each.get(name) for each in evaluations] for name in names if _term(name) not in terms}
    speeds = [(sum(steps for _, steps, _ in run.timing), run.seconds(run.step)) for run in runs]
    found["training"] = {
        "parameters": [run.parameters for run in runs],
        "epochs": [run.lines[-1]["epoch"] for run in runs],
        "steps": [run.step for run in runs],
        "seconds": [rounded(seconds, 4) if seconds else None for _, seconds in speeds],
        "steps_per_second": [rounded(steps / seconds, 4) if seconds else None for steps, seconds in speeds],
    }
    return found


def _is_figure(name: str, value: Any) -> bool:
    """Whether an entry of an evaluation is a figure of the model that a table has room for."""
    return name == "active_units" or (isinstance(value, float) and math.isfinite(value))


def _term(name: str) -> str:
    return name.removesuffix("_standard_error")


def table(runs: Sequence[Run]) -> str:
    """The rows in columns, a run each."""
    lines = [["", *(run.name for run in runs)]]
    for heading, rows in rows_of(runs).items():
        if rows:
            lines.append([heading, *[""] * len(runs)])
        lines += [[f"  {name}", *map(_shown, values)] for name, values in rows.items()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = (
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if type(value) is int:
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else words(value) or "-"


def curves_of(runs: Sequence[Run]) -> tuple[str, str, list[tuple[str, list[float], list[float], list[float]]]]:
    """What there is to draw: the term, its unit, and each run's name, epochs, seconds and values.

    The loss if it compares, else a bound that all runs have. Of validation images, test images, or else training.

    Raises:
      InputError: there is no such term: the units, or the losses and bounds, differ.
    """
    [unit, *others] = {run.lines[-1]["unit"] for run in runs}
    comparable = not others and not any(name in _of_loss(runs) for name in differing(runs))
    shared = set.intersection(*({*terms_of(run.lines)} for run in runs))
    terms = ["loss"] if comparable else sorted(t for t in shared if t.endswith(("elbo", "iwae_bound")) and not others)
    if not terms:
        raise InputError("--out: the runs have no loss or bound that compares")
    term = terms[0]

    def lines(run: Run, split: str) -> list[dict[str, Any]]:
        return [line for line in run.lines if line["split"] == split and term in line]

    able = [split for split in ("validation", "test", "train") if all(lines(run, split) for run in runs)]
    split = next((split for split in able if any(len(lines(run, split)) > 1 for run in runs)), able[0] if able else "")
    if not split:
        raise InputError(f"--out: no split has {term} in all runs")
    drawn = []
    for run in runs:
        found = lines(run, split)
        seconds = [run.seconds(line["step"]) for line in found]
        steps_per_epoch = run.identity.get("steps_per_epoch")
        epochs = [line["step"] / steps_per_epoch if steps_per_epoch else line["epoch"] for line in found]
        drawn.append((run.name, epochs, seconds, [line[term] for line in found]))
    return f"{split} {term}", unit, drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.compare", description=DESCRIPTION)
    if len(arguments.run_dirs) < 2:
        raise InputError("name two runs or more")
    for one, other in itertools.combinations(arguments.run_dirs, 2):
        if one.resolve() == other.resolve():
            raise InputError(f"{other} is named twice")
    for name, path in (("--out", arguments.out), ("--json", arguments.json)):
        if path is not None:
            cli.check_writable(name, path)
    if arguments.out is not None and arguments.out.suffix.lower() != ".png":
        raise InputError(f"--out {arguments.out}: must end in .png")
    if arguments.evaluations and len(arguments.evaluations) != len(arguments.run_dirs):
        raise InputError(f"--evaluations: {len(arguments.evaluations)} files for {len(arguments.run_dirs)} runs")
    runs = [read(path) for path in arguments.run_dirs]
    if arguments.evaluations:
        runs = [with_evaluation(run, path) for run, path in zip(runs, arguments.evaluations, strict=True)]
    said = list(warnings(runs))
    for line in said:
        warn(line)
    curves = curves_of(runs) if arguments.out is not None else None
    print(table(runs))
    content = {"runs": [run.name for run in runs], "warnings": said, "rows": rows_of(runs)}
    cli.save_json(arguments.json, content)
    if arguments.out is not None and curves is not None:
        with cli.saving("--out", arguments.out):
            plots.save_comparison(arguments.out, *curves)
        print(f"curves -> {arguments.out}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
