"""The movie of a run, against the pictures that the run wrote."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image, ImageSequence
from runs import SMALL, train
from sklearn.decomposition import PCA

import jaxvae
from jaxvae import cli, data, movie
from jaxvae.config import Config
from jaxvae.config_file import to_json

pytestmark = pytest.mark.unoptimized


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, of images with labels."""
    directory = tmp_path_factory.mktemp("movie")
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 1), np.uint8)
    labels = np.arange(40) % 3
    np.savez(directory / "images.npz", x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
    given = ["--preset", "vae", *SMALL, "--dataset", str(directory / "images.npz"), "--validation", "0"]
    assert train(*given, "--epochs", "3", "--run-dir", str(directory / "run")) == 0
    return directory / "run"


@pytest.mark.slow
def test_a_movie_has_a_frame_an_epoch_and_shows_the_pictures_of_the_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "training.gif"
    assert cli.run(lambda: movie.main([str(run), "--out", str(out), "--seconds", "3"])) == 0
    with Image.open(out) as file:
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
        assert file.info["loop"] == 0 and file.n_frames == 3
    for frame, epoch in ((shown[0], 1), (shown[-1], 3)):
        left = 0
        for kind in ("samples", "reconstructions"):
            with Image.open(run / "images" / f"{kind}_epoch_{epoch:04}.png") as file:
                picture = np.asarray(file.convert("RGB"))[::2, ::2]
            height, width, _ = picture.shape
            part = frame[:height, left : left + width].astype(int)
            assert np.abs(part - picture).max() <= 16  # A GIF has 256 colours.
            assert np.abs(part - picture).mean() < 2
            left += width + movie.GAP


def test_rare_colours_stay_what_they_are(tmp_path: Path) -> None:
    """Ten points on a picture of thousands of colours."""
    row, column = np.mgrid[:128, :128]
    frame = np.stack([2 * row, 2 * column, 255 - row - column], axis=-1).astype(np.uint8)
    colours = np.round(255 * np.array(colormaps["tab10"].colors)).astype(np.uint8)  # type: ignore[attr-defined]
    for place, colour in enumerate(colours):
        frame[5:8, 10 * place : 10 * place + 3] = colour
    movie.save_gif(tmp_path / "x.gif", [frame, frame[::-1].copy()], 1.0)
    with Image.open(tmp_path / "x.gif") as gif:
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(shown[6, 1 : 10 * len(colours) : 10] - colours).max() <= 16
    assert np.abs(shown - frame).mean() < 8


@pytest.mark.slow
def test_frames_hold_the_pictures_exactly(run: Path) -> None:
    frames = movie.frames_of(run)
    assert len(frames) == 3 and len({frame.shape for frame in frames}) == 1
    with Image.open(run / "images" / "samples_epoch_0002.png") as file:
        picture = np.asarray(file.convert("RGB"))[::2, ::2]
    np.testing.assert_array_equal(frames[1][: picture.shape[0], : picture.shape[1]], picture)


@pytest.mark.slow
def test_the_run_keeps_the_latents_of_held_out_images(run: Path) -> None:
    saved = np.load(run / "images" / "latents_epoch_0003.npz")
    loaded = jaxvae.load(run)
    images = np.load(run.parent / "images.npz")["x_test"]
    np.testing.assert_allclose(saved["latent"], loaded.encode(images), rtol=2e-3, atol=2e-3)  # In half precision.
    np.testing.assert_array_equal(saved["label"], np.arange(16) % 3)


def test_the_axes_of_the_map_are_the_principal_components_of_all_epochs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    epochs = {epoch: rng.normal(size=(30, 5)) * [1, 5, 1, 3, 1] + epoch for epoch in (1, 2)}
    files = {epoch: tmp_path / f"{epoch}.npz" for epoch in epochs}
    for epoch, latent in epochs.items():
        np.savez(files[epoch], latent=latent[:1] if epoch == 2 else latent)
    maps = movie.latent_maps(files)
    together = np.concatenate([epochs[1], epochs[2][:1]])
    points = PCA(2).fit_transform(together)[-1]  # The point of the second map; the sign of an axis is open.
    reach = np.quantile(np.abs(PCA(2).fit_transform(together)), 0.995)
    rows, cols = np.nonzero((maps[2] != movie.BACKGROUND).any(-1))
    side = movie.MAP_SIDE - 3
    found = np.abs([2 * (cols.min() / side) - 1, 2 * ((side - rows.min()) / side) - 1]) / 0.98 * reach
    np.testing.assert_allclose(found, np.abs(np.clip(points, -reach, reach)), atol=2.5 * reach / side)


def test_two_latents_are_the_axes_themselves(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", latent=np.array([[1.0, 0.0], [0.0, -1.0]]), label=np.array([0, 1]))
    picture = movie.latent_maps({1: tmp_path / "a.npz"})[1]
    colours = {tuple(map(int, colour)) for colour in picture.reshape(-1, 3)}
    assert len(colours) == 3
    first = np.argwhere((picture == (31, 119, 180)).all(-1))  # The first of ten colours, at the right.
    assert len(first) == 9 and first[:, 1].min() > 0.9 * movie.MAP_SIDE and abs(first[:, 0].mean() - 120) < 4
    second = np.argwhere((picture == (255, 127, 14)).all(-1))  # The second, at the bottom.
    assert second[:, 0].min() > 0.9 * movie.MAP_SIDE and abs(second[:, 1].mean() - 120) < 4


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_labels_that_the_run_did_not_read_colour_the_map(validation: float, tmp_path: Path) -> None:
    config = Config("vae", dataset="digits", validation=validation)
    (tmp_path / "config.json").write_text(to_json(config))
    labels = movie.held_out_labels(tmp_path)
    assert labels is not None
    images = data.prepared(data.load("digits", labels=True), config)
    held_out = images.split("validation" if validation else "test")
    np.testing.assert_array_equal(labels, held_out["label"])
    assert len(set(labels.tolist())) == 10
    latent = np.random.default_rng(0).normal(size=(30, 2))
    np.savez(tmp_path / "a.npz", latent=latent)
    for given, colours in ((None, 1), (labels, len(set(labels[:30].tolist())))):
        picture = movie.latent_maps({1: tmp_path / "a.npz"}, given)[1].reshape(-1, 3)
        assert len({tuple(map(int, colour)) for colour in picture} - {(movie.BACKGROUND,) * 3}) == colours


def test_labels_that_cannot_be_read_are_no_error(tmp_path: Path) -> None:
    for given in ({"dataset": "mnist", "data_dir": str(tmp_path)}, {"dataset": str(tmp_path / "gone.npz")}):
        (tmp_path / "config.json").write_text(to_json(Config("vae", **given)))
        assert movie.held_out_labels(tmp_path) is None


def test_a_long_run_gives_no_longer_movie(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movie, "MOST_FRAMES", 2)
    every = movie.frames_of(run)
    monkeypatch.undo()
    kept = movie.frames_of(run)
    assert len(every) == 2
    np.testing.assert_array_equal(every[-1][:40, :40], kept[-1][:40, :40])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.mp4"], "--out x.mp4: must end in .gif"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--out", "no/such.gif"], "--out no/such.gif cannot be written"),
    ],
)
def test_bad_flags_are_named(words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: movie.main([str(run), *words])) == cli.EXIT_BAD_INPUT
    assert said in capsys.readouterr().err


def test_what_has_no_pictures_makes_no_movie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: movie.main([str(tmp_path)])) == cli.EXIT_BAD_INPUT
    assert "is not a run directory" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "images").mkdir()
    assert cli.run(lambda: movie.main([str(tmp_path)])) == cli.EXIT_BAD_INPUT
    assert "there are no pictures of epochs" in capsys.readouterr().err
    (tmp_path / "images" / "samples_epoch_0001.png").write_bytes(b"no picture")
    assert cli.run(lambda: movie.main([str(tmp_path)])) == cli.EXIT_BAD_INPUT
    assert "a picture cannot be read" in capsys.readouterr().err
