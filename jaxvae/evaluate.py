"""Evaluate a run on its test split: ``python -m jaxvae.evaluate RUN_DIR``."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from jaxvae import cli, compilation_cache, data
from jaxvae.config import describe
from jaxvae.errors import InputError, SaveError, say
from jaxvae.keys import purpose_key
from jaxvae.metrics import METRICS, LogLikelihood, Subject
from jaxvae.metrics.subject import mean_and_error
from jaxvae.objectives.build import build_objective, measure_warning
from jaxvae.own import resolve
from jaxvae.protocols import Measured, Metric
from jaxvae.run import records
from jaxvae.train.evaluation import evaluate_images
from jaxvae.trained import TrainedRun, load, load_run

DESCRIPTION = "Evaluate the newest checkpoint of a run on its test images, every image once."

_WIDTH = 27  # Of the longest name in a table.


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to evaluate."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    dataset: str | None = None
    """The dataset, if its path is not that of training; the test images must be the same."""
    data_dir: str | None = None
    """Directory of its files, if it is not that of training."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""
    samples: int = 0
    """Estimate log p(x) too, with this many latents per image; papers use 5000. VAEs in nats only."""
    metric: tuple[str, ...] = ()
    """Your own metrics to report as well: package.module:Name of each."""
    json: Path | None = None
    """File to write the metrics to, as JSON."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def evaluate_run(
    run_dir: str | Path,
    dataset: str | None = None,
    data_dir: str | None = None,
    best: bool = False,
    samples: int = 0,
    metrics: Sequence[Metric] = (),
    images: Any = None,
    model: Any = None,
    objective: Any = None,
) -> dict[str, Any]:
    """The test metrics of a run's newest checkpoint (or its best): a record of ``metrics.jsonl``, and more.

    The noise is the same as in evaluations during training, so the terms are those of its last test line.

    Args:
      run_dir: of the run.
      dataset, data_dir: where the images are, if not where they were in training.
      best: the best checkpoint by the validation images.
      samples: latents per image for an estimate of log p(x); 0: none.
      metrics: to report besides those in `jaxvae.metrics.METRICS`.
      images: what the run was trained and tested on, as `jaxvae.fit` takes it, if that was given in Python.
      model, objective: what was given to `jaxvae.fit`, if this process cannot import it by its name.

    Returns:
      A record of ``metrics.jsonl`` with standard errors over the images, and what each metric found.

    Raises:
      InputError: no run, an unreadable checkpoint, other test images than the run's, or `samples` for
        a model that has no likelihood.
    """
    run, given = load(run_dir, best, model, objective), None
    if images is not None:
        from jaxvae.fitting import image_data  # It imports all of training.

        given = image_data(images)
    return _measured(run, Path(run_dir), dataset, data_dir, samples, metrics, given).result


class _Evaluation(NamedTuple):
    """What `evaluate_run` returns, the names of the objective's terms in it, and what each metric found."""

    result: dict[str, Any]
    terms: list[str]
    found: dict[str, Measured]


def _measured(
    run: TrainedRun,
    run_dir: Path,
    dataset: str | None,
    data_dir: str | None,
    samples: int,
    metrics: Sequence[Metric],
    images: data.ImageData | None = None,
) -> "_Evaluation":
    config = run.config
    likelihood = LogLikelihood(samples)
    likelihood.check(config)
    if (warning := measure_warning(config)) is not None:
        say(warning)
    given = images
    images = run.tested_images(run_dir, dataset, data_dir) if given is None else run.checked_images(run_dir, given)
    steps_per_epoch = run.record.get("steps_per_epoch", 1)
    loss = build_objective(config, steps_per_epoch, len(images.train))
    key, split = purpose_key(config.seed, "test-noise"), images.split("test")
    terms = evaluate_images(run.model, loss, run.variables, split, key)
    result = {
        "preset": config.preset,
        "model": describe(config),
        "dataset": images.name,
        "images": len(images.test),
        **records.record(run.step, -(-run.step // steps_per_epoch), "test", loss.unit, terms),
    }
    for name, values in terms.items():
        _, standard_error = mean_and_error(values)
        if standard_error is not None:
            result[f"{name}_standard_error"] = _rounded(standard_error, 3)
    subject = Subject(config, run.model, run.variables, loss, {name: result[name] for name in terms})
    built_in = [likelihood if kind is LogLikelihood else kind() for kind in METRICS.values()]
    found: dict[str, Measured] = {}
    for metric in (*built_in, *metrics):
        if metric.applies(config):
            found |= metric.measure(subject, split, key)
    for name, measured in found.items():
        result[name] = _rounded(measured.value, 9 if measured.standard_error is not None else 6)
        if measured.standard_error is not None:
            result[f"{name}_standard_error"] = _rounded(measured.standard_error, 3)
        result |= measured.extra
    return _Evaluation(result, list(terms), found)


def _rounded(value: Any, digits: int) -> Any:
    return value if isinstance(value, list) else records.rounded(value, digits)


def metrics_of(names: Sequence[str]) -> list[Metric]:
    """The user's own metrics, by ``package.module:Name``. Raises `InputError`."""
    found = []
    for name in names:
        metric = resolve(name, "--metric")
        metric = metric() if isinstance(metric, type) else metric
        if not isinstance(metric, Metric):
            raise InputError(f"--metric {name}: must inherit from jaxvae.protocols.Metric")
        found.append(metric)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.evaluate", description=DESCRIPTION)
    if arguments.samples < 0:
        raise InputError(f"--samples must not be negative, not {arguments.samples}")
    if arguments.json is not None:
        cli.check_writable("--json", arguments.json)
    own = metrics_of(arguments.metric)
    compilation_cache.use(not arguments.no_compilation_cache)
    run = load_run(arguments.run_dir, arguments.best)
    evaluation = _measured(run, arguments.run_dir, arguments.dataset, arguments.data_dir, arguments.samples, own)
    print(table(evaluation))
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(evaluation.result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise SaveError(f"--json {arguments.json} cannot be written: {error.strerror}") from None
    return cli.EXIT_OK


def table(evaluation: _Evaluation) -> str:
    """The metrics of an evaluation, a line each, with their units."""
    result = evaluation.result
    where = f"{result['images']:,} test images of {result['dataset']}"
    lines = [f"{result['model']} on {where}, step {result['step']:,}"]

    def add(name: str, unit: str, more: str = "") -> None:
        error = f" +- {result[e]:.2g}" if (e := f"{name}_standard_error") in result else ""
        lines.append(f"  {name:{_WIDTH}} {result[name]:>10.6g}{error}{f' ({unit})' if unit else ''}{more}")

    for name in records.ordered(evaluation.terms):
        add(name, result["unit"])
    for name, measured in evaluation.found.items():
        if isinstance(measured.value, list):
            lines.append(f"  {name:{_WIDTH}} {measured.note or measured.value}")
        else:
            add(name, measured.unit, measured.note)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
