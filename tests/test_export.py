"""Exported models against the models themselves: in JavaScript, in a process without this package, and as weights."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from numpy.typing import NDArray
from runs import train
from safetensors.numpy import load_file

import jaxvae
from jaxvae import cli, config_file, walks
from jaxvae.errors import InputError
from jaxvae.export import __main__ as command
from jaxvae.export import formats, page
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    images = np.random.default_rng(0).integers(0, 256, (40, 7, 6, 3), np.uint8)
    given = {"x_train": images, "x_test": images[:16], "y_train": np.arange(40) % 3, "y_test": np.arange(16) % 3}
    np.savez(directory / "images.npz", **given)
    return directory


def run_of(runs: Path, name: str, *flags: str) -> Path:
    if not (runs / name).exists():
        given = ["--dataset", str(runs / "images.npz"), "--latent-size", "3", "--batch-size", "20", "--epochs", "9"]
        preset = [] if "--preset" in flags else ["--preset", "vae", "--learning-rate", "0.02"]
        assert train(*preset, *given, *(flags or VAES[name]), "--run-dir", str(runs / name)) == 0
    return runs / name


def export(*words: Any) -> int:
    return cli.run(lambda: command.main([str(word) for word in words]))


def latents() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


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


def test_latents_that_change_the_image_most_come_first(runs: Path) -> None:
    loaded = jaxvae.load(run_of(runs, "vae"))
    scale = np.array([1.0, 100.0, 0.0])[:, None]
    kernel = loaded.variables["params"]["decoder"]["mlp"]["dense_0"]["kernel"]
    variables = jax.tree.map(lambda a: a, loaded.variables)
    variables["params"]["decoder"]["mlp"]["dense_0"]["kernel"] = np.float32(kernel * scale)
    object.__setattr__(loaded, "variables", variables)
    assert walks.order(loaded)[-1] == 2 and walks.order(loaded)[0] == 1


@pytest.mark.parametrize("flags", [["--preset", "notes-ae"], ["--prior", "label", "--hidden", "8"]])
def test_models_without_a_page(flags: list[str], runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, "-".join(flags[:2]), *flags)
    with pytest.raises(InputError, match="--format html needs a VAE with one layer of latents and --prior normal"):
        formats.export_run(run, "html", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


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


@pytest.mark.parametrize("name", ["vae", "conv", "resnet", "label", "notes-ae"])
def test_programs_run_in_a_process_without_this_package(name: str, runs: Path, tmp_path: Path) -> None:
    run = run_of(runs, name, *(["--preset", "notes-ae"] if name == "notes-ae" else []))
    assert export(run, "--format", "stablehlo", "--out", tmp_path / "programs") == 0
    loaded = jaxvae.load(run)
    images = np.random.default_rng(2).random((5, 7, 6, 3)).astype(np.float32)
    np.savez(tmp_path / "given.npz", images=images, latents=latents(), labels=np.int32([0, 1, 2, 0, 1]))
    words = [tmp_path / "programs", tmp_path / "given.npz", name, tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], check=True)
    found = np.load(tmp_path / "found.npz")
    told = {"label": np.int32([0, 1, 2, 0, 1])} if name == "label" else {}
    np.testing.assert_allclose(found["encode_0"], loaded.encode(images, **told), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["decode_0"], loaded.decode(latents(), **told), rtol=1e-4, atol=1e-5)
    assert ("encode_1" in found) == (name != "notes-ae")
    text = (tmp_path / "programs" / "README.txt").read_text()
    assert ("labels" in text) == (name == "label")


@pytest.mark.parametrize("name", ["conv", "two-layer", "label"])
def test_weights_and_their_card_make_the_model_again(name: str, runs: Path, tmp_path: Path) -> None:
    two_layer = ["--preset", "iwae", "--architecture", "two-layer", "--samples", "2", "--hidden", "8", "4"]
    run = run_of(runs, name, *(two_layer if name == "two-layer" else []))
    out = tmp_path / "weights"
    assert export(run, "--format", "safetensors", "--out", out) == 0
    card = (out / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    given: dict[str, Any] = {
        "latents": np.zeros((2, 6 if name == "two-layer" else 3), np.float32),
        "labels": np.int32([0, 1]),
    }
    code = code.replace('"config.json"', repr(str(out / "config.json"))).replace('"model.saf', f'"{out}/model.saf')
    exec(code, given)
    assert given["images"].shape == (2, 7, 6, 3)
    loaded = jaxvae.load(run)
    variables = unflatten_dict(load_file(out / "model.safetensors"), sep=".")
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(loaded.variables))
    assert config_file.load(out / "config.json", to_use=True).likelihood == loaded.config.likelihood
    assert "Test images: loss" in card and "7 x 6 x 3" in card
    assert str(runs) not in card + (out / "config.json").read_text()  # Where the images were is nobody's business.


def test_what_exists_is_not_overwritten(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.html"
    out.write_text("mine")
    assert export(run_of(runs, "vae"), "--out", out) == cli.EXIT_BAD_INPUT
    assert out.read_text() == "mine" and "there is something of that name" in capsys.readouterr().err
    assert export(run_of(runs, "vae"), "--out", tmp_path / "no" / "such.html") == cli.EXIT_NOT_SAVED
