"""`python -m jaxvae.data`: what it says of a dataset, and that what it proposes trains."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, save
from PIL import Image

from jaxvae import cli, data
from jaxvae.config import Config
from jaxvae.data import __main__ as command
from jaxvae.data.reading import Reading
from jaxvae.train import __main__ as train


def run(*args: object) -> int:
    return cli.run(lambda: command.main([str(arg) for arg in args]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 colour pictures of two sizes, one of them damaged."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    for number in range(40):
        shape = (40, 30, 3) if number % 2 else (50, 64, 3)
        Image.fromarray(np.full(shape, 6 * number, np.uint8)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"")
    return folder


def proposed(out: str) -> list[str]:
    """The words of the command that it proposes."""
    (line,) = [line for line in out.splitlines() if line.startswith("to train: ")]
    return shlex.split(line.removeprefix("to train: "))


def test_what_it_says_of_a_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "seen.png"
    assert run(photos, "--image-size", 32, "--skip-bad", "--out", picture) == 0
    out = capsys.readouterr().out
    # Of 39 pictures, 3 are held out for testing, and a twelfth of the others by the preset.
    assert "train 33 + validation 3 + test 3 images, 32 x 32 x 3" in out
    assert "\n117.0 KiB on every device while it trains; if that does not fit, they are streamed" in out
    assert "left out: " in out and "07.png: empty" in out
    words = proposed(out)
    assert words[:3] == ["python", "-m", "jaxvae.train"]
    config = train.parse(words[3:]).config
    assert (config.dataset, config.image_size, config.skip_bad) == (str(photos), (32,), True)
    assert (config.architecture, config.likelihood, config.latent_size) == ("conv", "logistic", 64)
    assert config.batch_size == 8 and config.epochs * (33 // 8) >= 3000  # Few images: many epochs.
    assert 50 <= config.epochs // config.image_every < 55  # But not as many pictures.
    with Image.open(picture) as image:
        assert image.mode == "RGB" and image.size == (2 * (8 * 34 + 2), 2 * (5 * 34 + 2))


def test_modes_and_sizes_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes are those of upright pictures. What is not read is not counted: hidden files, and those beside train/."""
    for number in range(15):
        picture = Image.fromarray(np.full((8, 6 + number % 2), number, np.uint8)).convert("L" if number < 4 else "RGB")
        exif = picture.getexif()
        exif[0x0112] = 6 if number == 14 else 1
        place = tmp_path / ("train" if number < 12 else "test") / "a"
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number}.jpg", exif=exif)
    for other in ("train/._1.jpg", "train/a/.thumbs/1.jpg", "b/1.jpg"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes((tmp_path / "train" / "a" / "1.jpg").read_bytes())
    assert run(tmp_path, "--image-size", 4) == 0
    out = capsys.readouterr().out
    assert "\nmodes of the files (Pillow's): RGB (11), L (4)\n" in out
    assert "\nsizes of the files, height x width: 8 x 6 (7), 8 x 7 (7), 6 x 8 (1)\n" in out


@pytest.mark.parametrize(
    ("suffix", "stream", "said"),
    [
        (
            ".npy",
            "auto",
            "600 on every device while it trains; if that does not fit, they are streamed from main memory",
        ),
        (".npy", "never", "600 on every device while it trains"),
        (".npy", "always", "600 on the disk; training streams them from there"),
        (".npz", "always", "600 in main memory; training streams them from there"),
    ],
)
def test_where_the_images_are_while_it_trains(
    suffix: str, stream: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, images = tmp_path / f"x{suffix}", np.zeros((1024, 6, 5), np.uint8)
    np.savez(file, images) if suffix == ".npz" else np.save(file, images)
    assert run(file, "--stream", stream) == 0
    out = capsys.readouterr().out
    assert f"\n{said.replace('600', '30.0 KiB')}\n" in out
    assert train.parse(proposed(out)[3:]).config.stream == stream


def test_the_histogram_counts_the_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.repeat(np.uint8([0, 40, 40, 255]), 20 * 9).reshape(4, 20, 3, 3).swapaxes(0, 1)
    file = tmp_path / "x.npz"
    np.savez(file, train=pixels.reshape(-1, 3, 3), test=noise(5, 3, 3))
    assert run(file) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [row[-2] if "#" in row[-1] else row[-1] for row in rows] == [
        *("25.0%", "50.0%", "0.0%", "0.0%", "0.0%", "0.0%", "0.0%", "25.0%")
    ]
    assert [len(row[-1]) if "#" in row[-1] else 0 for row in rows] == [10, 20, 0, 0, 0, 0, 0, 10]


def test_binary_images_need_no_other_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = noise(300, 6, 5) // 128 * np.uint8(255)
    file = save(tmp_path / "x.npy", binary)
    assert run(file) == 0
    out = capsys.readouterr().out
    assert "all are 0 or 255: with --inputs static" in out
    config = train.parse(proposed(out)[3:]).config
    assert config.inputs == "static"
    # Those that are streamed cannot be drawn once.
    streamed = data.load(str(file), None, Reading(stream="always"))
    assert train.parse(command.command(streamed, Config("vae"), binary=True)[3:]).config.inputs == "dynamic"
    assert (config.likelihood, config.architecture, config.batch_size) == ("bernoulli", "mlp", 32)


def test_sizes_that_differ_are_named_with_what_to_pass(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos, "--skip-bad") == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "2 sizes" in error and "50 x 64 (20, such as" in error and "--image-size 30" in error


def test_few_images_are_not_held_out_for_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", train=noise(5, 6, 5), test=noise(2, 6, 5))
    assert run(tmp_path / "x.npz") == 0
    out = capsys.readouterr().out
    assert "train 5 + test 2 images" in out
    config = train.parse(proposed(out)[3:]).config
    assert (config.validation, config.batch_size) == (0.0, 1)


def test_to_leave_files_out_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(save(tmp_path / "x.npy", noise(20, 6, 5)), "--skip-bad") == cli.EXIT_BAD_INPUT
    assert "--skip-bad has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["grid.jpg", "no/such/folder/grid.png"])
def test_a_picture_that_cannot_be_written(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(save(tmp_path / "x.npy", noise(20, 6, 5)), "--out", tmp_path / out) == cli.EXIT_BAD_INPUT
    assert "--out" in capsys.readouterr().err
