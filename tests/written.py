"""A VAE without hidden layers, written out in NumPy, float64."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from small import SHAPE, config_of, keys_of

from jaxvae.models.build import build_model


class Densities(NamedTuple):
    """Of latents z [B, S, L] drawn for images: all [B, S], but for the posterior's mean and std [B, L]."""

    log_px: NDArray[np.float64]
    log_ratio: NDArray[np.float64]
    z: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def _drawn(samples: int) -> tuple[jax.Array, jax.Array]:
    """Keys of five images, and the noise of their latents."""
    keys = keys_of(0, 5)
    return keys, jax.vmap(lambda k: jax.random.normal(k, (samples, 3)))(keys)


class Written:
    """A configuration's model and parameters, some images, and what is drawn for them with some keys."""

    def __init__(self, objective: str, samples: int, **changes: Any):
        self.config = config_of(objective, samples=samples, hidden=(), head="exp", **changes)
        rng = np.random.default_rng(1)
        self.model = build_model(self.config, SHAPE)
        sizes = {"encoder": (12, 6), "decoder": (3, 12)}
        self.params: Any = {
            "params": {
                side: {
                    "mlp": {
                        "dense_0": {
                            "bias": np.float32(rng.uniform(-0.3, 0.3, shape[1])),
                            "kernel": np.float32(rng.uniform(-0.3, 0.3, shape)),
                        }
                    }
                }
                for side, shape in sizes.items()
            }
        }
        self.x = np.float32(rng.uniform(size=(5, *SHAPE)))
        self.keys, eps = jax.jit(_drawn, static_argnums=0)(samples)
        self._eps = np.float64(eps)
        leaves, self._structure = jax.tree.flatten(self.params)
        self._shapes = [leaf.shape for leaf in leaves]
        self.start = flat(self.params)

    def densities(self, latents: Any, posterior: Any, decoder: Any) -> Densities:
        """With the latents of one vector of parameters, the posterior's density and the decoder of two others."""
        pixels = np.float64(self.x).reshape(5, 1, -1)

        def layer(vector: Any, side: str) -> Any:
            ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
            parts = [p.reshape(s) for p, s in zip(np.split(vector, ends), self._shapes, strict=True)]
            return jax.tree.unflatten(self._structure, parts)["params"][side]["mlp"]["dense_0"]

        def encode(vector: Any) -> Any:
            mean, log_std = np.split(
                pixels @ layer(vector, "encoder")["kernel"] + layer(vector, "encoder")["bias"], 2, -1
            )
            return mean, np.exp(log_std)

        mean, std = encode(latents)
        z = mean + std * self._eps
        logits = z @ layer(decoder, "decoder")["kernel"] + layer(decoder, "decoder")["bias"]
        log_px = (pixels * logits - np.logaddexp(0, logits)).sum(-1)
        log_ratio = (stats.norm.logpdf(z) - stats.norm.logpdf(z, *encode(posterior))).sum(-1)
        return Densities(log_px, log_ratio, z, mean[:, 0], std[:, 0])


def flat(tree: Any) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def double_sum(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The unbiased squared mean discrepancy of two samples [N, 3], pair by pair."""

    def kernel(x: Any, y: Any) -> float:
        return math.exp(-((x - y) ** 2).sum() / 3)

    count = len(a)
    pairs = [(i, j) for i in range(count) for j in range(count)]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs if i != j) / (count * (count - 1))
    return within - 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / count**2


def stratified(z: Any, mean: Any, std: Any, num_images: int) -> NDArray[np.float64]:
    """The estimate of the total correlation at latents [B, L], image by image."""
    count = len(z)
    q = np.array([[stats.norm.pdf(z[i], mean[j], std[j]) for j in range(count)] for i in range(count)])

    def mixed(densities: Any) -> Any:
        others = [np.delete(densities[i], i, axis=0).mean(axis=0) for i in range(count)]
        own = 1 / num_images
        return np.array([own * densities[i, i] + (1 - own) * others[i] for i in range(count)])

    return np.log(mixed(q.prod(axis=-1))) - np.log(mixed(q)).sum(axis=-1)
