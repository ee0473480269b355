"""The benchmark's counts against closed forms, and its command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxvae import benchmark, build_model, build_objective, build_optimizer, cli, data, make_train_step
from jaxvae.config import PRESETS
from jaxvae.models.convolution import convolve
from jaxvae.train.step import abstract_state

pytestmark = pytest.mark.unoptimized

# Multiplications of a step of the notes' models, an image: forward, for the weights, and for all inputs but the first.
ENCODER = (784 * 256, 256 * 64, 64 * 20)
NOTES_AE = 3 * 2 * sum(ENCODER) - 784 * 256
NOTES_VAE = 3 * (2 * sum(ENCODER) - 20 * 64 + 10 * 64) - 784 * 256


@pytest.mark.parametrize(("preset", "products"), [("notes-ae", NOTES_AE), ("notes-vae", NOTES_VAE)])
def test_flops_are_those_of_the_layers(preset: str, products: int) -> None:
    flops, xla_flops = benchmark.flops_per_step(PRESETS[preset], (28, 28, 1))
    assert flops == 2 * 32 * products
    # XLA counts all the rest too: Adam, losses, noise.
    assert flops < xla_flops < 1.25 * flops


def test_flops_of_a_convolution() -> None:
    def valid(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv(x, kernel, (2, 2), "VALID")

    x, kernel = jnp.zeros((5, 3, 9, 9)), jnp.zeros((7, 3, 3, 3))
    flops = benchmark.product_flops(jax.make_jaxpr(jax.jit(valid))(x, kernel).jaxpr)
    assert flops == 2 * (5 * 7 * 4 * 4) * (3 * 3 * 3)


def test_flops_of_a_convolution_are_counted_once_whatever_a_device_makes_of_it() -> None:
    x, kernel = jnp.zeros((5, 8, 6, 3)), jnp.zeros((3, 3, 3, 7))
    flops = benchmark.product_flops(jax.make_jaxpr(lambda x, kernel: convolve(x, kernel, 2))(x, kernel).jaxpr)
    assert flops == 2 * (5 * 4 * 3 * 7) * (3 * 3 * 3)


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "default"), ("float32", "highest"), ("bfloat16", "high")])
def test_the_peak_is_that_of_the_products_of_training(dtype: Any, precision: Any, monkeypatch: Any) -> None:
    """The matrices that are timed are multiplied as the training step's are."""
    config = dataclasses.replace(PRESETS["vae"], compute_dtype=dtype, matmul_precision=precision)
    jaxprs = []

    def traced(function: Any) -> Any:
        def call(*args: Any) -> Any:
            jaxprs.append(jax.make_jaxpr(function)(*args).jaxpr)
            return args[0]

        return call

    monkeypatch.setattr(jax, "jit", traced)
    benchmark.matmul_timer(config.compute_dtype, config.matmul_precision)
    (product,) = benchmark.products(jaxprs[-1])
    model, optimizer = build_model(config, (28, 28, 1)), build_optimizer(config)
    batch = jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.uint8)
    step = make_train_step(model, build_objective(config), optimizer)
    trained = jax.make_jaxpr(step)(abstract_state(model, optimizer), batch, jax.random.key(0)).jaxpr

    def kind(product: Any) -> tuple[Any, ...]:
        return product.params["precision"], *(operand.aval.dtype for operand in product.invars)

    assert {kind(p) for p in benchmark.products(trained)} == {kind(product)}
    assert benchmark.products_of(config) == ("bfloat16" if dtype == "bfloat16" else f"float32-{precision}")


def run(*args: str) -> int:
    return cli.run(lambda: benchmark.main(args))


def test_command_line(image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    args = [
        "--preset",
        "notes-vae",
        "notes-ae",
        "--batch-size",
        "30000",
        "--devices",
        "1",
        "2",
        "--dataset",
        str(image_file),
    ]
    args += ["--matmul-precision", "high"]
    assert run(*args, "--rounds", "2", "--skip-first-step", "--json", str(path)) == 0
    out = capsys.readouterr().out
    assert "its 64 images are repeated to make 60,000" in out and "emulated CPU devices" in out
    content = json.loads(path.read_text())
    assert content["machine"]["versions"]["jax"] == jax.__version__
    asked = [(preset, devices) for preset in ("notes-vae", "notes-ae") for devices in (1, 2)]
    assert [(r["preset"], r["devices"]) for r in content["results"]] == asked
    for r in content["results"]:
        assert len(r["steps_per_second_rounds"]) == 2
        assert r["images_per_second"] == 30_000 * r["steps_per_second"] > 0
        assert r["flops_per_second"] == r["flops_per_step"] * r["steps_per_second"]
        assert r["products"] == "float32-high" and " of float32-high\n" in out
        assert r["peak_fraction"] > 0 and r["compile_seconds"] > 0
        assert f" {r['steps_per_second']:,.{int(min(r['steps_per_second_rounds']) < 100)}f} " in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--preset", "notes-va"],
            "error: --preset notes-va: unknown; choose from notes-ae, notes-vae, vae, iwae; did you mean notes-vae?\n",
        ),
        (["--batch-size", "0"], "error: --batch-size must be at least 1, not 0\n"),
        (["--batch-size", "60001"], "error: --batch-size 60001 is larger than the 60000 training images\n"),
        (["--preset"], "error: --preset needs at least one value\n"),
        (["--devices", "3"], "error: --batch-size 32 does not divide over 3 devices\n"),
        (["--devices", "16", "--skip-first-step"], "error: --devices 16: this machine has 8 (cpu)\n"),
        (["--rounds", "0"], "error: --rounds must be at least 1, not 0\n"),
        (["--json", "missing/f.json"], "error: --json missing/f.json cannot be written: No such file or directory\n"),
    ],
)
def test_bad_input(args: list[str], message: str, image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dataset", str(image_file), *args) == 2
    assert capsys.readouterr().err == message


def test_distortions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(load: float = 0.0, **environment: str) -> str:
        return "; ".join(benchmark.distortions(load, environment))

    assert "load average 1.5" in words(load=1.5)
    assert "load" not in words()
    assert "XLA_FLAGS=--xla_x" in words(XLA_FLAGS="--xla_x")
    monkeypatch.setattr(benchmark, "_cores", lambda: 0)
    assert "may use 0 of" in words()
    with jax.debug_nans(True):
        assert "jax_debug_nans is set" in words()


@pytest.mark.slow
def test_first_step_of_the_real_command(image_file: Path, tmp_path: Path) -> None:
    images: Any = data.load(str(image_file), None)
    seconds = benchmark.first_step_seconds("notes-ae", images, None, tmp_path / "cache")
    assert seconds > 0 and any((tmp_path / "cache").iterdir())
    with pytest.raises(RuntimeError, match="ended early: error: --preset nothing"):
        benchmark.first_step_seconds("nothing", images, None, tmp_path / "cache")
