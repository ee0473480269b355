"""Evaluate a run on the real test split: ``python -m jaxvae.evaluate RUN_DIR``."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray

from jaxvae import cli, data, trained
from jaxvae.config import Config, describe
from jaxvae.data.noise import observe
from jaxvae.errors import InputError, SaveError
from jaxvae.keys import example_keys, purpose_key
from jaxvae.models.models import Draws, Model, Params, TwoLayerVAE, float32_products
from jaxvae.objectives.objectives import gaussian_kl_per_dimension, mse
from jaxvae.objectives.variational import (
    LIKELIHOODS,
    bound_name,
    build_objective,
    likelihood_name,
    measure,
    measure_warning,
    pixel_nll,
)
from jaxvae.run import records
from jaxvae.train.evaluation import evaluate_images
from jaxvae.train.step import intensities

DESCRIPTION = "Evaluate the newest checkpoint of a run on its test images, every image once."

ACTIVE = 0.01  # Variance of its posterior mean, above which a latent dimension is active: arXiv 1509.00519, section 5.
UPPER_SAMPLES = 50  # Of the lower layer, for the posterior mean of the upper one.
DISPATCHED = 200  # Images in one compiled call.
PIXELS_AT_ONCE = 2**22  # Of all images and draws that are in work: bounds the memory.

Array = jax.Array

_WIDTH = 27  # Of the longest name in a table.


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to evaluate."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    dataset: str | None = None
    """The dataset, where its path is another than in training; the test images must be the same."""
    data_dir: str | None = None
    """Directory of its IDX files, where it is another than in training."""
    best: bool = False
    """The best checkpoint by the validation images, not the newest. The run needs --validation."""
    samples: int = 0
    """Estimate log p(x) too, with so many latents an image, as papers do with 5000. VAEs in nats only."""
    json: Path | None = None
    """File to write the figures to, as JSON."""


def log_likelihood(
    model: Model, config: Config, params: Params, images: NDArray[np.uint8], key: Array, samples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log p(x) of each image by importance sampling, with exactly `samples` latents from the posterior.

    ``log (1/K) sum_k p(x, z_k) / q(z_k | x)``: Rezende, Mohamed and Wierstra (arXiv 1401.4082), appendix E.
    In expectation it is a lower bound, which is tight as K grows. Memory does not grow with K.

    Args:
      model, config, params: a `VAE` or `TwoLayerVAE`, trained in nats.
      images: uint8 [N, H, W, C].
      key: of all the draws; those of an image are a function of its place.
      samples: K.

    Returns:
      The estimates [N], in nats, and the standard errors [N] that K leaves them (delta method).
    """
    per_image = math.prod(model.image_shape)
    chunk = min(samples, max(1, PIXELS_AT_ONCE // per_image))
    batch = min(len(images), max(1, PIXELS_AT_ONCE // (per_image * chunk)))
    chunks = -(-samples // chunk)

    def of_batch(params: Params, images: Array, keys: Array) -> tuple[Array, Array]:
        x = observe(config)(intensities(images), keys)

        def more(sums: tuple[Array, Array, Array], first: Array) -> tuple[tuple[Array, Array, Array], None]:
            """The greatest log-weight so far, and the sums of the weights and of their squares relative to it."""
            drawn = jax.vmap(lambda k: jax.random.fold_in(k, first))(keys)
            draws: Draws = model.apply(params, x, drawn, chunk, method="draw")  # type: ignore[assignment]
            log_w = draws.log_prior - draws.log_posterior - pixel_nll(draws.pixels, x, config)
            # The last chunk's surplus does not count.
            log_w = jnp.where(first + jnp.arange(chunk)[None] < samples, log_w, -jnp.inf)
            greatest, total, squares = sums
            new = jnp.maximum(greatest, log_w.max(axis=1))
            shrink, weights = jnp.exp(greatest - new), jnp.exp(log_w - new[:, None])
            total = total * shrink + weights.sum(axis=1)
            return (new, total, squares * jnp.square(shrink) + jnp.square(weights).sum(axis=1)), None

        zeros = jnp.zeros(x.shape[0])
        start = (jnp.full(x.shape[0], -jnp.inf), zeros, zeros)
        (greatest, total, squares), _ = jax.lax.scan(more, start, jnp.arange(chunks) * chunk)
        relative = jnp.maximum(squares / jnp.square(total) - 1 / samples, 0)
        return greatest + jnp.log(total) - math.log(samples), jnp.sqrt(relative)

    def of_images(params: Params, images: Array, keys: Array) -> tuple[Array, Array]:
        """Many images in one dispatch, `batch` at a time."""

        def one(image_and_key: tuple[Array, Array]) -> tuple[Array, Array]:
            image, image_key = image_and_key
            estimate, error = of_batch(params, image[None], image_key[None])
            return estimate[0], error[0]

        estimates: tuple[Array, Array] = jax.lax.map(one, (images, keys), batch_size=batch)
        return estimates

    estimates, errors = _in_batches(jax.jit(of_images), params, images, key, min(len(images), DISPATCHED))
    return estimates, errors


@float32_products
def _in_batches(
    run: Callable[[Params, Array, Array], Any], params: Params, images: NDArray[np.uint8], key: Array, size: int
) -> Any:
    """``run(params, images, keys)`` on all images, in batches of one size; its arrays, float64 on the host."""
    parts = []
    for first in range(0, len(images), size):
        batch = images[first : first + size]
        # The last batch is filled up with copies of its last image, which are cut off again.
        full = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        result = run(params, jnp.asarray(full), example_keys(key, first, size))
        parts.append(jax.tree.map(lambda a: np.asarray(a, np.float64), result))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(images)], *parts)


def posterior_statistics(
    model: Model, config: Config, params: Params, images: NDArray[np.uint8], key: Array
) -> dict[str, Any]:
    """How many latent dimensions are in use, and what each costs.

    A dimension u is active where ``Var_x(E_q(u | x)[u]) > ACTIVE``: Burda, Grosse and Salakhutdinov (arXiv
    1509.00519), section 5. Of the upper layer of two, E_q(h1 | x)[E_q(h2 | h1)[h2]] is estimated with
    `UPPER_SAMPLES` draws of h1, and what their variance adds to that over the images is subtracted. (The authors'
    code takes one draw, and subtracts nothing.)

    Returns:
      "active_units" and "latent_sizes": lists of a number for each layer, from the image up;
      "kl_per_dimension": nats, averaged over the images (of a one-layer model).
    """
    two_layers = isinstance(model, TwoLayerVAE)

    def of_batch(params: Params, images: Array, keys: Array) -> dict[str, Array]:
        x = observe(config)(intensities(images), keys)
        posterior: Any = model.apply(params, x, method="encode")
        mean, std = posterior
        if not two_layers:
            return {"mean": mean, "kl": gaussian_kl_per_dimension(mean, std)}
        eps = jax.vmap(lambda k: jax.random.normal(k, (UPPER_SAMPLES, mean.shape[-1]), mean.dtype))(keys)
        upper: Any = model.apply(params, mean[:, None] + std[:, None] * eps, method="encode_upper")
        upper_means = upper[0]
        spread = upper_means.var(axis=1, ddof=1) / UPPER_SAMPLES
        return {"mean": mean, "upper_mean": upper_means.mean(axis=1), "upper_spread": spread}

    per_image = math.prod(model.image_shape) * (UPPER_SAMPLES if two_layers else 1)
    found = _in_batches(jax.jit(of_batch), params, images, key, min(len(images), max(1, PIXELS_AT_ONCE // per_image)))
    variances = [found["mean"].var(axis=0)]
    if two_layers:
        variances.append(found["upper_mean"].var(axis=0) - found["upper_spread"].mean(axis=0))
    statistics: dict[str, Any] = {
        "active_units": [int((variance > ACTIVE).sum()) for variance in variances],
        "latent_sizes": [len(variance) for variance in variances],
    }
    if not two_layers:
        statistics["kl_per_dimension"] = [float(f"{value:.6g}") for value in found["kl"].mean(axis=0)]
    return statistics


def reconstruction_error(model: Model, config: Config, params: Params, images: NDArray[np.uint8], key: Array) -> float:
    """The notes' reconstruction error, in any objective: the mean squared error per pixel over all images."""

    def of_batch(params: Params, images: Array, keys: Array) -> Array:
        x = observe(config)(intensities(images), keys)
        output: Any = model.apply(params, x, keys)
        return mse(output.x_hat, x)

    size = min(len(images), max(1, PIXELS_AT_ONCE // math.prod(model.image_shape)))
    return float(_in_batches(jax.jit(of_batch), params, images, key, size).mean())


def evaluate_run(
    run_dir: Path,
    dataset: str | None = None,
    data_dir: str | None = None,
    best: bool = False,
    samples: int = 0,
) -> dict[str, Any]:
    """The test figures of a run's newest checkpoint (or its best): a record of ``metrics.jsonl``, and more.

    The noise is that of the evaluations during training: the figures are those of its last test line.

    Returns:
      A record of ``metrics.jsonl`` with standard errors over the images; "mse", per pixel. For VAEs in
      nats besides: what `posterior_statistics` returns; with `samples`, the estimate of log p(x), under its
      `likelihood_name`, with its two standard errors: over the images, and from the finite number of latents;
      and where p(x) is a probability, "bits_per_dimension", of that estimate or else of the bound.

    Raises:
      InputError: no run, an unreadable checkpoint, other test images than the run's, or `samples` for
        a model that has no likelihood.
    """
    run = trained.load_run(run_dir, best)
    config, model, params = run.config, run.model, run.state.params
    if samples and not config.in_nats:
        raise InputError(f"--samples: {run_dir} was trained on the notes' {config.objective}, which is no likelihood")
    if (warning := measure_warning(config)) is not None:
        print(warning, file=sys.stderr)
    images = data.load(dataset or config.dataset, data_dir or config.data_dir)
    if config.inputs == "static":
        images = data.binarized(images, config.static_seed)
    # Weights that were imported know of no images.
    digest = run.record.get("test_images_sha256")
    if list(images.test.shape[1:]) != run.record["image_shape"] or digest not in (None, data.digest(images.test)):
        raise InputError(f"{images.source}: not the test images of {run_dir}")
    steps_per_epoch = run.record.get("steps_per_epoch", 1)
    objective = build_objective(config, steps_per_epoch, len(images.train))
    key = purpose_key(config.seed, "test-noise")
    losses = evaluate_images(model, objective, params, images.test, key)
    step, count = int(run.state.step), len(images.test)
    result = {
        "preset": config.preset,
        "model": describe(config),
        "dataset": images.name,
        "images": count,
        **records.record(step, -(-step // steps_per_epoch), "test", objective.unit, losses),
        **standard_errors(losses),
        "mse": float(f"{reconstruction_error(model, config, params, images.test, key):.6g}"),
    }
    if not config.in_nats:
        return result
    bound = result[bound_name(config)]
    if samples:
        name = likelihood_name(config)
        log_p, errors = log_likelihood(model, config, params, images.test, key, samples)
        bound = result[name] = float(f"{log_p.mean():.9g}")
        result |= standard_errors({name: log_p})
        result["samples"] = samples
        result[f"{name}_sampling_error"] = float(f"{error_of_mean(errors):.3g}")
    if measure(config) == "probability":
        result["bits_per_dimension"] = float(f"{bits_per_dimension(bound, model.image_shape):.6g}")
    return {**result, **posterior_statistics(model, config, params, images.test, key)}


def bits_per_dimension(log_p: float, image_shape: Sequence[int]) -> float:
    """An image's log-probability, in nats, as bits for each of its pixels and colours to encode it."""
    return -log_p / (math.prod(image_shape) * math.log(2))


def error_of_mean(errors: NDArray[np.float64]) -> float:
    """The standard error of the mean of N independent estimates with standard errors [N]."""
    return float(np.sqrt(np.square(errors).sum()) / len(errors))


def standard_errors(terms: dict[str, Any]) -> dict[str, float]:
    """Of the mean over the images, a figure for each term; none for one image alone."""
    return {
        f"{name}_standard_error": float(f"{np.std(values, ddof=1, dtype=np.float64) / len(values) ** 0.5:.3g}")
        for name, values in terms.items()
        if len(values) > 1
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    arguments = cli.parse(Arguments, args, prog="python -m jaxvae.evaluate", description=DESCRIPTION)
    if arguments.samples < 0:
        raise InputError(f"--samples must not be negative, not {arguments.samples}")
    if arguments.json is not None:
        cli.check_writable("--json", arguments.json)
    result = evaluate_run(arguments.run_dir, arguments.dataset, arguments.data_dir, arguments.best, arguments.samples)
    print(table(result))
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise SaveError(f"--json {arguments.json} cannot be written: {error.strerror}") from None
    return cli.EXIT_OK


def table(result: dict[str, Any]) -> str:
    """The figures of `evaluate_run`, a line each, with their units."""
    where = f"{result['images']:,} test images of {result['dataset']}"
    lines = [f"{result['model']} on {where}, step {result['step']:,}"]

    def add(name: str, unit: str, more: str = "") -> None:
        error = f" +- {result[e]:.2g}" if (e := f"{name}_standard_error") in result else ""
        lines.append(f"  {name:{_WIDTH}} {result[name]:>10.6g}{error} ({unit}){more}")

    for name in records.TERMS:
        if name in result:
            add(name, result["unit"])
    if result["unit"] != "per pixel":
        add("mse", "per pixel")
    for name in LIKELIHOODS.values():
        if name in result:
            sampling = f"; +- {result[f'{name}_sampling_error']:.2g} from {result['samples']:,} latents an image"
            add(name, "nats/image", sampling)
    if "bits_per_dimension" in result:
        lines.append(f"  {'bits_per_dimension':{_WIDTH}} {result['bits_per_dimension']:>10.6g}")
    if "active_units" in result:
        layers = zip(result["active_units"], result["latent_sizes"], strict=True)
        lines.append(f"  {'active_units':{_WIDTH}} " + ", then ".join(f"{active} of {size}" for active, size in layers))
    if "kl_per_dimension" in result:
        highest = sorted(result["kl_per_dimension"], reverse=True)
        shown = " ".join(f"{value:.2f}" for value in highest[:10]) + (" ..." if len(highest) > 10 else "")
        lines.append(f"  {'kl_per_dimension':{_WIDTH}} {shown} (nats, highest first)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
