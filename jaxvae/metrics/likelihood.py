"""The likelihood of images under a model, by importance sampling, and their bits per dimension."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxvae import chunks
from jaxvae.errors import InputError
from jaxvae.metrics.subject import Subject, mean_and_error
from jaxvae.options import COUNT, option
from jaxvae.protocols import Measured, Metric
from jaxvae.run.records import rounded
from jaxvae.train.step import as_batch
from jaxvae.typing import Array, Batch, Params

DISPATCHED = 200  # Images in one compiled call.


def log_likelihood(
    subject: Subject, images: Mapping[str, NDArray[Any]], key: Array, samples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log p(x) of each image by importance sampling, with exactly `samples` latents from the posterior.

    ``log (1/K) sum_k p(x, z_k) / q(z_k | x)``: Rezende, Mohamed and Wierstra (arXiv 1401.4082), appendix E.
    In expectation it is a lower bound, which becomes tight as K grows. Memory does not grow with K.

    Args:
      subject: a model trained in nats.
      images: a split; its arrays include uint8 "image" [N, H, W, C].
      key: of all the draws; those of an image are a function of its place.
      samples: K.

    Returns:
      The estimates [N], in nats, and their standard errors [N] with K draws (delta method).
    """
    per_image = math.prod(images["image"].shape[1:])
    chunk = min(samples, max(1, chunks.PIXELS_AT_ONCE // per_image))  # Its draws have one key, so on every machine.
    batch_size = chunks.chunk_size(images, draws=chunk)

    def of_batch(variables: Params, batch: Batch, keys: Array) -> tuple[Array, Array]:
        view, seen = subject.view(variables), as_batch(batch)
        x = subject.loss.inputs.observe(seen["image"], keys)

        def more(sums: tuple[Array, Array, Array], first: Array) -> tuple[tuple[Array, Array, Array], None]:
            """The greatest log-weight so far, and the sums of the weights and of their squares relative to it."""
            drawn = jax.vmap(lambda k: jax.random.fold_in(k, first))(keys)
            draws = view.draw({**seen, "image": x}, drawn, chunk)
            log_w = draws.log_prior - draws.log_posterior - view.nll(draws.pixels, x)
            # The last chunk's surplus does not count.
            log_w = jnp.where(first + jnp.arange(chunk)[None] < samples, log_w, -jnp.inf)
            greatest, total, squares = sums
            new = jnp.maximum(greatest, log_w.max(axis=1))
            shrink, weights = jnp.exp(greatest - new), jnp.exp(log_w - new[:, None])
            total = total * shrink + weights.sum(axis=1)
            return (new, total, squares * jnp.square(shrink) + jnp.square(weights).sum(axis=1)), None

        zeros = jnp.zeros(x.shape[0])
        start = (jnp.full(x.shape[0], -jnp.inf), zeros, zeros)
        (greatest, total, squares), _ = jax.lax.scan(more, start, jnp.arange(-(-samples // chunk)) * chunk)
        relative = jnp.maximum(squares / jnp.square(total) - 1 / samples, 0)
        return greatest + jnp.log(total) - math.log(samples), jnp.sqrt(relative)

    def of_images(variables: Params, batch: Batch, keys: Array) -> tuple[Array, Array]:
        """Many images in one dispatch, `batch_size` at a time."""

        def one(example_and_key: tuple[Batch, Array]) -> tuple[Array, Array]:
            example, its_key = jax.tree.map(lambda a: a[None], example_and_key)
            estimate, error = of_batch(variables, example, its_key)
            return estimate[0], error[0]

        estimates: tuple[Array, Array] = jax.lax.map(one, (dict(batch), keys), batch_size=batch_size)
        return estimates

    count = min(len(images["image"]), DISPATCHED)
    estimates, errors = chunks.in_chunks(jax.jit(of_images), subject.variables, images, key, count)
    return estimates, errors


def error_of_mean(errors: NDArray[np.float64]) -> float:
    """The standard error of the mean of N independent estimates with standard errors [N]."""
    return float(np.sqrt(np.square(errors).sum()) / len(errors))


def bits_per_dimension(log_p: float, num_values: int) -> float:
    """An image's log-probability, in nats, as bits for each of its pixels and channels."""
    return -log_p / (num_values * math.log(2))


@dataclass(frozen=True)
class LogLikelihood(Metric):
    """The estimate of log p(x), and bits per dimension if p(x) is a probability: of that, or else of the bound."""

    samples: int = option(0, COUNT)
    """Estimate log p(x) too, with this many latents per image; papers use 5000. VAEs in nats only."""

    def check(self, config: Any) -> None:
        """See `Component`."""
        if self.samples and not self.applies(config):
            raise InputError(f"--samples: the model was trained on {config.objective}, which has no likelihood")
        if self.samples and config.parts.objective.point_posterior:
            raise InputError(f"--samples has no effect with --objective {config.objective}: an image has one latent")

    def applies(self, config: Any) -> bool:
        """See `Metric`."""
        return bool(config.parts.objective.bound)

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`."""
        loss, found = subject.loss, dict[str, Measured]()
        log_p, standard_error = subject.terms[loss.bound_name], subject.errors.get(loss.bound_name)
        if self.samples:
            estimates, errors = log_likelihood(subject, images, key, self.samples)
            log_p, standard_error = mean_and_error(estimates)
            # One latent says nothing about the error.
            sampling = error_of_mean(errors) if self.samples > 1 else None
            error = "" if sampling is None else f"; +- {sampling:.2g}"
            name = loss.likelihood_name
            found[name] = Measured(
                log_p,
                "nats/image",
                standard_error,
                f"{error or ';'} from {self.samples:,} latent{'s' if self.samples > 1 else ''} an image",
                {"samples": self.samples, f"{name}_sampling_error": None if sampling is None else rounded(sampling, 3)},
                estimates,
            )
        if loss.measure == "probability":
            size = math.prod(images["image"].shape[1:])
            bits = None if standard_error is None else bits_per_dimension(-standard_error, size)
            found["bits_per_dimension"] = Measured(bits_per_dimension(log_p, size), standard_error=bits)
        return found
