"""Evaluate a run on its test split: ``python -m jaxvae.evaluate RUN_DIR``."""

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from jaxvae import cli, compilation_cache, data
from jaxvae.chunks import cached_at_once
from jaxvae.config import describe
from jaxvae.errors import InputError, say, suggestion
from jaxvae.keys import purpose_key
from jaxvae.metrics import METRICS, ON_REQUEST, LogLikelihood, SampleQuality, Subject
from jaxvae.metrics.outliers import Outliers
from jaxvae.metrics.outliers import outliers as worst_of
from jaxvae.metrics.subject import mean_and_error
from jaxvae.objectives.build import build_objective, measure_warning
from jaxvae.own import is_own, resolve
from jaxvae.protocols import Measured, Metric
from jaxvae.run import plots, records
from jaxvae.run.tensorboard import Board
from jaxvae.run_images import images_of
from jaxvae.train.evaluation import evaluate_images
from jaxvae.trained import TrainedRun, load, load_run

DESCRIPTION = """Evaluate the newest checkpoint of a run on its test images, every image once.

What costs little is always reported. --metric adds what reads labels, factors or the training images:
probe and knn, the accuracy of classifiers on the latents; fid, the FID, KID, precision and recall of samples;
disentanglement, MIG, DCI and SAP, for images whose factors are known."""

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
    """Report these as well: probe, knn, fid, disentanglement, or metrics of your own, package.module:Name."""
    features: str | None = None
    """Features for --metric fid, package.module:function: uint8 [N, H, W, C] to [N, F]. Default: a classifier's."""
    outliers: Path | None = None
    """PNG file to draw the worst reconstructed and the least likely test images to. --json has their numbers."""
    json: Path | None = None
    """File to write the metrics to, as JSON."""
    tensorboard: bool = False
    """Write them as TensorBoard events, too, to RUN_DIR/tensorboard/evaluation."""
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
    outliers: str | Path | None = None,
) -> dict[str, Any]:
    """The test metrics of a run's newest checkpoint (or its best): a record of ``metrics.jsonl``, and more.

    The noise is the same as in evaluations during training, so the terms are those of its last test line.

    Args:
      run_dir: of the run.
      dataset, data_dir: where the images are, if not where they were in training.
      best: the best checkpoint by the validation images.
      samples: latents per image for an estimate of log p(x); 0: none.
      metrics: to report besides those in `jaxvae.metrics.METRICS`, such as those in `jaxvae.metrics.ON_REQUEST`.
      images: what the run was trained and tested on, as `jaxvae.fit` takes it, if that was given in Python.
      model, objective: what was given to `jaxvae.fit`, if this process cannot import it by its name.
      outliers: PNG file to draw the worst reconstructed and the least likely images to.

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
    drawn = outliers is not None
    evaluation = _measured(run, Path(run_dir), dataset, data_dir, samples, metrics, given, drawn)
    if outliers is not None:
        _draw_outliers(Path(outliers), evaluation)
    return evaluation.result


class _Evaluation(NamedTuple):
    """What `evaluate_run` returns, the names of the objective's terms in it, what each metric found, and outliers."""

    result: dict[str, Any]
    terms: list[str]
    found: dict[str, Measured]
    outliers: list[Outliers]


def _measured(
    run: TrainedRun,
    run_dir: Path,
    dataset: str | None,
    data_dir: str | None,
    samples: int,
    metrics: Sequence[Metric],
    images: data.ImageData | None = None,
    with_outliers: bool = False,
) -> "_Evaluation":
    config = run.config
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise InputError(f"{type(metric).__name__} must inherit from jaxvae.protocols.Metric")
    likelihood = LogLikelihood(samples)
    for metric in (likelihood, *metrics):
        metric.check(config)
    if (warning := measure_warning(config)) is not None:
        say(warning)
    labels = any(metric.reads_labels for metric in metrics)
    images = images_of(run, run_dir, dataset, data_dir, labels, images)
    for metric in metrics:
        metric.check_images(images)
    steps_per_epoch = run.record.get("steps_per_epoch", 1)
    loss = build_objective(config, steps_per_epoch, len(images.train))
    key, split = purpose_key(config.seed, "test-noise"), images.split("test")
    most = cached_at_once(config, run.image_shape, loss.objective.latents)
    terms = evaluate_images(run.model, loss, run.variables, split, key, most)
    result = {
        "preset": config.preset,
        "model": describe(config),
        "dataset": images.name,
        "images": len(images.test),
        **records.record(run.step, -(-run.step // steps_per_epoch), "test", loss.unit, terms),
    }
    errors = {name: mean_and_error(values)[1] for name, values in terms.items()}
    for name, standard_error in errors.items():
        if standard_error is not None:
            result[f"{name}_standard_error"] = _rounded(standard_error, 3)
    subject = Subject(run, loss, {name: result[name] for name in terms}, errors, images.split("train"))
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
    worst: list[Outliers] = []
    if with_outliers:
        each = terms | {name: measured.each for name, measured in found.items() if measured.each is not None}
        names = (loss.likelihood_name, loss.bound_name) if config.parts.objective.bound else ()
        worst = worst_of(subject, split, key, each, next((name for name in names if name in each), None))
        result["outliers"] = {
            one.name: {"indices": one.places.tolist(), "values": [_rounded(value, 9) for value in one.values]}
            for one in worst
        }
    return _Evaluation(result, list(terms), found, worst)


def _draw_outliers(path: Path, evaluation: _Evaluation) -> None:
    """Write the picture of the outliers. Raises `SaveError`."""
    units = {"mse": "mse per pixel"}
    groups = [
        (
            f"{one.what}: {units.get(one.name, one.name + ', ' + evaluation.result['unit'])}",
            *(one.places, one.values, one.seen, one.reconstructed),
        )
        for one in evaluation.outliers
    ]
    title = (
        f"{evaluation.result['model']}: test images of {evaluation.result['dataset']}, each above its reconstruction"
    )
    with cli.saving("--outliers", path):
        plots.save_outliers(path, groups, title)


def _write_events(run_dir: Path, evaluation: _Evaluation, picture: Path | None) -> None:
    """Write all numbers, and the picture of the outliers, as TensorBoard events beside those of training."""
    from PIL import Image

    result = evaluation.result
    directory = run_dir / "tensorboard" / "evaluation"
    # A directory of its own: TensorBoard would drop the lines of training past the step of --best.
    with cli.saving("--tensorboard", directory), closing(Board(directory, result["step"])) as board:
        for name in (*evaluation.terms, *evaluation.found):
            value = result[name]
            if isinstance(value, list):
                for place, one in enumerate(value):
                    board.scalar(f"evaluation_{name}/{place}", one, result["step"])
            elif value is not None:
                board.scalar(f"evaluation/{name}", value, result["step"])
        if picture is not None:
            board.picture("evaluation/outliers", np.asarray(Image.open(picture).convert("RGB")), result["step"])


def _rounded(value: Any, digits: int) -> Any:
    return value if value is None or isinstance(value, list) else records.rounded(value, digits)


def metrics_of(names: Sequence[str], features: str | None = None) -> list[Metric]:
    """Metrics by their names in `ON_REQUEST`, or the user's own by ``package.module:Name``. Raises `InputError`.

    `features` is what `SampleQuality` is given.
    """
    found: list[Metric] = []
    if features is not None and "fid" not in names:
        raise InputError(f"--features {features} has no effect without --metric fid")
    for name in dict.fromkeys(names):
        if not is_own(name):
            if name not in ON_REQUEST:
                known = f"choose from {', '.join(ON_REQUEST)}, or name your own, module:Name"
                raise InputError(f"--metric {name}: {known}{suggestion(name, ON_REQUEST)}")
            found.append(SampleQuality(features) if name == "fid" else ON_REQUEST[name]())
            continue
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
    for flag, path in (("--json", arguments.json), ("--outliers", arguments.outliers)):
        if path is not None:
            cli.check_writable(flag, path)
    if arguments.outliers is not None and arguments.outliers.suffix.lower() != ".png":
        raise InputError(f"--outliers {arguments.outliers}: must end in .png")
    own = metrics_of(arguments.metric, arguments.features)
    compilation_cache.use(not arguments.no_compilation_cache)
    run = load_run(arguments.run_dir, arguments.best)
    where, drawn = (arguments.run_dir, arguments.dataset, arguments.data_dir), arguments.outliers
    evaluation = _measured(run, *where, arguments.samples, own, with_outliers=drawn is not None)
    print(table(evaluation))
    if drawn is not None:
        _draw_outliers(drawn, evaluation)
        print(f"outliers -> {drawn}")
    if arguments.tensorboard:
        _write_events(arguments.run_dir, evaluation, drawn)
    cli.save_json(arguments.json, evaluation.result)
    return cli.EXIT_OK


def table(evaluation: _Evaluation) -> str:
    """The metrics of an evaluation, a line each, with their units."""
    result = evaluation.result
    where = f"{result['images']:,} test images of {result['dataset']}"
    lines = [f"{result['model']} on {where}, step {result['step']:,}"]

    width = max([_WIDTH, *map(len, evaluation.found)])

    def add(name: str, unit: str, more: str = "") -> None:
        error = f" +- {result[e]:.2g}" if (e := f"{name}_standard_error") in result else ""
        lines.append(f"  {name:{width}} {result[name]:>10.6g}{error}{f' ({unit})' if unit else ''}{more}")

    for name in records.ordered(evaluation.terms):
        add(name, result["unit"])
    for name, measured in evaluation.found.items():
        if measured.value is None or isinstance(measured.value, list):
            lines.append(f"  {name:{width}} {measured.note or measured.value}")
        else:
            add(name, measured.unit, measured.note)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
