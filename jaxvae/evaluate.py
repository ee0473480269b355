"""Evaluate a run on the real test split: ``python -m jaxvae.evaluate RUN_DIR``."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxvae import checkpoint, cli, data, metrics
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.objectives import OBJECTIVES
from jaxvae.train_step import make_evaluate

DESCRIPTION = "Evaluate the newest checkpoint of a run on its test images, every image once."


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to evaluate."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    dataset: str | None = None
    """The dataset, where its path is another than in training; the test images must be the same."""
    data_dir: str | None = None
    """Directory of its IDX files, where it is another than in training."""
    json: Path | None = None
    """File to write the figures to, as JSON."""


def evaluate_run(run_dir: Path, dataset: str | None = None, data_dir: str | None = None) -> dict[str, Any]:
    """The test figures of a run's newest checkpoint: a record of ``metrics.jsonl`` plus standard errors.

    The noise is that of the evaluations during training: the figures are those of its last test line.

    Raises:
      InputError: no run, an unreadable checkpoint, or other test images than the run's.
    """
    run = checkpoint.load_run(run_dir)
    images = data.load(dataset or run.config.dataset, data_dir or run.config.data_dir)
    # Weights that were imported know of no images.
    digest = run.record.get("test_images_sha256")
    if list(images.test.shape[1:]) != run.record["image_shape"] or digest not in (None, data.digest(images.test)):
        raise InputError(f"{images.source}: not the test images of {run_dir}")
    objective = OBJECTIVES[run.config.objective]
    evaluate = jax.jit(make_evaluate(run.model, objective))
    key = purpose_key(run.config.seed, "test-noise")
    losses = jax.device_get(evaluate(run.state.params, jnp.asarray(images.test), key))
    step, count = int(run.state.step), len(images.test)
    epoch = -(-step // run.record.get("steps_per_epoch", 1))
    line = metrics.record(step, epoch, "test", objective.unit, losses)
    errors = {f"{k}_standard_error": float(f"{np.std(v, ddof=1) / count**0.5:.3g}") for k, v in losses.items()}
    return {
        "preset": run.config.preset,
        "dataset": images.name,
        "images": count,
        **line,
        **(errors if count > 1 else {}),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.evaluate", description=DESCRIPTION)
    if arguments.json is not None:
        cli.check_writable("--json", arguments.json)
    result = evaluate_run(arguments.run_dir, arguments.dataset, arguments.data_dir)
    where = f"{result['images']:,} test images of {result['dataset']}"
    print(f"{result['preset']} on {where}, step {result['step']:,}")
    for name in metrics.TERMS:
        if name in result:
            error = f" +- {result[e]:.2g}" if (e := f"{name}_standard_error") in result else ""
            print(f"  {name:6} {result[name]:>10.6g}{error} ({result['unit']})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
