"""The benchmark's command line, what it measures, and what it starts."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small import products

from jaxvae import benchmark, build_model, build_objective, build_optimizer, cli, data, flags, make_train_step
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.train import __main__ as train_command
from jaxvae.train.cost import products_of
from jaxvae.train.step import abstract_state

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
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
    (product,) = products(jaxprs[-1])
    model, optimizer = build_model(config, (28, 28, 1)), build_optimizer(config)
    batch = jax.ShapeDtypeStruct((4, 28, 28, 1), jnp.uint8)
    step = make_train_step(model, build_objective(config), optimizer)
    trained = jax.make_jaxpr(step)(abstract_state(model, optimizer), batch, jax.random.key(0)).jaxpr

    def kind(product: Any) -> tuple[Any, ...]:
        return product.params["precision"], *(operand.aval.dtype for operand in product.invars)

    assert {kind(p) for p in products(trained)} == {kind(product)}
    assert products_of(config) == ("bfloat16" if dtype == "bfloat16" else f"float32-{precision}")


def run(*args: str) -> int:
    return cli.run(lambda: benchmark.main(args))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rounds, of few images."""
    monkeypatch.setattr(benchmark, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "IMAGES", 300)


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_command_line(image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    args = ["--preset", "vae", "--hidden", "32", "16", "--devices", "1", "2", "--batch-size", "8", "300"]
    args += ["--dataset", str(image_file), "--matmul-precision", "high", "--validation", "0"]
    assert run(*args, "--rounds", "2", "--skip-first-step", "--json", str(path)) == 0
    out = capsys.readouterr().out
    assert "its 64 images are repeated to make 300" in out and "emulated CPU devices" in out
    model = "vae, changed: validation 0, hidden 32,16, matmul_precision high"
    assert f"\n{model}, on {image_file}:\n" in out
    content = json.loads(path.read_text())
    assert content["machine"]["versions"]["jax"] == jax.__version__ and content["model"] == model
    asked = [(size, devices) for size in (8, 300) for devices in (1, 2)]
    assert [(r["batch_size"], r["devices"]) for r in content["results"]] == asked
    for r in content["results"]:
        assert len(r["steps_per_second_rounds"]) == 2
        assert r["images_per_second"] == r["batch_size"] * r["steps_per_second"] > 0
        assert r["flops_per_second"] == r["flops_per_step"] * r["steps_per_second"]
        assert r["products"] == "float32-high" and " of float32-high\n" in out
        assert r["peak_fraction"] > 0 and r["compile_seconds"] > 0
        assert f" {cli.number(r['steps_per_second'])} " in out
    # Encoder 30-32-16-2*20, decoder 20-16-32-30: three products a layer, but two in the first.
    layers = (30 * 32, 32 * 16, 16 * 40, 20 * 16, 16 * 32, 32 * 30)
    assert content["results"][0]["flops_per_step"] == 2 * 8 * (3 * sum(layers) - 30 * 32)


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_the_users_own_model_on_a_folder_of_pictures(
    images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(images[:20]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number:02}.png")
    args = ["--preset", "vae", "--architecture", "conv", "--hidden", "4", "8", "--likelihood", "own_parts:Cauchy"]
    args += ["--cauchy-scale", "0.2", "--dataset", str(tmp_path), "--rounds", "1", "--skip-first-step"]
    assert run(*args) == 0
    out = capsys.readouterr().out
    assert "architecture conv" in out and "likelihood own_parts:Cauchy, cauchy_scale 0.2" in out
    # Of the sizes that are measured by default, those that 300 images fill.
    rows = out.partition("batch devices")[2].splitlines()[1:3]
    assert [row.split()[:2] for row in rows] == [["32", "1"], ["128", "1"]]
    assert "\n   512 " not in out


def test_the_command_it_starts_trains_what_it_measures() -> None:
    args = ["--preset", "vae", "--architecture", "conv", "--hidden", "4", "8", "--likelihood", "own_parts:Cauchy"]
    args += ["--cauchy-scale", "0.2", "--learning-rate", "3e-05", "--dequantize", "--seed", "7"]
    arguments, sized, given = benchmark.parse([*args, "--batch-size", "16", "8", "--rounds", "3"])
    assert given and [config.batch_size for config in sized] == [16, 8] and arguments.rounds == 3
    for config in sized:
        assert train_command.parse(flags.flags_of(config)).config == config
    for preset in PRESETS.values():
        assert train_command.parse(flags.flags_of(preset)).config == preset


def test_images_are_repeated_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    few = data.ImageData(
        "few", "here", np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.zeros((1, 2, 2, 1), np.uint8)
    )
    assert benchmark.repeated(few).train.shape == (60_000, 2, 2, 1)
    assert (benchmark.repeated(few).train[3:6] == few.train).all()
    monkeypatch.setattr(benchmark, "IMAGE_BYTES", 4 * 7 + 3)
    assert len(benchmark.repeated(few).train) == 7
    monkeypatch.setattr(benchmark, "IMAGE_BYTES", 4)
    assert len(benchmark.repeated(few).train) == 3  # No image is left out.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--preset", "notes-va"],
            "error: --preset notes-va: unknown; choose from notes-ae, notes-vae, vae, iwae, vamp, ladder, vq-vae, fsq; "
            "did you mean notes-vae?\n",
        ),
        (["--batch-size", "0"], "error: --batch-size must be at least 1, not 0\n"),
        (
            ["--batch-size", "32", "x"],
            "error: --batch-size must be a whole number, not x (see python -m jaxvae.benchmark --help)\n",
        ),
        (["--batch-size", "60001"], "error: --batch-size 60001 is larger than the 60000 training images: try 8192\n"),
        (["--batch-size"], "error: argument --batch-size/--batch_size: expected at least one argument\n"),
        (["--devices", "3"], "error: --batch-size 32 does not divide over 3 devices\n"),
        (["--devices", "16", "--skip-first-step"], "error: --devices 16: this machine has 8 (cpu)\n"),
        (["--rounds", "0"], "error: --rounds must be at least 1, not 0\n"),
        (["--json", "missing/f.json"], "error: --json missing/f.json cannot be written: No such file or directory\n"),
        (
            ["--beta", "2"],
            "error: --beta 2 has no effect: it needs --objective elbo, iwae, dreg, info, beta-tc or factor\n",
        ),
        (["--resume"], "error: --resume: there is no such flag"),
        (["--likelihood", "nowhere:Name"], "error: --likelihood nowhere:Name: nowhere cannot be imported: "),
    ],
)
def test_bad_input(args: list[str], message: str, image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dataset", str(image_file), *args) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {32: 0.3, 512: 0.61, 4096: 0.8},
            "matrix products limit a step from batch size 512 on; below that, small operations",
        ),
        ({32: 0.9, 512: 0.9}, "matrix products limit every step: only a smaller model"),
        ({32: 0.1, 512: 0.0}, "small operations and memory limit a step"),
    ],
)
def test_the_conclusion_says_what_to_do(parts: dict[int, float], said: str) -> None:
    measured = [{"devices": 1, "batch_size": size, "peak_fraction": part} for size, part in parts.items()]
    more = [{"devices": 2, "batch_size": 32, "peak_fraction": 0.7}]
    assert benchmark.conclusion([*more, *reversed(measured)]).startswith(said)


def test_numbers_of_any_size_are_readable() -> None:
    words = [cli.number(value) for value in (0, 0.0512345, 0.9996, 12.345, 104.2, 104_321.5)]
    assert words == ["0", "0.0512", "1.000", "12.3", "104", "104,322"]


def test_distortions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(load: float = 0.0, **environment: str) -> str:
        return "; ".join(benchmark.distortions(load, environment))

    assert "load average 1.5" in words(load=1.5)
    assert "load" not in words()
    assert "XLA_FLAGS=--xla_x" in words(XLA_FLAGS="--xla_x")
    monkeypatch.setattr(benchmark, "cores", lambda: 0)
    assert "may use 0 of" in words()
    with jax.debug_nans(True):
        assert "jax_debug_nans is set" in words()


@pytest.mark.long
def test_first_step_of_the_real_command(image_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    _, (config,), _ = benchmark.parse(
        ["--preset", "vae", "--prior", "own_parts:Wide", "--dataset", str(image_file), "--batch-size", "8"]
    )
    assert benchmark.first_step_seconds(config, tmp_path / "caches") > 0
    assert any((tmp_path / "caches" / "jaxvae").glob("*/*"))
    missing = dataclasses.replace(config, dataset="nothing.npz")
    with pytest.raises(
        InputError, match=r"--preset vae .* ended before its first step: error: --dataset 'nothing.npz'"
    ):
        benchmark.first_step_seconds(missing, tmp_path / "caches")
