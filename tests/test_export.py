"""Exported models against the models themselves: in JavaScript, in a process without this package, and as weights."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax.traverse_util import unflatten_dict
from huggingface_hub import ModelCard
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from runs import train
from safetensors.numpy import load_file

import jaxvae
from jaxvae import cli, config_file, walks
from jaxvae.errors import InputError, SaveError
from jaxvae.export import __main__ as command
from jaxvae.export import formats, page
from jaxvae.export.onnx.files import onnx_files_of
from jaxvae.models.torch_layers import TorchLayer

pytestmark = pytest.mark.unoptimized

NODE = shutil.which("node")
VAES = {
    "vae": ["--hidden", "8", "4", "--activation", "gelu"],
    "gated": ["--architecture", "gated", "--hidden", "8", "4"],
    "conv": ["--architecture", "conv", "--hidden", "4", "6", "--likelihood", "logistic", "--activation", "elu"],
    "resnet": ["--architecture", "resnet", "--blocks", "1", "--hidden", "16", "24", "--activation", "silu"],
    "gaussian": ["--hidden", "8", "--likelihood", "gaussian-pixel", "--activation", "tanh"],
    "label": ["--hidden", "8", "--condition", "label"],
}
# One of everything that can be exported as programs and as weights.
ALL = {
    **VAES,
    "spatial": [
        *("--architecture", "resnet", "--latents", "spatial", "--latent-size", "4", "--blocks", "1"),
        *("--hidden", "8", "16", "--condition", "label"),
    ],
    "notes-ae": ["--preset", "notes-ae", "--hidden", "8"],
    "notes-vae": ["--preset", "notes-vae", "--hidden", "8"],
    "iwae": ["--preset", "iwae", "--hidden", "8", "--samples", "2"],
    "two-layer": ["--preset", "iwae", "--architecture", "two-layer", "--hidden", "8", "4", "--samples", "2"],
    "own": ["--preset", "vae", "--model", "own_parts:Vae", "--objective", "own_parts:loss"],
}
LABELLED = ("label", "spatial")
SLOW = ("resnet", "spatial")
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ALL]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    images = np.random.default_rng(0).integers(0, 256, (40, 7, 6, 3), np.uint8)
    given = {"x_train": images, "x_test": images[:16], "y_train": np.arange(40) % 3, "y_test": np.arange(16) % 3}
    np.savez(directory / "images.npz", **given)
    return directory


def run_of(runs: Path, name: str, *flags: str) -> Path:
    if not (runs / name).exists():
        flags = flags or tuple(ALL[name])
        given = ["--dataset", str(runs / "images.npz"), "--batch-size", "20", "--epochs", "9"]
        given += [] if {"--latent-size", "--model"} & set(flags) else ["--latent-size", "3"]
        preset = [] if "--preset" in flags else ["--preset", "vae", "--learning-rate", "0.02"]
        assert train(*preset, *given, *flags, "--run-dir", str(runs / name)) == 0
    return runs / name


def export(*words: Any) -> int:
    return cli.run(lambda: command.main([str(word) for word in words]))


def latents(size: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(5, size)).astype(np.float32)


def given_to(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, Any]]:
    """Images, latents and labels for a model. The model of the preset iwae sees binary images."""
    images = np.random.default_rng(2).random((5, 7, 6, 3)).astype(np.float32)
    binary = "iwae" in ALL[name]
    size = {"two-layer": 6, "spatial": 4}.get(name, 3)
    told = {"label": np.int32([0, 1, 2, 0, 1])} if name in LABELLED else {}
    return np.round(images) if binary else images, latents(size), told


def script_of(html: str) -> str:
    """The page's decoder and its model, as a program that reads latents and labels, and prints images."""
    [model] = re.findall(r'<script type="application/json" id="model">(.*?)</script>', html, re.DOTALL)
    decoder = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    return f"""{decoder}
const model = {model}, given = JSON.parse(process.argv[2]);
unpack(model.layers);
if (model.labels) model.labels = floats(model.labels);
console.log(JSON.stringify(given.map(([z, label]) => Array.from(decode(model, Float32Array.from(z), label)))));
"""


@pytest.mark.long
@pytest.mark.skipif(NODE is None, reason="there is no node to run JavaScript")
@pytest.mark.parametrize("name", VAES)
def test_the_page_draws_what_the_model_draws(name: str, runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, name)
    assert export(run, "--out", tmp_path / "model.html") == 0
    (tmp_path / "decode.js").write_text(script_of((tmp_path / "model.html").read_text()))
    labels = np.arange(5) % 3
    given = json.dumps(list(zip(latents().tolist(), labels.tolist(), strict=True)))
    said = subprocess.run([str(NODE), tmp_path / "decode.js", given], capture_output=True, check=True, text=True)
    drawn = np.array(json.loads(said.stdout)).reshape(5, 7, 6, 3)
    told = {"label": labels} if name == "label" else {}
    expected = jaxvae.load(run).decode(latents(), **told)
    assert expected.std() > 0.01
    np.testing.assert_allclose(drawn, expected, atol=3e-3)  # Weights in half precision.


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_holds_no_markup_of_the_run(runs: Path, tmp_path: Path) -> None:
    """Class names and paths may hold anything."""
    run = run_of(runs, "label")
    loaded = jaxvae.load(run)
    object.__setattr__(loaded, "record", {**loaded.record, "classes": ["</script><b>", "b & c", "c"]})
    html = page.page_of(loaded)
    assert "</script><b>" not in html and html.count("<script") == html.count("</script>") == 3
    assert not re.findall(r"(src|href)=|https?://|import\(|fetch\(", html)
    [model] = re.findall(r'id="model">(.*?)</script>', html, re.DOTALL)
    facts = json.loads(model)
    assert facts["classes"][0] == "</script><b>" and sorted(facts["order"]) == [0, 1, 2]


@pytest.mark.slow
def test_no_text_of_a_run_is_taken_for_a_place_of_the_page(runs: Path) -> None:
    loaded = jaxvae.load(run_of(runs, "label"))
    object.__setattr__(loaded, "record", {**loaded.record, "classes": ["TITLE", "MODEL", "DECODER"]})
    html = page.page_of(loaded)
    [model] = re.findall(r'id="model">(.*?)</script>', html, re.DOTALL)
    assert json.loads(model)["classes"] == ["TITLE", "MODEL", "DECODER"]


@pytest.mark.parametrize("code", ["nn.LeakyReLU()", "nn.Conv2d(3, 4, 5, padding=2)", "nn.GELU()", "print(1)"])
def test_layers_that_the_page_does_not_know(code: str) -> None:
    with pytest.raises(InputError, match="a page cannot compute the layer"):
        page._layer(TorchLayer(code), {})


@pytest.mark.slow
def test_latents_that_change_the_image_most_come_first(runs: Path) -> None:
    loaded = jaxvae.load(run_of(runs, "vae"))
    scale = np.array([1.0, 100.0, 0.0])[:, None]
    kernel = loaded.variables["params"]["decoder"]["mlp"]["dense_0"]["kernel"]
    variables = jax.tree.map(lambda a: a, loaded.variables)
    variables["params"]["decoder"]["mlp"]["dense_0"]["kernel"] = np.float32(kernel * scale)
    object.__setattr__(loaded, "variables", variables)
    assert walks.order(loaded)[-1] == 2 and walks.order(loaded)[0] == 1


@pytest.mark.long
@pytest.mark.parametrize("flags", [["--preset", "notes-ae"], ["--prior", "label", "--hidden", "8"]])
def test_models_without_a_page(flags: list[str], runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, "-".join(flags[:2]), *flags)
    with pytest.raises(InputError, match="--format html needs a VAE with one layer of latents and --prior normal"):
        formats.export_run(run, "html", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_a_decoder_that_is_too_large_for_a_page(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_PARAMETERS", 100)
    with pytest.raises(InputError, match="the decoder has 1,190 parameters; a page takes 100"):
        page.page_of(jaxvae.load(run_of(runs, "vae")))


ALONE = """
import json, sys
import jax
from pathlib import Path
import numpy as np

folder, given = Path(sys.argv[1]), np.load(sys.argv[2])
labels = [given["labels"]] if sys.argv[3] == "label" else []
results = {}
for name, values in (("encode", given["images"]), ("decode", given["latents"])):
    program = jax.export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    found = jax.tree.leaves(program.call(values, *labels))
    results |= {f"{name}_{place}": value for place, value in enumerate(found)}
assert "jaxvae" not in sys.modules
np.savez(sys.argv[4], **results)
"""


@pytest.mark.long
@pytest.mark.parametrize("name", EACH)
def test_programs_run_in_a_process_without_this_package(name: str, runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, name)
    assert export(run, "--format", "stablehlo", "--out", tmp_path / "programs") == 0
    loaded = jaxvae.load(run)
    images, z, told = given_to(name)
    np.savez(tmp_path / "given.npz", images=images, latents=z, labels=np.int32([0, 1, 2, 0, 1]))
    words = [tmp_path / "programs", tmp_path / "given.npz", "label" if told else "", tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], check=True)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["encode_0"], loaded.encode(images, **told), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["decode_0"], loaded.decode(z, **told), rtol=1e-4, atol=1e-5)
    assert ("encode_1" in found) == (name != "notes-ae")
    text = (tmp_path / "programs" / "README.txt").read_text()
    assert ("labels" in text) == bool(told)


@pytest.mark.long
@pytest.mark.parametrize("name", EACH)
def test_onnx_files_compute_what_the_model_computes(name: str, runs: Path, tmp_path: Path) -> None:
    run, out = run_of(runs, name), tmp_path / "files"
    assert export(run, "--format", "onnx", "--out", out) == 0
    loaded = jaxvae.load(run)
    images, z, told = given_to(name)
    encoder, decoder = (InferenceSession(out / f"{part}.onnx") for part in ("encoder", "decoder"))
    for count in (5, 2):  # Any number of images.
        some = {label: values[:count] for label, values in told.items()}
        code = encoder.run(None, {"image": images[:count], **some})
        decoded = decoder.run(["image"], {"latent": z[:count], **some})[0]
        assert code[0].std() > 0.01 and decoded.std() > 0.01
        np.testing.assert_allclose(code[0], loaded.encode(images[:count], **some), rtol=0, atol=1e-5)
        np.testing.assert_allclose(decoded, loaded.decode(z[:count], **some), rtol=0, atol=1e-5)
    if name not in ("notes-ae", "own"):
        draw = {"label": told["label"][:2]} if told else {}
        _, std = loaded.model.apply(loaded.variables, jnp.asarray(images[:2]), **draw, method="encode")
        np.testing.assert_allclose(code[1], std, rtol=0, atol=1e-5)
    model = onnx.load(out / "decoder.onnx")
    onnx.checker.check_model(model, full_check=True)
    [image] = model.graph.output
    assert "[N, 7, 6, 3]" in image.doc_string and "Intensities in [0, 1]" in image.doc_string
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert (
        said["image"] == image.doc_string and said["trained_on"] == "images.npz" and said["steps"] == str(loaded.step)
    )
    assert [i.name for i in model.graph.input] == ["latent", *told]
    # Convolutions as such, and not the many operations of the products that take their place on a CPU.
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Gather"] == 0 and (kinds["ConvTranspose"] == 2) == (name in ("conv", *SLOW))
    assert len(model.graph.node) < 200


def test_onnx_files_of_a_bfloat16_model_compute_in_float32(runs: Path, tmp_path: Path) -> None:
    loaded = jaxvae.load(run_of(runs, "vae"))
    low = dataclasses.replace(loaded, model=loaded.model.clone(dtype=jnp.bfloat16))
    assert onnx_files_of(low) == onnx_files_of(loaded)


@pytest.mark.slow
def test_a_model_that_onnx_cannot_have(runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, "own")
    loaded = jaxvae.load(run)

    class Sorted(type(loaded.model)):  # type: ignore[misc]
        def decode(self, latent: Any) -> Any:
            return super().decode(jnp.sort(latent))

    with pytest.raises(InputError, match="--format onnx: the model computes sort, which"):
        onnx_files_of(dataclasses.replace(loaded, model=Sorted()))


def test_a_file_that_could_not_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path / "no run", "--out", tmp_path / "no folder" / "model.html") == 2
    assert "model.html cannot be written: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "package"), [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_package_is_named_with_its_extra(
    form: Any, package: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(runs, "vae")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(InputError, match=f"--format {form}: needs the package {package}: pip install 'jaxvae.{form}.'"):
        formats.export_run(run, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_weights_and_their_card_make_the_model_again(name: str, runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, name)
    out = tmp_path / "weights"
    assert export(run, "--format", "safetensors", "--out", out) == 0
    card = (out / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    _, z, told = given_to(name)
    given: dict[str, Any] = {"latents": z, "labels": told.get("label")}
    code = code.replace('"config.json"', repr(str(out / "config.json"))).replace('"model.saf', f'"{out}/model.saf')
    exec(code, given)
    loaded = jaxvae.load(run)
    images = given["images"] if name == "own" else jax.nn.sigmoid(given["images"])
    np.testing.assert_allclose(images, loaded.decode(z, **told), rtol=1e-5, atol=1e-6)
    variables = unflatten_dict(load_file(out / "model.safetensors"), sep=".")
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(loaded.variables))
    assert config_file.load(out / "config.json", to_use=True).likelihood == loaded.config.likelihood
    assert "Test images: loss" in card and "7 x 6 x 3" in card
    said = ModelCard(card).data  # As the hub reads it.
    kind = {"notes-ae": ["autoencoder"], "own": []}.get(name, ["vae"])
    assert said.library_name == "jaxvae" and said.tags == [*kind, "jax", "flax"]
    assert str(runs) not in card + (out / "config.json").read_text()  # Where the images were is nobody's business.


def test_what_exists_is_not_overwritten(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.html"
    out.write_text("mine")
    assert export(run_of(runs, "vae"), "--out", out) == cli.EXIT_BAD_INPUT
    assert out.read_text() == "mine" and "there is something of that name" in capsys.readouterr().err
    with pytest.raises(SaveError, match="such.html cannot be written: No such file or directory"):
        formats.export_run(run_of(runs, "vae"), "html", tmp_path / "no" / "such.html")
