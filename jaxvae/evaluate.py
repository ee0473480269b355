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
    data_dir: str | None = None
    """Directory with the IDX files, where it is another than in training."""
    json: Path | None = None
    """File to write the figures to, as JSON."""


def evaluate_run(run_dir: Path, data_dir: str | None = None) -> dict[str, Any]:
    """The test figures of a run's newest checkpoint: a record of ``metrics.jsonl`` plus standard errors.

    The noise is that of the evaluations during training: the figures are those of its last test line.

    Raises:
      InputError: no run, an unreadable checkpoint, or images of another shape than it was trained on.
    """
    run = checkpoint.load_run(run_dir)
    images = data.load(run.config.dataset, data_dir or run.config.data_dir)
    if list(images.test.shape[1:]) != run.record["image_shape"]:
        raise InputError(f"{images.source}: images {list(images.test.shape[1:])}, not {run.record['image_shape']}")
    objective = OBJECTIVES[run.config.objective]
    evaluate = jax.jit(make_evaluate(run.model, objective))
    key = purpose_key(run.config.seed, "test-noise")
    losses = jax.device_get(evaluate(run.state.params, jnp.asarray(images.test), key))
    step = int(run.state.step)
    epoch = -(-step * run.config.batch_size // len(images.train))
    line = metrics.record(step, epoch, "test", objective.unit, losses)
    count = len(images.test)
    errors = {f"{k}_standard_error": float(f"{np.std(v, ddof=1) / count**0.5:.3g}") for k, v in losses.items()}
    return {"preset": run.config.preset, "dataset": images.name, "images": count, **line, **errors}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.evaluate", description=DESCRIPTION)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise InputError(f"--json {arguments.json}: no such directory")
    result = evaluate_run(arguments.run_dir, arguments.data_dir)
    where = f"{result['images']:,} test images of {result['dataset']}"
    print(f"{result['preset']} on {where}, step {result['step']:,}")
    for name in metrics.TERMS:
        if name in result:
            error = result[f"{name}_standard_error"]
            print(f"  {name:6} {result[name]:>10.6g} +- {error:.2g} ({result['unit']})")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
