"""Do the tests notice? One change at a time to a copy of jaxvae, and the test that must fail.

    python experiments/mutations/mutations.py

Expected: the unchanged copy passes, and every change is caught. Measured for all but the changes of gated layers,
learned priors, capacity and rae: so, in half an hour on two cores that had three times as much other work.

Each entry of `MUTATIONS` alters one term, sign, constant, activation, constant of Adam, or property of the initial
weights: first those of the notes, which tests/test_parity.py compares with PyTorch, then those of the other
objectives, likelihoods, bounds and estimators, which are compared with NumPy and SciPy. It is caught if the test it
names fails with a failed assertion; a copy that does not even import, or a test that crashes, does not count.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PARITY = "experiments/parity/reference"
COPIED = ("pyproject.toml", "jaxvae", "tests", f"{PARITY}.py", f"{PARITY}.json")
PROCESSES = 2
_PROCESSES = multiprocessing.get_context("forkserver")  # Each begins where the libraries are imported already.
_PROCESSES.set_forkserver_preload(["flax.linen", "hypothesis.strategies", "optax", "pytest", "scipy.stats", "tyro"])


class Mutation(NamedTuple):
    """`old`, which occurs once in all of jaxvae, becomes `new`; `test`, as FILE::NAME, must fail."""

    name: str
    old: str
    new: str
    test: str


def _by(file: str, test: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """Mutations that one test, in tests/test_`file`.py, must catch."""
    return [Mutation(name, old, new, f"tests/test_{file}.py::{test}") for name, old, new in changes]


def _of(whole: str, *changes: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    """Changes of parts of a text that is found as a whole."""
    return [(name, whole, whole.replace(old, new)) for name, old, new in changes]


_SPLIT = "first, second = jnp.split(features, 2, axis=-1)"
_HALVES = "return relu(first), relu(second)"
_UNIFORM = "jax.random.uniform(key, shape, dtype, -limit, limit)"
_RECON = 'recon = view.nll(drawn.pixels, batch["image"]).mean(axis=1)\n'
_KL = "        kl = drawn.kl.sum(axis=-1)\n"
_TERMS = '"recon": recon, "kl": kl, "bound": -(recon + kl)}'
_ELBO = f'return {{"loss": recon + weight * cost, {_TERMS}'
_INFO = f'terms = {{"loss": recon + weight * cost, {_TERMS}'
_BETA_TC = f'keep their weight of 1.\n        terms = {{"loss": recon + kl, {_TERMS}'


def _x_hat(fields: str, pixels: str) -> str:
    """The property of an output, told apart by the field before it."""
    return f'''    {fields}: Float[Array, "B L"]

    @property
    def x_hat(self) -> Float[Array, "B H W C"]:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return {pixels}'''


MUTATIONS: tuple[Mutation, ...] = (
    # The formulas.
    *_by(
        "parity",
        "test_mse",
        ("mse: sign", "jnp.square(x_hat - x)", "jnp.square(x_hat + x)"),
        ("mse: not squared", "jnp.square(x_hat - x)", "jnp.abs(x_hat - x)"),
        ("mse: not averaged", "sum_per_example(error) / (error.size // error.shape[0])", "sum_per_example(error)"),
        ("mse: over the batch's pixels", "(error.size // error.shape[0])", "error.size"),
    ),
    *_by(
        "parity",
        "test_kld",
        ("kld: 0.5", "0.5 * sum_per_example(twice", "1.0 * sum_per_example(twice"),
        ("kld: sign", "0.5 * sum_per_example(twice", "-0.5 * sum_per_example(twice"),
        ("kld: mean^2 dropped", "jnp.square(mean) + variance - ", "variance - "),
        ("kld: mean^2 sign", "jnp.square(mean) + variance - ", "variance - jnp.square(mean) - "),
        ("kld: mean not squared", "jnp.square(mean) + variance - ", "mean + variance - "),
        ("kld: sigma^2 dropped", "jnp.square(mean) + variance - ", "jnp.square(mean) - "),
        ("kld: sigma^2 sign", "jnp.square(mean) + variance - ", "jnp.square(mean) - variance - "),
        ("kld: sigma not squared", "variance = jnp.square(std)", "variance = std"),
        ("kld: log dropped", " - jnp.log(1e-8 + variance) - 1", " - 1"),
        ("kld: log's sign", " - jnp.log(1e-8 + variance) - 1", " + jnp.log(1e-8 + variance) - 1"),
        ("kld: log of sigma", "jnp.log(1e-8 + variance)", "jnp.log(1e-8 + std)"),
        ("kld: 1e-8 is 1e-7", "jnp.log(1e-8 + variance)", "jnp.log(1e-7 + variance)"),
        ("kld: 1e-8 is a floor", "jnp.log(1e-8 + variance)", "jnp.log(jnp.maximum(1e-8, variance))"),
        ("kld: 1e-8 outside the square", "jnp.log(1e-8 + variance)", "jnp.log(jnp.square(1e-8 + std))"),
        ("kld: -1 dropped", "jnp.log(1e-8 + variance) - 1", "jnp.log(1e-8 + variance)"),
        ("kld: -1 is +1", "jnp.log(1e-8 + variance) - 1", "jnp.log(1e-8 + variance) + 1"),
        ("kld: 784 dropped", "(mean, std)) / num_pixels", "(mean, std))"),
    ),
    *_by(
        "parity",
        "test_objectives_are_the_notes_losses",
        ("loss: kld's sign", "recon + 1.0 * kl", "recon - 1.0 * kl"),
        ("loss: kld's weight", "recon + 1.0 * kl", "recon + 0.5 * kl"),
        ("loss: kld dropped", "recon + 1.0 * kl", "recon"),
        ("loss: mse dropped", "recon + 1.0 * kl", "1.0 * kl"),
        ("loss: 784 is the batch's pixels", "num_pixels=x[0].size", "num_pixels=x.size"),
        ("loss: 784 is the latent size", "num_pixels=x[0].size", "num_pixels=output.mean[0].size"),
    ),
    # The models.
    *_by(
        "parity",
        "test_reconstructions_and_samples_are_those_of_the_notes",
        *(
            (f"{part}: ReLU {i} dropped", "            if i:", f"            if i and (self.path[0], i) != {part, i}:")
            for part in ("encoder", "decoder")
            for i in (1, 2)
        ),
        ("ReLU is GELU", '"relu": nn.relu,', '"relu": nn.gelu,'),
        ("ReLU is leaky", '"relu": nn.relu,', '"relu": nn.leaky_relu,'),
        ("ReLU after the last layer", "        return x\n\n\ndef at", "        return nn.relu(x)\n\n\ndef at"),
        ("autoencoder: code without ReLU", 'nn.relu(features) if self.head == "relu" else features', "features"),
        ("VAE: mean and sigma without ReLU", _HALVES, "return first, second"),
        ("VAE: mean without ReLU", _HALVES, "return first, relu(second)"),
        ("VAE: sigma without ReLU", _HALVES, "return relu(first), second"),
        ("VAE: sigma is exponential", _HALVES, "return relu(first), jnp.exp(relu(second))"),
        ("VAE: halves swapped", _SPLIT, _SPLIT.replace("first, second", "second, first")),
        (
            "VAE: halves interleaved",
            _SPLIT,
            "first, second = features.reshape(len(features), -1, 2).transpose(2, 0, 1)",
        ),
        ("sample: no sigmoid", "intensities: Array = nn.sigmoid(logits)", "intensities: Array = logits"),
        ("sample: sigmoid is tanh", "intensities: Array = nn.sigmoid(logits)", "intensities: Array = jnp.tanh(logits)"),
        *(
            (f"{name}: {what}", _x_hat(field, "nn.sigmoid(self.logits)"), _x_hat(field, new))
            for name, field in (("autoencoder", "latent"), ("VAE", "std"))
            for what, new in (("no sigmoid", "self.logits"), ("sigmoid is tanh", "jnp.tanh(self.logits)"))
        ),
    ),
    *_by(
        "parity",
        "test_noise_is_normal_scaled_by_sigma",
        ("noise: sign", "return mean + std * eps\n", "return mean - std * eps\n"),
        ("noise: mean dropped", "return mean + std * eps\n", "return std * eps\n"),
        ("noise: sigma dropped", "return mean + std * eps\n", "return mean + eps\n"),
        ("noise: eps dropped", "return mean + std * eps\n", "return mean + std\n"),
        ("noise: variance for sigma", "return mean + std * eps\n", "return mean + std**2 * eps\n"),
        ("noise: uniform, a key each", "jax.random.normal(k, mean.shape[1:]", "jax.random.uniform(k, mean.shape[1:]"),
        ("noise: uniform, one key", "jax.random.normal(key, mean.shape, ", "jax.random.uniform(key, mean.shape, "),
    ),
    # The initial weights.
    *_by(
        "parity",
        "test_initial_weights_are_uniform_within_one_over_root_fan_in",
        ("init: bound of He", "limit = fan_in**-0.5", "limit = (6 / fan_in) ** 0.5"),
        ("init: bound 5 % larger", "limit = fan_in**-0.5", "limit = 1.05 * fan_in**-0.5"),
        ("init: bound 5 % smaller", "limit = fan_in**-0.5", "limit = 0.95 * fan_in**-0.5"),
        ("init: fan_out", "init = uniform_fan_in(x.shape[-1])", "init = uniform_fan_in(width)"),
        ("init: normal", _UNIFORM, "limit * 3**-0.5 * jax.random.normal(key, shape, dtype)"),
        ("init: truncated normal", _UNIFORM, "limit * jax.random.truncated_normal(key, -1, 1, shape, dtype)"),
        ("init: not negative", "dtype, -limit, limit)", "dtype, 0.0, limit)"),
        ("init: bias zero", '"kernel_init": init, "bias_init": init', '"kernel_init": init'),
        ("init: bias of another bound", '"bias_init": init}', '"bias_init": _uniform_fan_in(width)}'),
        ("init: kernel of Glorot", '"kernel_init": init, "bias_init": init', '"bias_init": init'),
    ),
    # The presets.
    *_by(
        "parity",
        "test_presets_are_the_notes_models",
        ("preset: batch", "batch_size: int = option(32", "batch_size: int = option(64"),
        ("preset: learning rate", "learning_rate: float = option(1e-3", "learning_rate: float = option(2e-3"),
        ("preset: hidden widths", "option((256, 64), ", "option((256, 32), "),
        ("preset: VAE's latent size", "latent_size: int = option(10", "latent_size: int = option(20"),
        ("preset: autoencoder's code", '"objective": "mse", "latent_size": 20', '"objective": "mse"'),
    ),
    *_by(
        "parity",
        "test_reconstructions_and_samples_are_those_of_the_notes",
        ("preset: head", 'head: Head = option("relu")', 'head: Head = option("linear")'),
    ),
    # The step.
    *_by(
        "train_step",
        "test_rows_become_examples_again",
        ("rows: another order", "values.shape[0], *shapes[name])", "values.shape[0], *shapes[name][::-1])"),
    ),
    *_by(
        "train_step",
        "test_a_batch_in_parts_has_the_same_gradients",
        ("parts: not averaged", "(leaf / count).astype", "leaf.astype"),
        ("parts: the first alone", "nothing, parts)", "nothing, jax.tree.map(lambda values: values[:1], parts))"),
    ),
    *_by(
        "trainer",
        "test_a_cpu_computes_as_many_images_at_a_time_as_its_caches_hold",
        ("parts: on every device", 'if platform != "cpu" or not shares', "if not shares"),
        ("parts: any objective", " or not separate:", ":"),
        ("parts: latents do not count", "cached // objective.latents", "cached"),
    ),
    *_by(
        "parity",
        "test_first_step",
        ("step: 255 is 256", "images.astype(jnp.float32) / 255", "images.astype(jnp.float32) / 256"),
        ("step: sum for mean", "value.mean() for", "value.sum() for"),
        ("step: gradient's sign", 'return metrics["loss"], (metrics', 'return -metrics["loss"], (metrics'),
        ("step: gradient's scale", 'return metrics["loss"], (metrics', 'return 1.001 * metrics["loss"], (metrics'),
        ("step: noise without the step", "jax.random.fold_in(key, state.step)", "key"),
    ),
    *_by(
        "parity",
        "test_first_step",
        ("step: one noise for all places", "jax.random.fold_in(key, place))(", "jax.random.fold_in(key, 0 * place))("),
    ),
    *_by(
        "parity",
        "test_training_curve",
        ("step: not counted", "TrainState(state.step + 1, ", "TrainState(state.step, "),
    ),
    # Adam.
    *_by(
        "parity",
        "test_adam_is_pytorchs",
        ("Adam: b1", "adam_b1: float = option(0.9,", "adam_b1: float = option(0.91,"),
        ("Adam: b2", "adam_b2: float = option(0.999,", "adam_b2: float = option(0.9991,"),
        ("Adam: eps 10 times larger", "adam_eps: float = option(1e-8,", "adam_eps: float = option(1e-7,"),
        ("Adam: eps dropped", "adam_eps: float = option(1e-8,", "adam_eps: float = option(1e-30,"),
    ),
    *_by(
        "parity",
        "test_adam_is_pytorchs",
        ("Adam: learning rate", "rate = hyperparameters.get(", "rate = 1.001 * hyperparameters.get("),
        ("Adam: sign", "optax.scale(-rate)", "optax.scale(rate)"),
        ("Adam: weight of the gradient", "(1 - b1) * g", "g"),
        ("Adam: weight of its square", "(1 - b2) * jnp.square(g)", "jnp.square(g)"),
        ("Adam: not squared", "(1 - b2) * jnp.square(g)", "(1 - b2) * jnp.abs(g)"),
        ("Adam: first bias correction", "m * (-1 / jnp.expm1(t * math.log(b1)))", "m"),
        ("Adam: second bias correction", "v * (-1 / jnp.expm1(t * math.log(b2)))", "v"),
        ("Adam: eps inside the root", "(jnp.sqrt(v_hat) + eps)", "jnp.sqrt(v_hat + eps)"),
        ("Adam: no root", "(jnp.sqrt(v_hat) + eps)", "(v_hat + eps)"),
    ),
    # What is not the notes': likelihoods and the KL term.
    *_by(
        "likelihoods",
        "test_bernoulli_nll_is_minus_log_probability",
        ("bernoulli: ReLU dropped", "relu(logits) - x * logits", "-x * logits"),
        ("bernoulli: sign of x", "relu(logits) - x * logits", "relu(logits) + x * logits"),
        ("bernoulli: x dropped", "relu(logits) - x * logits", "relu(logits) - logits"),
        ("bernoulli: log dropped", " + jnp.log1p(jnp.exp(-jnp.abs(logits)))", ""),
        ("bernoulli: log's sign", " + jnp.log1p(jnp.exp(-jnp.abs(logits)))", " - jnp.log1p(jnp.exp(-jnp.abs(logits)))"),
        ("bernoulli: no absolute value", "jnp.exp(-jnp.abs(logits))", "jnp.exp(-logits)"),
    ),
    *_by(
        "likelihoods",
        "test_gaussian_nll_matches_scipy",
        ("gaussian: 0.5", "0.5 * jnp.square((x - mean)", "jnp.square((x - mean)"),
        ("gaussian: not squared", "0.5 * jnp.square((x - mean)", "0.5 * jnp.abs((x - mean)"),
        ("gaussian: mean's sign", "jnp.square((x - mean)", "jnp.square((x + mean)"),
        ("gaussian: deviation is variance", "jnp.exp(-log_std)) + log_std", "jnp.exp(-0.5 * log_std)) + log_std"),
        ("gaussian: deviation inverted", "jnp.exp(-log_std)) + log_std", "jnp.exp(log_std)) + log_std"),
        ("gaussian: log dropped", " + log_std + 0.5 * math.log(2 * math.pi)", " + 0.5 * math.log(2 * math.pi)"),
        ("gaussian: log's sign", " + log_std + 0.5 * math", " - log_std + 0.5 * math"),
        ("gaussian: constant dropped", " + log_std + 0.5 * math.log(2 * math.pi)", " + log_std"),
        ("gaussian: constant's 0.5", "log_std + 0.5 * math.log(2 * math.pi)", "log_std + math.log(2 * math.pi)"),
    ),
    *_by(
        "likelihoods",
        "test_the_likelihood_of_pixels_matches_scipy[logistic-False]",
        ("logistic: upper edge", "(x + 0.5 / 255 - mean)", "(x + 1 / 255 - mean)"),
        ("logistic: lower edge", "(x - 0.5 / 255 - mean)", "(x - 1 / 255 - mean)"),
        ("logistic: scale inverted", "inverse = jnp.exp(-log_scale)", "inverse = jnp.exp(log_scale)"),
        ("logistic: sign of the lower edge", "jax.nn.relu(b.lower)", "jax.nn.relu(-b.lower)"),
        ("logistic: width dropped", "jnp.log(ratio / jnp.where(b.lowest | b.highest, 1.0, b.inside))",
         "jnp.log(ratio)"),
        ("logistic: width", "jnp.expm1(-inverse / 255)", "jnp.expm1(-inverse / 256)"),
        ("logistic: sign", "return beyond + jnp.log(ratio", "return beyond - jnp.log(ratio"),
    ),
    *_by(
        "likelihoods",
        "test_discretized_logistic_sums_to_one_and_is_the_difference_of_cdfs",
        ("logistic: lowest bin", "jnp.where(b.lowest, 0.0, jax.nn.relu", "jnp.where(b.highest, 0.0, jax.nn.relu"),
        ("logistic: highest bin", "jnp.where(b.highest, 1.0, 1 +", "jnp.where(b.lowest, 1.0, 1 +"),
    ),
    *_by(
        "likelihoods",
        "test_the_gradient_of_the_discretized_logistic_is_that_of_its_formula",
        ("logistic gradient: upper", "jnp.where(b.highest, 0.0, -by_upper)", "jnp.where(b.highest, 0.0, by_upper)"),
        ("logistic gradient: width", "by_width * b.inverse / 255)", "by_width * b.inverse / 256 * 2)"),
        ("logistic gradient: scale", "by_upper * b.upper + by_lower", "by_upper * b.lower + by_lower"),
        ("logistic gradient: pixels", "return -by_x, by_log_scale, by_x", "return -by_x, by_log_scale, -by_x"),
    ),
    *_by(
        "priors",
        "test_gaussian_kl_against_monte_carlo",
        ("KL: 0.5", "return 0.5 * (jnp.square(mean) + jnp.square(std) - 1)",
         "return (jnp.square(mean) + jnp.square(std) - 1)"),
        ("KL: mean dropped", "0.5 * (jnp.square(mean) + jnp.square(std) - 1)", "0.5 * (jnp.square(std) - 1)"),
        ("KL: mean's sign", "0.5 * (jnp.square(mean) + jnp.square(std) - 1)",
         "0.5 * (jnp.square(std) - jnp.square(mean) - 1)"),
        ("KL: deviation dropped", "0.5 * (jnp.square(mean) + jnp.square(std) - 1)", "0.5 * (jnp.square(mean) - 1)"),
        ("KL: deviation not squared", "+ jnp.square(std) - 1)", "+ std - 1)"),
        ("KL: -1 dropped", "+ jnp.square(std) - 1)", "+ jnp.square(std))"),
        ("KL: log dropped", " - jnp.log(std)\n", "\n"),
        ("KL: log's sign", " - jnp.log(std)\n", " + jnp.log(std)\n"),
    ),
    *(
        Mutation(name, old, new, f"tests/test_likelihoods.py::test_the_likelihood_of_pixels_matches_scipy[{case}]")
        for case, name, old, new in (
            ("logistic-False", "pixels: location of a logistic", "jax.nn.sigmoid(pixels.location), ",
             "pixels.location, "),
            ("gaussian-False", "pixels: deviation of a gaussian", "math.log(self.likelihood_std)",
             "self.likelihood_std"),
            ("gaussian-True", "pixels: levels of a density", "nll + size * math.log(256)",
             "nll + size * math.log(255)"),
            ("gaussian-True", "pixels: sign of the levels", "nll + size * math.log(256)", "nll - size * math.log(256)"),
            ("gaussian-True", "pixels: levels of one pixel", "nll + size * math.log(256)", "nll + math.log(256)"),
            ("bernoulli-False", "pixels: latents of other images", "x[:, None], location.shape)",
             "x[:, None], location.shape)[::-1]"),
        )
    ),
    # Noise on pixels.
    *_by(
        "noise",
        "test_binarized_pixels_are_bernoulli_keyed_by_example",
        ("binarize: inverted", '"binarize") < x)', '"binarize") > x)'),
        ("binarize: threshold", '(_uniform(x, keys, "binarize") < x)', "(0.5 < x)"),
        ("binarize: one key for all", "fold_in_each(keys, purpose))",
         "jnp.broadcast_to(fold_in_each(keys, purpose)[:1], keys.shape))"),
    ),
    *_by(
        "noise",
        "test_dequantized_pixels_are_uniform_in_their_bins_keyed_by_example",
        ("dequantize: levels", "(255 * x + ", "(256 * x + "),
        ("dequantize: bins", '"dequantize")) / 256', '"dequantize")) / 255'),
        ("dequantize: sign", "(255 * x + ", "(255 * x - "),
        ("dequantize: half", '_uniform(x, keys, "dequantize")', '0.5 * _uniform(x, keys, "dequantize")'),
        ("dequantize: the same at every pixel", "jax.random.uniform(key, x.shape[1:], x.dtype)",
         "jnp.full(x.shape[1:], jax.random.uniform(key, (), x.dtype))"),
    ),
    *_by(
        "noise",
        "test_corruption_hides_pixels_from_the_model_alone",
        ("corrupt: fraction", "jax.random.bernoulli(key, 1 - fraction, ", "jax.random.bernoulli(key, fraction, "),
        ("corrupt: ones", "jnp.where(kept, x, jnp.zeros_like(x))", "jnp.where(kept, x, jnp.ones_like(x))"),
    ),
    *_by(
        "noise",
        "test_the_notes_models_see_binarized_pixels[notes-ae]",
        ("observe: binarisation dropped", "        return binarize(x, keys)\n", "        return x\n"),
    ),
    *_by(
        "noise",
        "test_training_and_evaluation_see_noisy_pixels[elbo-changes1]",
        ("observe: dequantisation dropped", "return dequantize(x, keys) if self.dequantize else x", "return x"),
    ),
    *_by(
        "noise",
        "test_corruption_hides_pixels_from_the_model_alone",
        ("corrupt: in evaluation too", "if self.corruption and view.train else x", "if self.corruption else x"),
        ("corrupt: the target too", '"image": seen}, keys).x_hat, x)', '"image": seen}, keys).x_hat, seen)'),
    ),
    # Bounds and estimators.
    *_by(
        "priors",
        "test_log_normal_matches_scipy",
        ("log_normal: 0.5", "(-0.5 * (jnp.square(standard)", "(-(jnp.square(standard)"),
        ("log_normal: constant", "(-0.5 * (jnp.square(standard) + math.log(2 * math.pi))",
         "(-0.5 * jnp.square(standard)"),
        ("log_normal: log's sign", " - jnp.log(std)).sum(axis=-1)", " + jnp.log(std)).sum(axis=-1)"),
        ("log_normal: log dropped", " - jnp.log(std)).sum(axis=-1)", ").sum(axis=-1)"),
        ("log_normal: mean's sign", "standard = (z - mean) / std", "standard = (z + mean) / std"),
        ("log_normal: deviation dropped", "standard = (z - mean) / std", "standard = z - mean"),
    ),
    *_by(
        "models",
        "test_vae_encode_matches_the_head_in_numpy",
        ("head: log-variance is log-deviation", "return first, jnp.exp(0.5 * logvar)", "return first, jnp.exp(logvar)"),
        ("head: bound", "LOGVAR_BOUND = 10.0", "LOGVAR_BOUND = 12.0"),
    ),
    *_by(
        "likelihoods",
        "test_scales_are_bounded_and_start_at_an_eighth_of_the_range[gaussian-pixel]",
        ("scale: start", "5 * jnp.tanh(raw / 5) - 2)", "5 * jnp.tanh(raw / 5))"),
        ("scale: bound", "5 * jnp.tanh(raw / 5) - 2)", "4 * jnp.tanh(raw / 4) - 2)"),
        ("scale: location and scale swapped", "location, raw = jnp.split(decoded, 2, axis=-1)",
         "raw, location = jnp.split(decoded, 2, axis=-1)"),
    ),
    *_by(
        "two_layer",
        "test_two_layers_weights_are_the_densities_written_out",
        ("two layers: p(h2) dropped", "prior = self.log_prior(h2, batch) + log_normal(h1", "prior = log_normal(h1"),
        ("two layers: p(h1 | h2) of one h2", "log_normal(h1, *self.lower(h2))", "log_normal(h1, *self.lower(0 * h2))"),
        ("two layers: q(h2 | h1) dropped", " + log_normal(h2, mean_2, std_2)\n", "\n"),
        ("two layers: h2 without noise", "h2 = mean_2 + std_2 * noise_2", "h2 = mean_2"),
        ("two layers: h1 without noise", "h1 = mean[:, None] + std[:, None] * noise_1",
         "h1 = mean[:, None] + 0 * noise_1"),
    ),
    *_by(
        "iwae",
        "test_iwae_bound_is_log_mean_exp",
        ("IWAE: mean is a sum", " - math.log(log_weights.shape[1])\n", "\n"),
        ("IWAE: sign of log S", " - math.log(log_weights.shape[1])\n", " + math.log(log_weights.shape[1])\n"),
        ("IWAE: images for samples", "math.log(log_weights.shape[1])", "math.log(log_weights.shape[0])"),
        ("IWAE: mean of logarithms", "jax.nn.logsumexp(log_weights, axis=1) - math.log(log_weights.shape[1])",
         "log_weights.mean(axis=1)"),
    ),
    *_by(
        "iwae",
        "test_gradients_match_central_differences[dreg-0.5]",
        ("DReG: Tucker et al.'s weights", "(1 - weight) * normalised + weight * jnp.square(normalised)",
         "jnp.square(normalised)"),
        ("DReG: weights of weight 1", "(1 - weight) * normalised + weight", "normalised + weight"),
        ("DReG: sign of the square", "* normalised + weight * jnp.square", "* normalised - weight * jnp.square"),
        ("DReG: not squared", "weight * jnp.square(normalised)", "weight * normalised"),
        ("DReG: decoder's weights", "(normalised * for_decoder + ", "(jnp.square(normalised) * for_decoder + "),
        ("DReG: decoder by the latents", "log_weights(view.params, jax.lax.stop_gradient(latent))",
         "log_weights(view.params, latent)"),
        ("DReG: latents by the decoder", "log_weights(jax.lax.stop_gradient(view.params), latent)",
         "log_weights(view.params, latent)"),
        ("DReG: the posterior's score", "(jax.lax.stop_gradient(a)[:, None] for a in (mean, std))",
         "(a[:, None] for a in (mean, std))"),
        ("DReG: weights' own gradient", "jax.lax.stop_gradient(jax.nn.softmax(for_decoder, axis=1))",
         "jax.nn.softmax(for_decoder, axis=1)"),
        ("DReG: weights over images", "jax.nn.softmax(for_decoder, axis=1)", "jax.nn.softmax(for_decoder, axis=0)"),
        ("DReG: gradient of the value", "jax.lax.stop_gradient(iwae_bound(for_decoder) - surrogate) + surrogate",
         "iwae_bound(for_decoder)"),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-dreg]",
        ("DReG: value of the surrogate", "jax.lax.stop_gradient(iwae_bound(for_decoder) - surrogate) + surrogate",
         "surrogate"),
        ("DReG: loss's sign", '{"loss": -bound, ', '{"loss": bound, '),
        ("DReG: likelihood's sign", "log_px = -view.nll(view.apply(", "log_px = view.nll(view.apply("),
        ("DReG: prior dropped", 'log_ratio = view.apply(z, batch, method="log_prior", params=params) - log_normal(z, f',
         "log_ratio = -log_normal(z, f"),
        ("DReG: posterior's sign", "params=params) - log_normal(z, f", "params=params) + log_normal(z, f"),
        ("DReG: weight of the ratio", "return log_px + weight * log_ratio, log_px",
         "return log_px + log_ratio, log_px"),
        ("DReG: signs of its terms", "(jax.lax.stop_gradient(-a.mean(axis=1))",
         "(jax.lax.stop_gradient(a.mean(axis=1))"),
        ("DReG: noise without its deviation", "latent = mean[:, None] + std[:, None] * eps",
         "latent = mean[:, None] + eps"),
    ),
    # The terms of the objectives in nats, each in its own file.
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-elbo]",
        ("terms: likelihood's sign", "return self.loss.nll(pixels, x)", "return -self.loss.nll(pixels, x)"),
        ("terms: the bound in training", "            if context.step is None:", "            if True:"),
        *_of(
            _ELBO,
            ("ELBO: KL's sign", "recon + weight * cost", "recon - weight * cost"),
            ("ELBO: KL dropped", "recon + weight * cost", "recon"),
            ("ELBO: likelihood dropped", "recon + weight * cost", "weight * cost"),
        ),
        ("ELBO: KL over images", "drawn.kl.sum(axis=-1), free_bits", "drawn.kl.sum(), free_bits"),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-samples]",
        *_of(_ELBO, ("ELBO: beta dropped", "weight * cost", "cost")),
        *_of(f"{_RECON}        kl, cost", ("terms: one sample for the mean", ".mean(axis=1)", "[:, 0]")),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-free_bits]",
        ("free bits: ceiling", "jnp.maximum(kl, free).sum", "jnp.minimum(kl, free).sum"),
        ("free bits: of the sum", "jnp.maximum(kl, free).sum(axis=-1)", "jnp.maximum(kl.sum(axis=-1), free)"),
        ("free bits: subtracted", "jnp.maximum(kl, free)", "jnp.maximum(kl - free, 0)"),
        *_of(_ELBO, ("free bits: in the KL reported", '"kl": kl', '"kl": cost')),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-iwae]",
        ("IWAE: likelihood's sign", "log_px = -view.nll(drawn.pixels", "log_px = view.nll(drawn.pixels"),
        *_of(
            "log_ratio = drawn.log_prior - drawn.log_posterior",
            ("IWAE: prior dropped", "drawn.log_prior - ", "-"),
            ("IWAE: posterior dropped", " - drawn.log_posterior", ""),
            ("IWAE: posterior's sign", " - ", " + "),
        ),
        *_of(
            "recon, estimate = -log_px.mean(axis=1), -log_ratio.mean(axis=1)",
            ("IWAE: one sample for the mean", "-log_px.mean(axis=1)", "-log_px[:, 0]"),
            ("IWAE: estimate's sign", "-log_ratio", "log_ratio"),
        ),
        *_of(
            "loss = -iwae_bound(log_px + weight * log_ratio)",
            ("IWAE: loss's sign", "-iwae", "iwae"),
            ("IWAE: beta dropped", "weight * ", ""),
        ),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-info]",
        *_of(
            _INFO,
            ("info: KL's sign", "recon + weight * cost", "recon - weight * cost"),
            ("info: KL dropped", "recon + weight * cost", "recon"),
            ("info: likelihood dropped", "recon + weight * cost", "weight * cost"),
            ("info: beta dropped", "weight * cost", "cost"),
            ("info: free bits in the KL reported", '"kl": kl', '"kl": cost'),
        ),
        ("info: likelihood's sign", "recon = view.nll(drawn.pixels, x)", "recon = -view.nll(drawn.pixels, x)"),
        ("info: image's pixels dropped", "* x[0].size * discrepancy", "* discrepancy"),
        ("info: weight dropped", "self.mmd_weight * x[0].size", "x[0].size"),
        ("info: sign", 'terms["loss"] + scaled', 'terms["loss"] - scaled'),
        ("info: weight in what is reported", '"mmd": jnp.broadcast_to(discrepancy', '"mmd": jnp.broadcast_to(scaled'),
        ("info: prior of the images' own noise", 'fold_in_each(keys, "prior")', "keys"),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[training-beta-tc]",
        *_of(
            'terms |= {"loss": recon + kl + (weight - 1) * tc, ',
            ("beta-TC: sign", "+ (weight", "- (weight"),
            ("beta-TC: -1 dropped", "(weight - 1)", "weight"),
            ("beta-TC: KL dropped", "recon + kl", "recon"),
        ),
        *_of(
            f"{_RECON}{_KL}        # Beta",
            ("beta-TC: likelihood's sign", "view.nll", "-view.nll"),
            ("beta-TC: KL over images", "drawn.kl.sum(axis=-1)", "drawn.kl.sum()"),
        ),
        ("beta-TC: of each image", "view.loss.facts.num_images).mean()", "view.loss.facts.num_images)"),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-beta-tc]",
        *_of(
            _BETA_TC,
            ("beta-TC: KL in evaluation", '"loss": recon + kl', '"loss": recon'),
            ("beta-TC: bound's sign", "-(recon + kl)", "recon + kl"),
        ),
        *_of(
            "        if view.train:\n            latent, mean, std = ",
            ("beta-TC: total correlation in evaluation", "view.train", "True"),
        ),
    ),
    *_by(
        "factor",
        "test_its_terms_in_numpy",
        ("factor: weight", "(self.kl_weight(view) - 1) * tc + own", "self.kl_weight(view) * tc + own"),
        ("factor: sign of a logit", "jax.nn.softplus(-joint)", "jax.nn.softplus(joint)"),
        ("factor: permuted", "(seen, permuted(seen, noise))", "(seen, seen)"),
    ),
    *_by(
        "factor",
        "test_the_discriminator_learns_from_its_own_loss_and_the_vae_from_the_others",
        ("factor: frozen", "frozen = jax.lax.stop_gradient(view.params)", "frozen = view.params"),
        ("factor: constant latents", "seen = jax.lax.stop_gradient(latent)", "seen = latent"),
    ),
    *_by(
        "disentanglement",
        "test_mig_is_a_sum_over_the_table_of_bins_and_values",
        ("MIG: bins", "BINS = 20  #", "BINS = 10  #"),
        ("MIG: gap", "gaps.append((most - least) /", "gaps.append(most /"),
    ),
    *_by(
        "disentanglement",
        "test_dci_disentanglement_is_one_minus_the_entropy_of_rows",
        ("DCI: weights of rows", "weights=rows", "weights=None"),
    ),
    *_by(
        "vamp",
        "test_pseudo_inputs_lie_half_way_from_the_mean_to_an_image_but_for_little_noise",
        ("VampPrior: start", "halfway = 0.5 * (images.mean(axis=0, keepdims=True) + images)", "halfway = images"),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-elbo]",
        *_of(
            _ELBO,
            ("ELBO: bound's sign", "-(recon + kl)", "recon + kl"),
            ("ELBO: bound of the KL alone", "-(recon + kl)", "-kl"),
        ),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-free_bits]",
        *_of(_ELBO, ("ELBO: bound of the cost", "-(recon + kl)", "-(recon + cost)")),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-samples]",
        *_of(_ELBO, ("ELBO: bound of the weight", "-(recon + kl)", "-(recon + weight * kl)")),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-iwae]",
        *_of(
            '"kl": estimate, "bound": iwae_bound(log_px + log_ratio)',
            ("IWAE: bound of the weight", "+ log_ratio", "+ weight * log_ratio"),
            ("IWAE: bound's sign", "iwae_bound", "-iwae_bound"),
        ),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-dreg]",
        *_of(
            '"kl": kl, "bound": iwae_bound(log_px + log_ratio)',
            ("DReG: bound of the weight", "log_px + log_ratio", "for_decoder"),
        ),
    ),
    *_by(
        "terms",
        "test_terms_are_those_written_out[evaluation-info]",
        *_of(
            _INFO,
            ("info: bound's sign", "-(recon + kl)", "recon + kl"),
            ("info: bound of the cost", "-(recon + kl)", "-(recon + cost)"),
        ),
        *_of(
            "        if view.train:\n            latent = ",
            ("info: mean discrepancy in evaluation", "view.train", "True"),
        ),
    ),
    *_by(
        "terms",
        "test_the_bound_is_the_same_for_all_weights[two-layer]",
        *_of(
            "estimate = -(drawn.log_prior - drawn.log_posterior)",
            ("two layers: estimate's sign", "-(drawn", "(drawn"),
            ("two layers: prior dropped", "drawn.log_prior - ", "-"),
            ("two layers: posterior dropped", " - drawn.log_posterior", ""),
            ("two layers: posterior's sign", " - drawn", " + drawn"),
        ),
    ),
    *_by(
        "elbo",
        "test_kl_warmup_is_linear_and_repeats_and_is_over_in_evaluation",
        ("warm-up: in evaluation", "if view.step is None or not warmup:",
         "if not warmup:\n            return self.beta\n"
         "        if view.step is None:\n            return 0.0 * self.beta\n        if False:"),
        *_of(
            "return self.beta * jnp.minimum(inside / (warmup * facts.steps_per_epoch), 1.0)",
            ("warm-up: no end", "jnp.minimum(inside / (warmup * facts.steps_per_epoch), 1.0)",
             "inside / (warmup * facts.steps_per_epoch)"),
            ("warm-up: not to beta", "self.beta * ", ""),
            ("warm-up: in steps", "(warmup * facts.steps_per_epoch)", "warmup"),
            ("warm-up: from the end", "inside / (", "1 - inside / ("),
        ),
        ("warm-up: never again", "jnp.mod(view.step.astype(jnp.float32), jnp.float32(cycle))",
         "view.step.astype(jnp.float32)"),
        ("warm-up: cycles", "facts.steps_per_epoch / self.kl_cycles", "facts.steps_per_epoch"),
    ),
    *_by(
        "info",
        "test_mmd_matches_a_double_sum",
        ("MMD: kernel's sign", "jnp.exp(-jnp.maximum(distance, 0)", "jnp.exp(jnp.maximum(distance, 0)"),
        ("MMD: kernel's width", "jnp.exp(-jnp.maximum(distance, 0) / x.shape[1])",
         "jnp.exp(-jnp.maximum(distance, 0))"),
        ("MMD: product's 2", " - 2 * x @ y.T", " - x @ y.T"),
        ("MMD: first norm", "jnp.square(x).sum(1)[:, None] + ", ""),
        ("MMD: second norm", "jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None, :]",
         "jnp.square(x).sum(1)[:, None]"),
        ("MMD: with the diagonal", "(kernel(a, a) + kernel(b, b)) * off_diagonal", "(kernel(a, a) + kernel(b, b))"),
        ("MMD: biased", "(count * (count - 1))", "(count * count)"),
        ("MMD: second sample dropped", "(kernel(a, a) + kernel(b, b)) * off", "(kernel(a, a)) * off"),
        ("MMD: weight between", "within - 2 * kernel(a, b).mean()", "within - kernel(a, b).mean()"),
        ("MMD: sign between", "within - 2 * kernel(a, b).mean()", "within + 2 * kernel(a, b).mean()"),
    ),
    *_by(
        "capacity",
        "test_the_loss_in_numpy",
        ("capacity: distance", "jnp.abs(kl - self.capacity_at(view))", "(kl - self.capacity_at(view))"),
        ("capacity: weight dropped", "self.capacity_weight * jnp.abs", "jnp.abs"),
        ("capacity: does not stop", "self.capacity * jnp.minimum(grown, 1.0)", "self.capacity * grown"),
        ("capacity: in steps", "(self.capacity_epochs * view.loss.facts.steps_per_epoch)", "self.capacity_epochs"),
    ),
    *_by(
        "rae",
        "test_the_loss_in_numpy",
        ("RAE: half", "code = 0.5 * jnp.square", "code = jnp.square"),
        ("RAE: weight of the code dropped", "recon + self.code_l2 * code", "recon + code"),
        ("RAE: decoder dropped", 'self.decoder_l2 * squared_norm(view.params["params"]["decoder"])', "0.0"),
        ("RAE: encoder too", 'squared_norm(view.params["params"]["decoder"])', 'squared_norm(view.params["params"])'),
        ("RAE: decoder in evaluation", "        if view.train:\n            loss = loss +",
         "        if True:\n            loss = loss +"),
    ),
    *_by(
        "mixture",
        "test_the_density_is_that_of_scikit_learn",
        ("mixture: weights dropped", "constant = log_weights - jnp.log(std)", "constant = -jnp.log(std)"),
        ("mixture: deviations dropped", "log_weights - jnp.log(std).sum(axis=-1)", "log_weights"),
        ("mixture: constant dropped", " - 0.5 * mean.shape[1] * math.log(2 * math.pi)", ""),
        ("mixture: 0.5", "constant[None, None] - 0.5 * squares", "constant[None, None] - squares"),
    ),
    *_by(
        "mixture",
        "test_draws_have_the_moments_of_the_mixture",
        ("mixture: draws without spread", "centre + spread * jax", "centre + 0 * spread * jax"),
        ("mixture: equal draws", "categorical(component, log_weights,", "categorical(component, 0 * log_weights,"),
    ),
    *_by(
        "flow",
        "test_the_inverse_and_the_jacobian",
        ("flow: Jacobian's sign", "log_det + log_scale.sum", "log_det - log_scale.sum"),
        ("flow: inverse's shift", "(given - shift) * jnp.exp(-log_scale)", "(given + shift) * jnp.exp(-log_scale)"),
        ("flow: inverse's scale", "(given - shift) * jnp.exp(-log_scale)", "(given - shift) * jnp.exp(log_scale)"),
        ("flow: Jacobian dropped", "return log_normal(base) + log_det", "return log_normal(base)"),
    ),
    *_by(
        "vamp",
        "test_the_density_is_the_mean_of_the_posteriors_of_the_pseudo_inputs[mlp]",
        ("VampPrior: weights", "-math.log(self.pseudo_inputs)", "0.0"),
        ("VampPrior: not within [0, 1]", "self.encode(jnp.clip(self.inputs, 0.0, 1.0))", "self.encode(self.inputs)"),
    ),
    *_by(
        "gated",
        "test_encoder_and_decoder_match_numpy",
        ("gated: no gate", "x = nn.glu(self._dense(2 * width, x", "x = (lambda h: h[:, ::2])(self._dense(2 * width, x"),
    ),
    *_by(
        "gated",
        "test_initial_weights_are_those_of_the_papers_code",
        ("gated: Glorot's variance", 'variance_scaling(2.0, "fan_in"', 'variance_scaling(1.0, "fan_avg"'),
        ("gated: truncated", '"fan_in", "normal")', '"fan_in", "truncated_normal")'),
    ),
    *_by(
        "beta_tc",
        "test_total_correlation_matches_stratified_sampling_in_numpy",
        ("TC: sign", "return joint - product", "return product - joint"),
        ("TC: joint dropped", "return joint - product", "return -product"),
        ("TC: 0.5", "log_q = -0.5 * (", "log_q = -1.0 * ("),
        ("TC: log dropped", " - jnp.log(std)[None]  # [B, B, L]", "  # [B, B, L]"),
        ("TC: latents for means", "(latent[:, None] - mean[None]) / std[None]",
         "(latent[None] - mean[:, None]) / std[None]"),
        ("TC: own deviation", "(latent[:, None] - mean[None]) / std[None]",
         "(latent[:, None] - mean[None]) / std[:, None]"),
        ("TC: own weight", "own, other = -math.log(num_images)", "own, other = -math.log(batch)"),
        ("TC: others' weight", "(num_images - 1) / (num_images * (batch - 1))", "1 / (batch - 1)"),
        ("TC: minibatch-weighted sampling",
         "jnp.where(jnp.eye(batch, dtype=bool), jnp.asarray(own, log_q.dtype), other)",
         "jnp.full((batch, batch), -math.log(batch * num_images))"),
        ("TC: weights swapped", "jnp.asarray(own, log_q.dtype), other)", "jnp.asarray(other, log_q.dtype), own)"),
        ("TC: weights dropped, joint", "log_q.sum(-1) + log_weights, axis=1)", "log_q.sum(-1), axis=1)"),
        ("TC: weights dropped, product", "log_q + log_weights[..., None], axis=1)", "log_q, axis=1)"),
    ),
    # What a number is called.
    *_by(
        "objectives",
        "test_a_bound_is_named_for_what_it_bounds",
        *_of(
            'return "probability" if pixels == "binary" else "unnormalised"',
            ("names: grey pixels are likely", ' if pixels == "binary" else "unnormalised"', ""),
            ("names: binary pixels are not", '"probability" if pixels == "binary" else ', ""),
        ),
        ("names: densities are likely", '        return "density"', '        return "probability"'),
        ("names: dequantised densities", 'if not self.continuous or pixels == "continuous"', "if not self.continuous"),
        *_of(
            '    hierarchical: ClassVar[bool] = True\n    bound: ClassVar[str] = "iwae_bound"',
            ("names: IWAE is the ELBO", "iwae_bound", "elbo"),
        ),
        *_of(
            'squares.\n    """\n\n    bound: ClassVar[str] = "iwae_bound"',
            ("names: DReG is the ELBO", "iwae_bound", "elbo"),
        ),
        ("names: no warning", 'or loss.measure != "density"', 'or loss.measure != "none"'),
        ("selection: lower bounds", "return (self.bound_name, True)", "return (self.bound_name, False)"),
        ("selection: by the loss", "return (self.bound_name, True)", 'return ("loss", False)'),
    ),
    *_by(
        "objectives",
        "test_the_notes_models_are_selected_by_their_loss",
        ("selection: higher losses", 'else ("loss", False)', 'else ("loss", True)'),
    ),
    # Evaluation.
    *_by(
        "log_likelihood",
        "test_exactly_k_samples_count",
        ("log p(x): prior dropped", "log_w = draws.log_prior - draws.log_posterior", "log_w = -draws.log_posterior"),
        ("log p(x): posterior's sign", "draws.log_prior - draws.log_posterior - view",
         "draws.log_prior + draws.log_posterior - view"),
        ("log p(x): likelihood's sign", "draws.log_posterior - view.nll", "draws.log_posterior + view.nll"),
        ("log p(x): the last chunk's surplus", "log_w, -jnp.inf)", "log_w, log_w)"),
        ("log p(x): one draw too few", "jnp.arange(chunk)[None] < samples", "jnp.arange(chunk)[None] < samples - 1"),
        ("log p(x): the same draws in each chunk", "jax.random.fold_in(k, first)", "jax.random.fold_in(k, 0 * first)"),
        ("log p(x): sums not rescaled", "total = total * shrink + ", "total = total + "),
        ("log p(x): squares not rescaled", "squares * jnp.square(shrink) + ", "squares * shrink + "),
        ("log p(x): weights not squared", "jnp.square(weights).sum(axis=1)), None", "weights.sum(axis=1)), None"),
        ("log p(x): mean is a sum", "jnp.log(total) - math.log(samples), ", "jnp.log(total), "),
        ("log p(x): sign of log K", "jnp.log(total) - math.log(samples), ", "jnp.log(total) + math.log(samples), "),
        ("log p(x): greatest weight dropped", "return greatest + jnp.log(total)", "return jnp.log(total)"),
        ("log p(x): error not centred", "squares / jnp.square(total) - 1 / samples", "squares / jnp.square(total)"),
        ("log p(x): error not relative", "squares / jnp.square(total) - 1", "squares - 1"),
        ("log p(x): variance for error", "jnp.sqrt(relative)\n", "relative\n"),
    ),
    *_by(
        "latents",
        "test_posterior_statistics_are_those_of_the_posterior",
        ("active: threshold doubled", "ACTIVE = 0.01", "ACTIVE = 0.02"),
        ("active: threshold halved", "ACTIVE = 0.01", "ACTIVE = 0.005"),
        ("active: deviation for variance", 'found["mean"].var(axis=0)', 'found["mean"].std(axis=0)'),
        ("active: dead ones", "(variance > ACTIVE)", "(variance < ACTIVE)"),
        ("KL per dimension: sum for mean", "rounded(mean, 6) for mean, _ in found",
         "rounded(len(each) * mean, 6) for mean, _ in found"),
    ),
    *_by(
        "latents",
        "test_active_units_of_both_layers",
        ("active: noise of the lower layer", ' - found["upper_spread"].mean(axis=0)', ""),
        ("active: one draw's spread", "upper_means.var(axis=1, ddof=1) / UPPER_SAMPLES",
         "upper_means.var(axis=1, ddof=1)"),
        ("active: upper layer of the mean", "view.apply(mean[:, None] + std[:, None] * eps",
         "view.apply(mean[:, None] + 0 * eps"),
        ("active: upper layer dropped", "        if two_layers:\n            variances.append",
         "        if False:\n            variances.append"),
    ),
    *_by(
        "log_likelihood",
        "test_errors_and_bits_are_those_of_their_definitions",
        *_of(
            "return -log_p / (num_values * math.log(2))",
            ("bits: sign", "-log_p", "log_p"),
            ("bits: nats", "(num_values * math.log(2))", "num_values"),
            ("bits: of the image", "num_values * ", ""),
        ),
        ("bits: colours dropped", 'size = math.prod(images["image"].shape[1:])',
         'size = math.prod(images["image"].shape[1:3])'),
        ("error: root of the number", "np.sqrt(np.square(errors).sum()) / len(errors)",
         "np.sqrt(np.square(errors).sum()) / len(errors) ** 0.5"),
        ("error: not squared", "np.sqrt(np.square(errors).sum())", "np.sqrt(errors.sum())"),
        ("error: no root", "np.sqrt(np.square(errors).sum())", "np.square(errors).sum()"),
        ("standard error: biased", "np.std(values, ddof=1, dtype=np.float64)",
         "np.std(values, ddof=2, dtype=np.float64)"),
        ("standard error: of one image", "/ len(values) ** 0.5)", ")"),
        ("standard error: root dropped", "/ len(values) ** 0.5)", "/ len(values))"),
    ),
)  # fmt: skip


class Outcome(NamedTuple):
    """pytest's exit code, the first test that failed an assertion ("" if none), and all pytest said."""

    code: int
    failed: str
    output: str

    @property
    def caught(self) -> bool:
        """Whether tests failed (1: neither an error in collecting them nor in pytest) on an assertion."""
        return self.code == 1 and bool(self.failed)


def mutated(mutation: Mutation) -> tuple[Path, str]:
    """The file that is mutated, relative to the repository, and its text then.

    Raises `ValueError` unless `old` occurs exactly once in all of jaxvae.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "jaxvae").rglob("*.py"))}
    found = [path for path, text in texts.items() for _ in range(text.count(mutation.old))]
    if len(found) != 1:
        raise ValueError(f"{mutation.name}: {mutation.old!r} occurs {len(found)} times in jaxvae")
    return found[0].relative_to(ROOT), texts[found[0]].replace(mutation.old, mutation.new)


def run(mutation: Mutation | None) -> Outcome:
    """Test a copy of jaxvae with one mutation; or an unchanged one with all that mutations name."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for name in COPIED:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
        selection = sorted({mutation.test for mutation in MUTATIONS})
        if mutation is not None:
            path, text = mutated(mutation)
            (copy / path).write_text(text, encoding="utf-8")
            selection = [mutation.test]
        said = copy / "output"
        process = _PROCESSES.Process(target=_test, args=(copy, selection, said), daemon=True)
        process.start()
        process.join()
        output = said.read_text(encoding="utf-8") if said.exists() else ""
    failed = re.search(r"^FAILED \S+?::(\S+) - (AssertionError|assert )", output, re.MULTILINE)
    return Outcome(process.exitcode or 0, failed[1] if failed else "", output)


class _Unoptimized:
    """A plugin of pytest: what is compiled for one test alone is not worth optimising."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            item.add_marker("unoptimized")


def _test(copy: Path, selection: list[str], said: Path) -> None:
    """Run tests of a copy in this process, a fresh one, and end it with pytest's exit code."""
    import jax
    import pytest

    jax.config.update("jax_enable_compilation_cache", False)  # It would be shared with those that run beside it.
    os.environ["COLUMNS"] = "200"
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    with said.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        # Nobody reads what an assertion compared, and hypothesis, imported already, could not be rewritten to tell.
        options = ["-x", "-q", "--tb=short", "--assert=plain", "-p", "no:cacheprovider"]
        code = pytest.main([*options, *selection], [_Unoptimized()])
        sys.stdout.flush()
    os._exit(code)


@contextmanager
def started() -> Iterator[dict[Mutation | None, "Future[Outcome]"]]:
    """All runs, the unchanged copy (None) first, two at a time; leaving cancels what has not begun."""
    pool = ThreadPoolExecutor(PROCESSES)
    try:
        yield {mutation: pool.submit(run, mutation) for mutation in (None, *MUTATIONS)}
    finally:
        pool.shutdown(cancel_futures=True)


def main() -> int:
    """Run them all; the exit code is 1 if the unchanged copy fails or a mutation is not caught."""
    missed = 0
    with started() as runs:
        for mutation, future in runs.items():
            outcome = future.result()
            good = outcome.code == 0 if mutation is None else outcome.caught
            missed += not good
            name = "unchanged" if mutation is None else mutation.name
            print(f"{name:36} {outcome.failed or ('passes' if outcome.code == 0 else 'CRASHES')}", flush=True)
            if not good:
                print(outcome.output[-3000:])
    print(f"{len(MUTATIONS)} mutations, {missed} not as they should be")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
