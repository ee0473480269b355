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

from jaxvae import checkpoint, cli, data, metrics
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.keys import example_keys, purpose_key
from jaxvae.models import AutoEncoder, Draws, Model, Params, float32_products
from jaxvae.objectives import gaussian_kl_per_dimension, mse
from jaxvae.train_step import intensities, make_evaluate
from jaxvae.variational import binarize, build_objective, pixel_nll

DESCRIPTION = "Evaluate the newest checkpoint of a run on its test images, every image once."

ACTIVE = 0.01  # Variance of its posterior mean, above which a latent dimension is active: arXiv 1509.00519, section 5.
DISPATCHED = 200  # Images in one compiled call.
PIXELS_AT_ONCE = 2**22  # Of all images and draws that are in work: bounds the memory.

Array = jax.Array


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
    """The checkpoint with the lowest test loss rather than the newest."""
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
        x = intensities(images)
        if config.inputs == "dynamic":
            x = binarize(x, keys)

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

    Returns:
      "active_units": those the variance of whose posterior mean over the images is above `ACTIVE`;
      "latent_size"; "kl_per_dimension": nats, averaged over the images (of a one-layer model).
    """

    def of_batch(params: Params, images: Array, keys: Array) -> tuple[Array, Array]:
        x = intensities(images)
        if config.inputs == "dynamic":
            x = binarize(x, keys)
        posterior: Any = model.apply(params, x, method="encode")
        mean, std = posterior
        return mean, gaussian_kl_per_dimension(mean, std)

    size = min(len(images), max(1, PIXELS_AT_ONCE // math.prod(model.image_shape)))
    mean, kl = _in_batches(jax.jit(of_batch), params, images, key, size)
    statistics = {"active_units": int((mean.var(axis=0) > ACTIVE).sum()), "latent_size": mean.shape[1]}
    if config.architecture != "two-layer":
        statistics["kl_per_dimension"] = [float(f"{value:.6g}") for value in kl.mean(axis=0)]
    return statistics


def reconstruction_error(model: Model, config: Config, params: Params, images: NDArray[np.uint8], key: Array) -> float:
    """The notes' reconstruction error, in any objective: the mean squared error per pixel over all images."""

    def of_batch(params: Params, images: Array, keys: Array) -> Array:
        x = intensities(images)
        seen = binarize(x, keys) if config.inputs == "dynamic" else x
        output: Any = model.apply(params, seen, keys)
        return mse(output.x_hat, seen)

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
      nats besides: "elbo", of the model as it is, with a KL weight of 1; what `posterior_statistics`
      returns; and with `samples`, "log_likelihood" with its two standard errors: over the images, and
      from the finite number of latents.

    Raises:
      InputError: no run, an unreadable checkpoint, other test images than the run's, or `samples` for
        a model that has no likelihood.
    """
    run = checkpoint.load_run(run_dir, best)
    config, model, params = run.config, run.model, run.state.params
    if samples and not config.in_nats:
        raise InputError(f"--samples: {run_dir} was trained on the notes' {config.objective}, which is no likelihood")
    images = data.load(dataset or config.dataset, data_dir or config.data_dir)
    if config.inputs == "static":
        images = data.binarized(images, config.static_seed)
    # Weights that were imported know of no images.
    digest = run.record.get("test_images_sha256")
    if list(images.test.shape[1:]) != run.record["image_shape"] or digest not in (None, data.digest(images.test)):
        raise InputError(f"{images.source}: not the test images of {run_dir}")
    steps_per_epoch = run.record.get("steps_per_epoch", 1)
    objective = build_objective(config, steps_per_epoch, len(images.train))
    evaluate = jax.jit(make_evaluate(model, objective, binarized=config.inputs == "dynamic"))
    key = purpose_key(config.seed, "test-noise")
    losses = jax.device_get(evaluate(params, jnp.asarray(images.test), key))
    step, count = int(run.state.step), len(images.test)
    result = {
        "preset": config.preset,
        "dataset": images.name,
        "images": count,
        **metrics.record(step, -(-step // steps_per_epoch), "test", objective.unit, losses),
        **_standard_errors(losses),
        "mse": float(f"{reconstruction_error(model, config, params, images.test, key):.6g}"),
    }
    if not config.in_nats or isinstance(model, AutoEncoder):
        return result
    terms = {"elbo": -(losses["recon"] + losses["kl"])}
    if samples:
        terms["log_likelihood"], errors = log_likelihood(model, config, params, images.test, key, samples)
        result["samples"] = samples
        result["log_likelihood_sampling_error"] = float(f"{np.sqrt(np.square(errors).sum()) / count:.3g}")
    result |= {name: float(f"{np.mean(values, dtype=np.float64):.9g}") for name, values in terms.items()}
    result |= _standard_errors(terms)
    if config.likelihood == "logistic" or (config.likelihood == "bernoulli" and config.inputs != "grey"):
        # Of distributions of pixels that are discrete, as the data are.
        best_bound = result.get("log_likelihood", result["elbo"])
        result["bits_per_dimension"] = float(f"{-best_bound / (math.prod(model.image_shape) * math.log(2)):.6g}")
    return {**result, **posterior_statistics(model, config, params, images.test, key)}


def _standard_errors(terms: dict[str, Any]) -> dict[str, float]:
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
        arguments.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return cli.EXIT_OK


def table(result: dict[str, Any]) -> str:
    """The figures of `evaluate_run`, a line each, with their units."""
    where = f"{result['images']:,} test images of {result['dataset']}"
    lines = [f"{result['preset']} on {where}, step {result['step']:,}"]

    def add(name: str, unit: str, more: str = "") -> None:
        error = f" +- {result[e]:.2g}" if (e := f"{name}_standard_error") in result else ""
        lines.append(f"  {name:18} {result[name]:>10.6g}{error} ({unit}){more}")

    for name in metrics.TERMS:
        if name in result:
            add(name, result["unit"])
    if result["unit"] != "per pixel":
        add("mse", "per pixel")
    if "elbo" in result:
        add("elbo", "nats/image")
    if "log_likelihood" in result:
        sampling = f"; +- {result['log_likelihood_sampling_error']:.2g} from {result['samples']:,} latents an image"
        add("log_likelihood", "nats/image", sampling)
    if "bits_per_dimension" in result:
        lines.append(f"  {'bits_per_dimension':18} {result['bits_per_dimension']:>10.6g}")
    if "active_units" in result:
        lines.append(f"  {'active_units':18} {result['active_units']:>10} of {result['latent_size']}")
    if "kl_per_dimension" in result:
        highest = sorted(result["kl_per_dimension"], reverse=True)
        shown = " ".join(f"{value:.2f}" for value in highest[:10]) + (" ..." if len(highest) > 10 else "")
        lines.append(f"  {'kl_per_dimension':18} {shown} (nats, highest first)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
