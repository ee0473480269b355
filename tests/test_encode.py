"""Latents on the command line: encode, and what generate makes of them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from numpy.typing import NDArray
from PIL import Image
from runs import SMALL, train

from jaxvae import cli, data, encode, generate, walks
from jaxvae.config import PRESETS
from jaxvae.data.images import ImageData
from jaxvae.data.rows import Rows, StoredArray
from jaxvae.errors import InputError
from jaxvae.models.build import build_model
from jaxvae.optimizer import build_optimizer
from jaxvae.run import plots
from jaxvae.train.step import init_state
from jaxvae.trained import TrainedRun, load_run

pytestmark = [pytest.mark.unoptimized, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8]) -> Path:
    """A VAE with two latents, an autoencoder with four, and the file of their images."""
    place = tmp_path_factory.mktemp("encode")
    np.savez(place / "images.npz", train=images[:64], test=images[64:])
    np.save(place / "whole.npy", images)
    flags = ["--dataset", str(place / "images.npz"), *SMALL, "--epochs", "1"]
    assert train("--preset", "vae", *flags, "--latent-size", "2", "--run-dir", str(place / "vae")) == 0
    assert train("--preset", "notes-ae", *flags, "--run-dir", str(place / "ae")) == 0
    return place


def run_encode(*args: object) -> int:
    return cli.run(lambda: encode.main([str(arg) for arg in args]))


def run_generate(*args: object) -> int:
    return cli.run(lambda: generate.main([str(arg) for arg in args]))


def moments(run: TrainedRun, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean, std = run.model.apply(run.variables, np.float32(images) / 255, method="encode")
    return np.asarray(mean), np.asarray(std)


def decoded(run: TrainedRun, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(nn.sigmoid(run.model.apply(run.variables, np.float32(latents), method="decode")))


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)[::2, ::2, None]


def test_a_file_without_splits_stays_in_order(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    out = tmp_path / "latents.npz"
    assert run_encode(runs / "vae", runs / "whole.npy", "--out", out, "--map", tmp_path / "map.png") == 0
    mean, std = moments(load_run(runs / "vae"), images)
    with np.load(out) as found:
        assert {*found.files} == {"mean", "std"}
        np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["std"], std, rtol=1e-4)
    with Image.open(tmp_path / "map.png") as image:
        assert len(image.getcolors(2**24) or ()) > 20


@pytest.mark.long
def test_the_dataset_of_a_run_is_read_from_the_files_of_its_training(mnist_dir: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "mnist", "--data-dir", str(mnist_dir), "--validation", "0", "--epochs", "1"]
    assert train("--preset", "vae", *SMALL, *flags, "--run-dir", str(tmp_path / "run")) == 0
    assert run_encode(tmp_path / "run", "mnist", "--out", tmp_path / "latents.npz") == 0
    expected, _ = moments(load_run(tmp_path / "run"), data.load("mnist", mnist_dir).test)
    with np.load(tmp_path / "latents.npz") as found:
        assert found["split"].tolist() == ["train"] * 40 + ["test"] * 20
        np.testing.assert_allclose(found["mean"][40:], expected, rtol=1e-4, atol=1e-6)


def test_splits_are_named(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    assert run_encode(runs / "ae", runs / "images.npz", "--out", tmp_path / "codes.npz") == 0
    run = load_run(runs / "ae")
    with np.load(tmp_path / "codes.npz") as found:
        assert {*found.files} == {"mean", "split"}  # A code has no deviation.
        assert found["split"].tolist() == ["train"] * 64 + ["test"] * 32
        code = run.model.apply(run.variables, np.float32(images) / 255, method="encode")
        np.testing.assert_allclose(found["mean"], code, rtol=1e-4, atol=1e-6)


def test_a_folder_has_names_and_labels(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    """Few pictures, of another size and in colour: they are read as the model's images."""
    folder = tmp_path / "pictures"
    for place, name in enumerate(("b/2.png", "a/x.png", "b/1.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[place, ..., 0]).convert("RGB").resize((10, 12), Image.Resampling.NEAREST).save(
            folder / name
        )
    out = tmp_path / "latents.npz"
    assert run_encode(runs / "vae", folder, "--out", out, "--map", tmp_path / "map.png") == 0
    with np.load(out) as found:
        assert found["name"].tolist() == ["a/x.png", "b/1.png", "b/2.png"]
        assert found["label"].tolist() == [0, 1, 1] and found["classes"].tolist() == ["a", "b"]
        read = data.Reading(image_size=(6, 5), channels=1)
        once = data.pictures.pictures_of(folder, read).images
        assert once.shape == (3, 6, 5, 1)
        np.testing.assert_allclose(found["mean"], moments(load_run(runs / "vae"), once)[0], rtol=1e-4, atol=1e-6)


def test_a_folder_of_arrays_stays_in_order(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number, part in enumerate(np.split(images, [30, 70])):
        np.save(tmp_path / "shards" / f"{number}.npy", part)
    assert run_encode(runs / "vae", tmp_path / "shards", "--out", tmp_path / "latents.npz") == 0
    with np.load(tmp_path / "latents.npz") as found:
        np.testing.assert_allclose(found["mean"], moments(load_run(runs / "vae"), images)[0], rtol=1e-4, atol=1e-6)


def test_a_run_that_left_out_bad_pictures_encodes_arrays(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    np.save(tmp_path / "shards" / "0.npy", images[:10])
    run = load_run(runs / "vae")
    lenient = dataclasses.replace(run, config=dataclasses.replace(run.config, skip_bad=True))
    found = encode.encode(lenient, str(tmp_path / "shards"))
    np.testing.assert_array_equal(found["mean"], encode.encode(run, str(tmp_path / "shards"))["mean"])


@pytest.mark.parametrize("preset", ["vq-vae", "fsq"])
def test_discrete_latents_have_codes(preset: str, runs: Path) -> None:
    """Their vectors are those of the codes, channels first, and the codes are row by row."""
    own: dict[str, Any] = {"codes": 12, "code_size": 4} if preset == "vq-vae" else {"levels": (4, 3)}
    config = dataclasses.replace(PRESETS[preset], hidden=(8,), code_prior_layers=0, **own)
    model = build_model(config, (6, 5, 1))
    variables = jax.jit(lambda: init_state(model, build_optimizer(config, 1), jax.random.key(0)).variables)()
    run = TrainedRun(config, model, variables, 0, (6, 5, 1), {})
    found = encode.encode(run, str(runs / "images.npz"))
    assert {*found} == {"mean", "codes", "split"}
    assert found["codes"].shape == (96, 3, 3) and found["codes"].dtype == np.int32
    assert 0 <= found["codes"].min() < found["codes"].max() < 12
    vectors = model.apply(variables, found["codes"].reshape(96, 9), method=lambda m, c: m.quantizer.embed(c))
    expected = np.moveaxis(np.asarray(vectors), 2, 1).reshape(96, -1)
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-5, atol=1e-6)


def test_splits_without_a_test_set_are_named(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for split, part in (("train", images[:20]), ("validation", images[20:25])):
        pictures = [Image.fromarray(image[..., 0]) for image in part]
        datasets.Dataset.from_dict({"image": pictures}, datasets.Features(image=datasets.Image())).to_parquet(
            tmp_path / "set" / f"{split}.parquet"
        )
    assert run_encode(runs / "vae", f"hf:{tmp_path / 'set'}", "--out", tmp_path / "latents.npz") == 0
    order = [*(n for n in range(20) if n % 10 != 9), *range(20, 25), 9, 19]
    with np.load(tmp_path / "latents.npz") as found:
        assert found["split"].tolist() == ["train"] * 18 + ["validation"] * 5 + ["test"] * 2
        expected = moments(load_run(runs / "vae"), images[order])[0]
        np.testing.assert_allclose(found["mean"], expected, rtol=1e-4, atol=1e-6)


def test_latents_become_images_again(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    out, drawn = tmp_path / "latents.npz", tmp_path / "decoded.png"
    assert run_encode(runs / "vae", runs / "whole.npy", "--out", out) == 0
    assert run_generate(runs / "vae", "--latents", out, "-n", 20, "--out", drawn) == 0
    run = load_run(runs / "vae")
    expected = plots.image_grid(decoded(run, moments(run, images[:20])[0]))
    assert np.abs(picture(drawn).astype(int) - expected).max() <= 1


def test_a_row_for_each_latent(runs: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "traverse.png"
    assert run_generate(runs / "vae", "--traverse", "--out", drawn) == 0
    run = load_run(runs / "vae")
    rows = []
    for latent in (0, 1):
        latents = np.zeros((8, 2), np.float32)
        latents[:, latent] = np.linspace(-3, 3, 8)
        rows.append(decoded(run, latents))
    if walks.order(run)[0] == 1:
        rows.reverse()
    assert np.abs(picture(drawn).astype(int) - plots.image_grid(np.concatenate(rows))).max() <= 1


def test_lines_between_test_images(runs: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "lines.png"
    assert run_generate(runs / "ae", "--interpolate", "-n", 24, "--seed", 3, "--out", drawn) == 0
    run, test = load_run(runs / "ae"), data.load(str(runs / "images.npz")).test
    chosen = np.random.default_rng(3).permutation(len(test))[:6]
    rows = [run.interpolate(test[start], test[end]) for start, end in chosen.reshape(3, 2)]
    assert np.abs(picture(drawn).astype(int) - plots.image_grid(np.concatenate(rows))).max() <= 1


def test_the_nearest_training_image(runs: Path, images: NDArray[np.uint8], tmp_path: Path) -> None:
    drawn = tmp_path / "nearest.png"
    assert run_generate(runs / "vae", "--nearest", "-n", 8, "--out", drawn) == 0
    run = load_run(runs / "vae")
    samples = run.sample(8)
    kept = data.prepared(data.load(str(runs / "images.npz")), run.config).train
    assert len(kept) < 64  # Validation images were not trained on.
    distances = np.square(samples[:, None] - kept[None] / 255.0).sum((2, 3, 4))
    expected = plots.reconstruction_grid(samples, kept[distances.argmin(1)])
    assert np.abs(picture(drawn).astype(int) - expected).max() <= 1
    # Of images in a file, a chunk at a time.
    np.save(tmp_path / "rows.npy", images)
    offset = (tmp_path / "rows.npy").stat().st_size - images.nbytes
    rows = Rows([StoredArray(tmp_path / "rows.npy", offset, images.shape)])
    np.testing.assert_array_equal(walks.nearest(samples, rows), walks.nearest(samples, images))


@pytest.mark.parametrize(
    ("known", "names", "expected"),
    [
        (["ant", "bee", "cat"], ("bee", "cat"), [1, 2]),
        (["ant", "bee", "cat"], ("ant", "bee", "cat"), [0, 1]),
        (["ant", "bee", "cat"], (), [0, 1]),  # Numbers stay what they are.
        ([], ("3", "7"), [3, 7]),
        (["ant", "bee", "cat"], ("bee", "dog"), "the run knows no class dog: its classes are ant, bee, cat"),
        ([], ("3", "dog"), "the run knows no class dog: its classes are 0 to 9"),
    ],
)
def test_labels_are_numbered_as_in_training(known: list[str], names: tuple[str, ...], expected: Any) -> None:
    run: Any = SimpleNamespace(record={"classes": known}, config=SimpleNamespace(classes=len(known) or 10))
    image, label = np.zeros((2, 6, 5, 1), np.uint8), np.array([0, 1], np.int32)
    others = {split: {"label": label} for split in ("train", "test")}
    given = ImageData("x", "a test", image, image, others=others, classes=names)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            encode._labelled_as_trained(run, given)
        return
    found = encode._labelled_as_trained(run, given)
    assert [found.split(split)["label"].tolist() for split in ("train", "test")] == [expected] * 2


def test_samples_as_an_array(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.npy"
    assert run_generate(runs / "vae", "-n", 20, "--seed", 3, "--out", out) == 0
    written = np.load(out)
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, np.round(255 * load_run(runs / "vae").sample(20, 3)))
    assert data.load(str(out)).image_shape == written.shape[1:]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["RUNS/vae", "RUNS/whole.npy"], "name a file to write: --out latents.npz, or --map map.png"),
        (["RUNS/vae", "RUNS/whole.npy", "--out", "latents.png"], "--out latents.png: must end in .npz"),
        (["RUNS/vae", "nothing", "--out", "TMP/l.npz"], "'nothing': there is no such folder, file or name"),
    ],
)
def test_what_encode_refuses(
    args: list[str], said: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [arg.replace("RUNS", str(runs)).replace("TMP", str(tmp_path)) for arg in args]
    assert run_encode(*named) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["ae", "--traverse"], "--traverse needs a VAE with one layer of latents and --prior normal"),
        (["vae", "--traverse", "--interpolate"], "--interpolate and --traverse are two pictures"),
        (["vae", "--interpolate", "--label", "3"], "--label has no effect with --interpolate"),
        (["vae", "--traverse", "--seed", "3"], "--seed has no effect with --traverse: nothing is drawn"),
        (["vae", "--dataset", "digits"], "--dataset has no effect without --nearest, --interpolate or --fit-mixture"),
        (["vae", "--nearest", "--dataset", "digits"], "not the test images of"),
        (["vae", "--latents", "RUNS/images.npz"], "holds no array mean: train, test"),
        (["vae", "--latents", "RUNS/whole.npy"], "must hold finite latents [N, L], not uint8"),
        (["vae", "--latents", "RUNS/wide.npy"], "wide.npy: latents must be [N, 2], not ["),
        (["vae", "--latents", "RUNS/missing.npz"], "missing.npz: cannot be read"),
        (["vae", "-n", "10001"], "-n must be from 1 to 10,000 for a .png file, not 10001"),
        (["vae", "--out", "TMP/x.jpg"], "x.jpg: must end in .png or .npy"),
        (["vae", "--nearest", "--out", "TMP/x.npy"], "--nearest draws a picture: --out"),
    ],
)
def test_what_generate_refuses(
    args: list[str], said: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(runs / "wide.npy", np.zeros((4, 3), np.float32))
    named = [arg.replace("RUNS", str(runs)).replace("TMP", str(tmp_path)) for arg in args]
    out = [] if "--out" in named else ["--out", tmp_path / "out.png"]
    assert run_generate(runs / named[0], *named[1:], *out) == 2
    assert said in capsys.readouterr().err
