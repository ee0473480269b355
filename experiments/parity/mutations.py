"""Does tests/test_parity.py notice? One change at a time to a copy of jaxvae, and the test that must fail.

    python experiments/parity/mutations.py

Expected: the unchanged copy passes, and every change is caught. Measured: so, all 90, in about a minute on two cores.

Each entry of `MUTATIONS` alters one term, sign, constant, activation, constant of Adam, or property
of the initial weights. It is caught if the test it names fails with a failed assertion; a copy that
does not even import, or a test that crashes, does not count.
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
TESTS = "tests/test_parity.py"
COPIED = ("pyproject.toml", "tests/conftest.py", TESTS, *(f"experiments/parity/reference.{e}" for e in ("py", "json")))
PROCESSES = 2
_PROCESSES = multiprocessing.get_context("forkserver")  # Each begins where the libraries are imported already.
_PROCESSES.set_forkserver_preload(["flax.linen", "hypothesis.strategies", "optax", "pytest", "tyro"])


class Mutation(NamedTuple):
    """`old`, which occurs once in jaxvae/`file`, becomes `new`; the function `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


def _in(file: str, test: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(name, file, old, new, test) for name, old, new in changes]


_SPLIT = "jnp.split(nn.relu(features), 2, axis=-1)"
_UNIFORM = "jax.random.uniform(key, shape, dtype, -limit, limit)"


def _x_hat(last_field: str, pixels: str) -> str:
    """The property of an output, told apart by the field before it."""
    return f'''    {last_field}: Array

    @property
    def x_hat(self) -> Array:
        """Reconstructed pixel intensities in [0, 1], [B, H, W, C]."""
        return {pixels}'''


MUTATIONS: tuple[Mutation, ...] = (
    # The formulas.
    *_in(
        "objectives.py",
        "test_mse",
        ("mse: sign", "jnp.square(x_hat - x)", "jnp.square(x_hat + x)"),
        ("mse: not squared", "jnp.square(x_hat - x)", "jnp.abs(x_hat - x)"),
        ("mse: not averaged", "_sum_per_example(error) / (error.size // error.shape[0])", "_sum_per_example(error)"),
        ("mse: over the batch's pixels", "(error.size // error.shape[0])", "error.size"),
    ),
    *_in(
        "objectives.py",
        "test_kld",
        ("kld: 0.5", "0.5 * _sum_per_example(jnp.square(mean)", "1.0 * _sum_per_example(jnp.square(mean)"),
        ("kld: sign", "0.5 * _sum_per_example(jnp.square(mean)", "-0.5 * _sum_per_example(jnp.square(mean)"),
        ("kld: mean^2 dropped", "(jnp.square(mean) + variance - ", "(variance - "),
        ("kld: mean^2 sign", "(jnp.square(mean) + variance - ", "(variance - jnp.square(mean) - "),
        ("kld: mean not squared", "(jnp.square(mean) + variance - ", "(mean + variance - "),
        ("kld: sigma^2 dropped", "(jnp.square(mean) + variance - ", "(jnp.square(mean) - "),
        ("kld: sigma^2 sign", "(jnp.square(mean) + variance - ", "(jnp.square(mean) - variance - "),
        ("kld: sigma not squared", "variance = jnp.square(std)", "variance = std"),
        ("kld: log dropped", " - jnp.log(1e-8 + variance) - 1)", " - 1)"),
        ("kld: log's sign", " - jnp.log(1e-8 + variance) - 1)", " + jnp.log(1e-8 + variance) - 1)"),
        ("kld: log of sigma", "jnp.log(1e-8 + variance)", "jnp.log(1e-8 + std)"),
        ("kld: 1e-8 is 1e-7", "jnp.log(1e-8 + variance)", "jnp.log(1e-7 + variance)"),
        ("kld: 1e-8 is a floor", "jnp.log(1e-8 + variance)", "jnp.log(jnp.maximum(1e-8, variance))"),
        ("kld: 1e-8 outside the square", "jnp.log(1e-8 + variance)", "jnp.log(jnp.square(1e-8 + std))"),
        ("kld: -1 dropped", "variance) - 1) / num_pixels", "variance)) / num_pixels"),
        ("kld: -1 is +1", "variance) - 1) / num_pixels", "variance) + 1) / num_pixels"),
        ("kld: 784 dropped", "variance) - 1) / num_pixels", "variance) - 1)"),
    ),
    *_in(
        "objectives.py",
        "test_objectives_are_the_notes_losses",
        ("loss: kld's sign", "recon + 1.0 * kl", "recon - 1.0 * kl"),
        ("loss: kld's weight", "recon + 1.0 * kl", "recon + 0.5 * kl"),
        ("loss: kld dropped", "recon + 1.0 * kl", "recon"),
        ("loss: mse dropped", "recon + 1.0 * kl", "1.0 * kl"),
        ("loss: 784 is the batch's pixels", "num_pixels=x[0].size", "num_pixels=x.size"),
        ("loss: 784 is the latent size", "num_pixels=x[0].size", "num_pixels=output.mean[0].size"),
    ),
    # The models.
    *_in(
        "models.py",
        "test_reconstructions_and_samples_are_those_of_the_notes",
        *(
            (f"{part}: ReLU {i} dropped", "            if i:", f"            if i and (self.path[0], i) != {part, i}:")
            for part in ("encoder", "decoder")
            for i in (1, 2)
        ),
        ("ReLU is GELU", '"relu": nn.relu,', '"relu": nn.gelu,'),
        ("ReLU is leaky", '"relu": nn.relu,', '"relu": nn.leaky_relu,'),
        ("ReLU after the last layer", "        return x\n\n\ndef _at", "        return nn.relu(x)\n\n\ndef _at"),
        ("autoencoder: code without ReLU", 'nn.relu(features) if self.head == "relu" else features', "features"),
        ("VAE: mean and sigma without ReLU", _SPLIT, "jnp.split(features, 2, axis=-1)"),
        ("VAE: mean without ReLU", "return mean, std\n", "return jnp.split(features, 2, axis=-1)[0], std\n"),
        ("VAE: sigma without ReLU", "return mean, std\n", "return mean, jnp.split(features, 2, axis=-1)[1]\n"),
        ("VAE: sigma is exponential", "return mean, std\n", "return mean, jnp.exp(std)\n"),
        ("VAE: halves swapped", "mean, std = jnp.split(nn.relu(", "std, mean = jnp.split(nn.relu("),
        ("VAE: halves interleaved", _SPLIT, "nn.relu(features).reshape(len(x), -1, 2).transpose(2, 0, 1)"),
        ("sample: no sigmoid", "    return nn.sigmoid(logits)", "    return logits"),
        ("sample: sigmoid is tanh", "    return nn.sigmoid(logits)", "    return jnp.tanh(logits)"),
        *(
            (f"{name}: {what}", _x_hat(field, "nn.sigmoid(self.logits)"), _x_hat(field, new))
            for name, field in (("autoencoder", "latent"), ("VAE", "std"))
            for what, new in (("no sigmoid", "self.logits"), ("sigmoid is tanh", "jnp.tanh(self.logits)"))
        ),
    ),
    *_in(
        "models.py",
        "test_noise_is_normal_scaled_by_sigma",
        ("noise: sign", "return mean + std * eps", "return mean - std * eps"),
        ("noise: mean dropped", "return mean + std * eps", "return std * eps"),
        ("noise: sigma dropped", "return mean + std * eps", "return mean + eps"),
        ("noise: eps dropped", "return mean + std * eps", "return mean + std"),
        ("noise: variance for sigma", "return mean + std * eps", "return mean + std**2 * eps"),
        ("noise: uniform, a key each", "jax.random.normal(k, mean.shape[1:]", "jax.random.uniform(k, mean.shape[1:]"),
        ("noise: uniform, one key", "jax.random.normal(key, mean.shape, ", "jax.random.uniform(key, mean.shape, "),
    ),
    # The initial weights.
    *_in(
        "models.py",
        "test_initial_weights_are_uniform_within_one_over_root_fan_in",
        ("init: bound of He", "limit = fan_in**-0.5", "limit = (6 / fan_in) ** 0.5"),
        ("init: bound 5 % larger", "limit = fan_in**-0.5", "limit = 1.05 * fan_in**-0.5"),
        ("init: bound 5 % smaller", "limit = fan_in**-0.5", "limit = 0.95 * fan_in**-0.5"),
        ("init: fan_out", "_uniform_fan_in(x.shape[-1])", "_uniform_fan_in(width)"),
        ("init: normal", _UNIFORM, "limit * 3**-0.5 * jax.random.normal(key, shape, dtype)"),
        ("init: truncated normal", _UNIFORM, "limit * jax.random.truncated_normal(key, -1, 1, shape, dtype)"),
        ("init: not negative", "dtype, -limit, limit)", "dtype, 0.0, limit)"),
        ("init: bias zero", '"kernel_init": init, "bias_init": init', '"kernel_init": init'),
        ("init: bias of another bound", '"bias_init": init}', '"bias_init": _uniform_fan_in(width)}'),
        ("init: kernel of Glorot", '"kernel_init": init, "bias_init": init', '"bias_init": init'),
    ),
    # The presets.
    *_in(
        "config.py",
        "test_presets_are_the_notes_models",
        ("preset: batch", "batch_size: int = 32", "batch_size: int = 64"),
        ("preset: learning rate", "learning_rate: float = 1e-3", "learning_rate: float = 2e-3"),
        ("preset: hidden widths", "hidden: tuple[int, ...] = (256, 64)", "hidden: tuple[int, ...] = (256, 32)"),
        ("preset: VAE's latent size", "latent_size: int = 10", "latent_size: int = 20"),
        ("preset: autoencoder's code", '"objective": "mse", "latent_size": 20', '"objective": "mse"'),
    ),
    *_in(
        "config.py",
        "test_reconstructions_and_samples_are_those_of_the_notes",
        ("preset: head", 'head: Head = "relu"', 'head: Head = "linear"'),
    ),
    # The step.
    *_in(
        "train_step.py",
        "test_first_step",
        ("step: 255 is 256", "astype(jnp.float32) / 255", "astype(jnp.float32) / 256"),
        ("step: sum for mean", "value.mean() for", "value.sum() for"),
        ("step: gradient's sign", 'return metrics["loss"], metrics', 'return -metrics["loss"], metrics'),
        ("step: gradient's scale", 'return metrics["loss"], metrics', 'return 1.001 * metrics["loss"], metrics'),
        ("step: noise without the step", "jax.random.fold_in(key, state.step)", "key"),
    ),
    *_in(
        "keys.py",
        "test_first_step",
        ("step: one noise for all places", "jax.random.fold_in(key, place))(", "jax.random.fold_in(key, 0 * place))("),
    ),
    *_in(
        "train_step.py",
        "test_training_curve",
        ("step: not counted", "TrainState(state.step + 1, ", "TrainState(state.step, "),
    ),
    # Adam.
    *_in(
        "config.py",
        "test_adam_is_pytorchs",
        ("Adam: b1", "adam_b1: float = 0.9\n", "adam_b1: float = 0.91\n"),
        ("Adam: b2", "adam_b2: float = 0.999\n", "adam_b2: float = 0.9991\n"),
        ("Adam: eps 10 times larger", "adam_eps: float = 1e-8\n", "adam_eps: float = 1e-7\n"),
        ("Adam: eps dropped", "adam_eps: float = 1e-8\n", "adam_eps: float = 1e-30\n"),
    ),
    *_in(
        "train_step.py",
        "test_adam_is_pytorchs",
        ("Adam: learning rate", 'rate = numbers["learning_rate"]', 'rate = 1.001 * numbers["learning_rate"]'),
        ("Adam: sign", "optax.scale(-rate)", "optax.scale(rate)"),
        ("Adam: weight of the gradient", "(1 - b1) * g", "g"),
        ("Adam: weight of its square", "(1 - b2) * jnp.square(g)", "jnp.square(g)"),
        ("Adam: not squared", "(1 - b2) * jnp.square(g)", "(1 - b2) * jnp.abs(g)"),
        ("Adam: first bias correction", "m * (-1 / jnp.expm1(t * math.log(b1)))", "m"),
        ("Adam: second bias correction", "v * (-1 / jnp.expm1(t * math.log(b2)))", "v"),
        ("Adam: eps inside the root", "(jnp.sqrt(v_hat) + eps)", "jnp.sqrt(v_hat + eps)"),
        ("Adam: no root", "(jnp.sqrt(v_hat) + eps)", "(v_hat + eps)"),
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


def mutated(mutation: Mutation) -> str:
    """The text of the mutated file. Raises `ValueError` unless `old` occurs exactly once."""
    text = (ROOT / "jaxvae" / mutation.file).read_text(encoding="utf-8")
    if (count := text.count(mutation.old)) != 1:
        raise ValueError(f"{mutation.name}: {mutation.old!r} occurs {count} times in jaxvae/{mutation.file}")
    return text.replace(mutation.old, mutation.new)


def run(mutation: Mutation | None) -> Outcome:
    """Test a copy of jaxvae with one mutation; or an unchanged one with all tests but PyTorch's own."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        shutil.copytree(ROOT / "jaxvae", copy / "jaxvae")
        for name in COPIED:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        selection = [TESTS, "-k", "not pytorch_computes"]
        if mutation is not None:
            (copy / "jaxvae" / mutation.file).write_text(mutated(mutation), encoding="utf-8")
            selection = [f"{TESTS}::{mutation.test}"]
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

    jax.config.update("jax_compilation_cache_dir", None)  # Which would be shared with those that run beside it.
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
