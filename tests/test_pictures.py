"""`jaxvae.data.pictures` and `jaxvae.data.reading`, against Pillow, NumPy and bytes written by other means."""

import dataclasses
import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import FUZZ, loads_or_refuses, mutated, noise, refuses, save, whole
from PIL import Image

from jaxvae import data
from jaxvae.config import Config
from jaxvae.data import pictures
from jaxvae.data.reading import Reading
from jaxvae.errors import InputError


def picture(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def png_file(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG file of a colour type, whose rows are as the format has them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks.items())


def tiff_file(pixels: Any, colours: int, planes: bool) -> bytes:
    """A TIFF file of pixels [H, W, C], uncompressed; `planes`: channel by channel."""
    height, width, channels = pixels.shape
    parts = [pixels[..., i] for i in range(channels)] if planes else [pixels]
    size, count = pixels.nbytes // len(parts), len(parts)
    values: dict[int, tuple[str, list[int]]] = {
        **{256: ("H", [width]), 257: ("H", [height]), 258: ("H", [8 * pixels.itemsize] * channels), 259: ("H", [1])},
        **{262: ("H", [colours]), 273: ("I", [0] * count), 277: ("H", [channels]), 278: ("H", [height])},
        **{279: ("I", [size] * count), 284: ("H", [2 if planes else 1])},
        **({338: ("H", [2])} if colours == 2 and channels == 4 else {}),  # The fourth channel is an opacity.
    }
    end = 8 + 2 + 12 * len(values) + 4
    start = end + 4 * 8 * len(values)  # More than the values take that do not fit into their entries.
    values[273] = ("I", [start + i * size for i in range(count)])
    entries, further = b"", b""
    for tag, (kind, numbers) in values.items():
        body = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
        entries += body.ljust(4, b"\0") if len(body) <= 4 else struct.pack("<I", end + len(further))
        further += body if len(body) > 4 else b""
    head = b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + further
    return head.ljust(start, b"\0") + b"".join(part.tobytes() for part in parts)


def test_grey_folder_in_order_of_relative_paths(tmp_path: Path) -> None:
    names = ["b/0.png", "a.png", "b.PNG", "c/d/e.png", *(f"n{i}.png" for i in range(8))]
    pixels = {name: noise(5, 4, seed=i) for i, name in enumerate(names)}
    for name, values in pixels.items():
        picture(tmp_path / name, values)
    (tmp_path / "notes.txt").write_text("not a picture")
    picture(tmp_path / "other.ppm", noise(9, 9))
    loaded = data.load(str(tmp_path))
    expected = np.stack([pixels[name] for name in sorted(names)])[..., None]
    np.testing.assert_array_equal(whole(loaded), expected)
    assert loaded.name == str(tmp_path)
    assert str(tmp_path) in loaded.source


def test_colour_folder_turns_grey_pictures_to_rgb(tmp_path: Path) -> None:
    colour, grey = noise(5, 4, 3), noise(5, 4)
    for i in range(10):
        picture(tmp_path / f"{i}.png", grey)
    picture(tmp_path / "3.png", colour)
    images = whole(data.load(str(tmp_path)))
    assert images.shape == (10, 5, 4, 3)
    np.testing.assert_array_equal(images[3], colour)
    np.testing.assert_array_equal(images[5], np.stack([grey] * 3, axis=-1))


def test_other_picture_modes(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / f"{i}.png", noise(5, 4) > 127)
    Image.fromarray(noise(5, 4)).convert("LA").save(tmp_path / "2.png")  # All of it opaque.
    images = whole(data.load(str(tmp_path)))
    assert images.shape == (10, 5, 4, 1)
    np.testing.assert_array_equal(images[0, ..., 0], np.where(noise(5, 4) > 127, 255, 0))
    np.testing.assert_array_equal(images[2, ..., 0], noise(5, 4))

    palette = Image.fromarray(np.full((5, 4, 3), (10, 200, 30), np.uint8)).convert(
        "P", palette=Image.Palette.ADAPTIVE, colors=2
    )
    palette.save(tmp_path / "5.png")
    Image.new("CMYK", (4, 5), (0, 0, 0, 0)).save(tmp_path / "6.jpeg")
    images = whole(data.load(str(tmp_path)))
    assert images.shape == (11, 5, 4, 3)
    np.testing.assert_allclose(images[5, 0, 0], (10, 200, 30), atol=5)
    np.testing.assert_array_equal(images[6, 0, 0], (255, 255, 255))


def over_white(colours: Any, alpha: Any) -> Any:
    """Colours [..., C] over white, with opacities alpha [...] from 0 to 255; float64."""
    opacity = np.float64(alpha)[..., None] / 255
    return opacity * np.float64(colours) + (1 - opacity) * 255


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_are_composited_over_white(mode: str, tmp_path: Path) -> None:
    """The colour of an invisible pixel does not matter."""
    alphas = np.repeat(np.uint8([0, 64, 128, 192, 255]), 4).reshape(5, 4)
    colours = [noise(5, 4, 3 if mode == "RGBA" else 1, seed=seed) for seed in range(10)]
    for i, values in enumerate(colours):
        pixels = np.concatenate([values, alphas[..., None]], axis=-1)
        Image.frombytes(mode, (4, 5), pixels.tobytes()).save(tmp_path / f"{i}.png")
    images = whole(data.load(str(tmp_path)))
    assert images.shape == (10, 5, 4, 3 if mode == "RGBA" else 1)
    np.testing.assert_allclose(images, over_white(np.stack(colours), alphas), atol=0.51)
    np.testing.assert_array_equal(images[:, 0], 255)
    np.testing.assert_array_equal(images[:, 4], np.stack(colours)[:, 4])


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("kind", ["palette", "palette with alphas", "key colour", "grey key"])
def test_other_kinds_of_transparency(kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A colour that means transparent, or an opacity for each colour of a palette."""
    if kind.startswith("palette"):
        image = Image.fromarray(np.uint8([[0, 1], [2, 2]]), "P")
        image.putpalette([1, 2, 3, 10, 20, 30, 200, 100, 50])
        transparency: Any = 1 if kind == "palette" else bytes([128, 0, 255])
        first: Any = (1, 2, 3) if kind == "palette" else over_white((1, 2, 3), 128)
        expected = [[first, (255, 255, 255)], [(200, 100, 50)] * 2]
    elif kind == "key colour":
        image = Image.fromarray(np.uint8([[(1, 2, 3), (10, 20, 30)], [(200, 100, 50)] * 2]))
        transparency, expected = (10, 20, 30), [[(1, 2, 3), (255, 255, 255)], [(200, 100, 50)] * 2]
    else:
        image = Image.fromarray(np.uint8([[1, 10], [200, 100]]))
        transparency, expected = 10, [[(1,), (255,)], [(200,), (100,)]]
    for i in range(10):
        image.save(tmp_path / f"{i}.png", transparency=transparency)
    np.testing.assert_allclose(whole(data.load(str(tmp_path)))[3], expected, atol=0.51)
    assert not recwarn.list


def test_four_channels_of_an_array_are_kept_as_they_are(tmp_path: Path) -> None:
    array = noise(10, 5, 4, 4)
    np.testing.assert_array_equal(whole(data.load(save(tmp_path / "x.npy", array))), array)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_odd_metadata_gives_no_warning(suffix: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """An EXIF block that is cut off in its second entry. The first, the orientation, may be ignored."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 9) + entry + entry[:5]
    for i in range(10):
        picture(tmp_path / f"{i}{suffix}", np.full((5, 4), 77, np.uint8), exif=exif)
    np.testing.assert_allclose(whole(data.load(str(tmp_path))), 77, atol=1)
    assert not recwarn.list


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("kind", ["grey", "colour", "grey and opacity", "colour and opacity"])
def test_sixteen_bits_are_refused_not_cut(
    kind: str, stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file with 8 bits is read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, reading = tmp_path / "d", Reading(stream=stream)
    number, channels = {"grey": (0, 1), "colour": (2, 3), "grey and opacity": (4, 2), "colour and opacity": (6, 4)}[
        kind
    ]
    for i in range(10):
        picture(folder / f"{i}.png", noise(5, 4))
    (folder / "3.png").write_bytes(png_file(4, 5, 8, number, 5 * (b"\0" + 4 * channels * b"\xff")))
    images = whole(data.load(str(folder), reading=reading))
    assert images.shape == (10, 5, 4, 3 if "colour" in kind else 1) and (images[3] == 255).all()
    (folder / "3.png").write_bytes(png_file(4, 5, 16, number, 5 * (b"\0" + 4 * channels * b"\x9c\x40")))
    refuses(folder / "3.png", "more than 8 bits", dataset=str(folder), reading=reading)
    picture(folder / "x.png", noise(5, 4))
    left = data.load(str(folder), reading=dataclasses.replace(reading, skip_bad=True), warn=lambda _: None)
    assert left.image_shape == (5, 4, 1)  # The deep picture does not decide the channels.


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (3, 2), (4, 2), (4, 5)], ids=["grey", "RGB", "RGBA", "CMYK"])
def test_sixteen_bits_of_a_tiff_file_are_refused(channels: int, colours: int, planes: bool, tmp_path: Path) -> None:
    """The same file with 8 bits is read."""
    for i in range(10):
        picture(tmp_path / f"{i}.tif", noise(5, 4))
    ones = np.full((5, 4, channels), 255)
    (tmp_path / "3.tif").write_bytes(tiff_file(ones.astype(np.uint8), colours, planes))
    images = whole(data.load(str(tmp_path)))
    assert (images[3] == (0 if colours == 5 else 255)).all()  # Full inks are black.
    (tmp_path / "3.tif").write_bytes(tiff_file((ones * 157).astype(np.uint16), colours, planes))
    refuses(tmp_path / "3.tif", "more than 8 bits", dataset=str(tmp_path))


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    """macOS writes ._x.png beside x.png where it cannot store what it knows of the file."""
    folder = tmp_path / ".pictures"
    for i in range(10):
        picture(folder / "deep" / f"{i}.png", noise(5, 4, seed=i))
    expected = whole(data.load(str(folder)))
    (folder / "deep" / "._3.png").write_bytes(b"\0\5\x16\7")
    picture(folder / ".ipynb_checkpoints" / "3-checkpoint.png", noise(5, 4))
    np.testing.assert_array_equal(whole(data.load(str(folder))), expected)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "._x.png").write_bytes(b"")
    refuses("no PNG", dataset=str(tmp_path / "alone"))


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "train" / f"{i}.png", np.full((5, 4), i, np.uint8))
    picture(tmp_path / "test" / "sub" / "0.png", np.full((5, 4), 9, np.uint8))
    picture(tmp_path / "ignored.png", noise(8, 8))
    loaded = data.load(str(tmp_path))
    assert loaded.train[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert loaded.test[:, 0, 0, 0].tolist() == [9]
    # One colour picture makes both sets RGB, so that they agree.
    picture(tmp_path / "test" / "1.png", noise(5, 4, 3))
    loaded = data.load(str(tmp_path))
    assert loaded.train.shape == (3, 5, 4, 3)
    assert loaded.test.shape == (2, 5, 4, 3)


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / f"{i}.png", noise(5, 4))
    picture(tmp_path / "6.png", noise(4, 6))
    picture(tmp_path / "8.png", noise(9, 9))
    refuses(
        *("3 sizes", "5 x 4 (8, such as", tmp_path / "0.png", "4 x 6 (1, such as", tmp_path / "6.png"),
        *("9 x 9", "--image-size 4"),
        dataset=str(tmp_path),
    )


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    pixels = noise(5, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for i in range(10):
        picture(tmp_path / f"{i}.png", np.rot90(pixels), exif=exif)
    np.testing.assert_array_equal(whole(data.load(str(tmp_path)))[0, ..., 0], pixels)


def test_links_to_files_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere.png", noise(5, 4))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").symlink_to(tmp_path / "elsewhere.png")
    assert whole(data.load(str(folder))).shape == (10, 5, 4, 1)
    (folder / "3.png").unlink()
    (folder / "3.png").symlink_to(tmp_path / "nowhere.png")
    refuses(folder / "3.png", dataset=str(folder))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "other format"])
def test_pictures_that_cannot_be_decoded(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    picture(path, noise(50, 40))
    content = path.read_bytes()
    other = io.BytesIO()
    Image.fromarray(noise(5, 4)).save(other, "PPM")
    bad = {"empty": b"", "junk": b"junk" * 99, "cut": content[: len(content) // 2]}
    path.write_bytes(bad.get(damage, other.getvalue()))
    reason = {"empty": "empty", "cut": "truncated"}.get(damage, "not a PNG, JPEG, WEBP, BMP, TIFF or GIF file")
    refuses(path, "1 of 1", reason, dataset=str(tmp_path))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1], ids=["warning", "error", "absurd"])
def test_decompression_bombs(side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_file(side, side, 8, 0, bytes(1000)))
    refuses(path, side * side, dataset=str(tmp_path))


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    refuses(tmp_path, dataset=str(tmp_path))
    picture(tmp_path / "train" / "0.png", noise(5, 4))
    (tmp_path / "test").mkdir()
    refuses(tmp_path / "test", dataset=str(tmp_path))


def test_too_few_pictures(tmp_path: Path) -> None:
    for i in range(9):
        picture(tmp_path / f"{i}.png", noise(5, 4))
    refuses(tmp_path, "9", "10", dataset=str(tmp_path))


@FUZZ
@given(edit=st.data(), jpeg=st.booleans())
def test_fuzz_pictures_mutated(edit: st.DataObject, jpeg: bool, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(content, "JPEG" if jpeg else "PNG")
    for part in ("train", "test"):
        path = tmp_path / part / "x.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutated(content.getvalue(), edit))
    loads_or_refuses(str(tmp_path))


# --- Other formats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".TIFF", ".gif"])
@pytest.mark.parametrize("grey", [True, False])
def test_lossless_formats_give_the_pixels(suffix: str, grey: bool, tmp_path: Path) -> None:
    pixels = [noise(8, 6, *(() if grey else (3,)), seed=seed) for seed in range(10)]
    options = {"lossless": True} if suffix == ".webp" else {}
    for number, values in enumerate(pixels):
        picture(tmp_path / f"{number}{suffix}", values, **options)
    images = whole(data.load(str(tmp_path)))
    expected = np.stack(pixels)[..., None] if grey else np.stack(pixels)
    if grey and images.shape[-1] == 3:  # A WebP has no grey mode, and a GIF of so few greys has a palette.
        expected = expected.repeat(3, -1)
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_of_several_frames_the_first_is_taken(suffix: str, tmp_path: Path) -> None:
    first, second = (Image.fromarray(np.full((8, 6, 3), grey, np.uint8)) for grey in (40, 200))
    for number in range(10):
        first.save(tmp_path / f"{number}{suffix}", save_all=True, append_images=[second])
    np.testing.assert_allclose(whole(data.load(str(tmp_path))), 40, atol=2)


# --- Sizes and channels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 60, 3), (60, 40, 3), (40, 60), (30, 30), (8, 4)])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_every_picture_gets_the_size_asked_for(shape: tuple[int, ...], resize: Any, tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.png", np.full(shape, 100, np.uint8))
    picture(tmp_path / "3.png", np.full((11, 23), 100, np.uint8))
    images = whole(data.load(str(tmp_path), reading=Reading((16, 12), resize)))
    assert images.shape == (10, 16, 12, 3 if len(shape) == 3 else 1)
    if resize == "pad":
        assert {*np.unique(images)} <= {*range(101)}  # Black bars.
        assert (images[:, 8, 6] == 100).all()
    else:
        assert (images == 100).all()


def test_crop_takes_the_middle_and_pad_keeps_all(tmp_path: Path) -> None:
    thirds = np.repeat(np.uint8([10, 100, 200]), 8)  # [24]: left, middle, right.
    for number in range(10):
        picture(tmp_path / f"{number}.png", np.broadcast_to(thirds, (8, 24)))

    def read(resize: Any) -> data.Images:
        return whole(data.load(str(tmp_path), reading=Reading((8,), resize)))[0, ..., 0]

    np.testing.assert_array_equal(read("crop"), 100)
    padded = read("pad")
    assert (padded[:2] == 0).all() and (padded[-2:] == 0).all()
    assert padded[4, 0] < 20 and abs(int(padded[4, 4]) - 100) < 20 and padded[4, 7] > 180
    stretched = read("stretch")
    assert stretched[0, 0] < 20 and stretched[7, 7] > 180


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_shrinking_averages_the_pixels(resize: Any, tmp_path: Path) -> None:
    """A checkerboard becomes grey: without antialiasing it would stay black or white."""
    board = np.uint8(255 * (np.indices((64, 64)).sum(0) % 2))
    for number in range(10):
        picture(tmp_path / f"{number}.png", board)
    images = whole(data.load(str(tmp_path), reading=Reading((8,), resize)))
    np.testing.assert_allclose(images[:, 1:-1, 1:-1], 127.5, atol=6)


def test_a_picture_that_has_the_size_already_keeps_its_pixels(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.png", noise(9, 7, 3, seed=number))
    as_they_are = whole(data.load(str(tmp_path)))
    for resize in ("crop", "pad", "stretch"):
        np.testing.assert_array_equal(whole(data.load(str(tmp_path), reading=Reading((9, 7), resize))), as_they_are)


def test_large_photographs_are_close_to_what_full_decoding_gives(tmp_path: Path) -> None:
    """A JPEG is decoded at a part of its size where that is enough: at least twice the size asked for."""
    texture = noise(40, 40).repeat(4, 0).repeat(4, 1)
    picture(tmp_path / "0.jpg", texture, quality=95)
    expected = np.asarray(Image.open(tmp_path / "0.jpg").resize((20, 20), Image.Resampling.BICUBIC)).astype(float)
    for number in range(1, 10):
        (tmp_path / f"{number}.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    images = whole(data.load(str(tmp_path), reading=Reading((20,))))
    assert np.abs(images[0, ..., 0] - expected).mean() < 3


@pytest.mark.parametrize("size", [(), (6, 4)])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiff_files(orientation: int, compression: str | None, size: tuple[int, ...], tmp_path: Path) -> None:
    upright = noise(6, 4)
    turned = {
        **{1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]},
        **{5: upright.T, 6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1]},
    }[orientation]
    for number in range(10):
        image = Image.fromarray(np.ascontiguousarray(turned))
        image.save(tmp_path / f"{number}.tif", compression=compression, tiffinfo={0x0112: orientation})
    images = whole(data.load(str(tmp_path), reading=Reading(size)))
    np.testing.assert_array_equal(images[3, ..., 0], upright)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_converted(channels: int, tmp_path: Path) -> None:
    colour = noise(10, 5, 4, 3)
    for number, values in enumerate(colour):
        picture(tmp_path / "folder" / f"{number}.png", values)
    save(tmp_path / "x.npy", colour)
    weights = (0.299, 0.587, 0.114)  # ITU-R 601-2.
    expected = (colour @ np.array(weights))[..., None] if channels == 1 else colour
    for source in ("folder", "x.npy"):
        images = whole(data.load(str(tmp_path / source), reading=Reading(channels=channels)))
        assert images.shape == (10, 5, 4, channels)
        np.testing.assert_allclose(images, expected, atol=1)
    grey = save(tmp_path / "grey.npy", colour[..., 0])
    repeated = whole(data.load(grey, reading=Reading(channels=3)))
    np.testing.assert_array_equal(repeated, colour[..., :1].repeat(3, -1))


def test_arrays_are_resized_like_pictures(tmp_path: Path) -> None:
    images = noise(10, 20, 30, 3)
    for number, values in enumerate(images):
        picture(tmp_path / "folder" / f"{number}.png", values)
    file = save(tmp_path / "x.npy", images)
    for resize in ("crop", "pad", "stretch"):
        reading = Reading((8, 8), resize)
        np.testing.assert_array_equal(
            whole(data.load(file, reading=reading)), whole(data.load(str(tmp_path / "folder"), reading=reading))
        )
    # A fourth channel is like the others, no opacity.
    four = save(tmp_path / "four.npy", np.concatenate([images, images[..., :1]], axis=-1))
    resized = whole(data.load(four, reading=Reading((8,))))
    np.testing.assert_array_equal(resized[..., :3], whole(data.load(file, reading=Reading((8,)))))
    np.testing.assert_array_equal(resized[..., 3], resized[..., 0])
    refuses(four, "--channels 3", "these have 4", dataset=four, reading=Reading(channels=3))


def test_data_given_in_python_is_resized_too() -> None:
    images = data.from_arrays({"image": noise(20, 12, 10, 3)})
    seen = data.prepared(images, Config("vae", image_size=(8, 8), channels=1, validation=0.0))
    assert seen.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(seen.train, images.read_as(Reading((8, 8), channels=1)).train)


def test_how_images_are_read_is_part_of_a_configuration() -> None:
    config = Config("vae", image_size=(48, 64), resize="pad", channels=3, skip_bad=True)
    assert data.reading_of(config) == Reading((48, 64), "pad", 3, True)
    assert data.reading_of(Config()) == Reading()
    assert {field.name for field in dataclasses.fields(Reading)} <= {*vars(config)}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_size": (0,)}, "--image-size must be one or two numbers from 1 to 16384"),
        ({"image_size": (8, 8, 3)}, "--image-size must be one or two numbers"),
        ({"resize": "pad"}, "--resize pad has no effect: it needs --image-size"),
        ({"channels": 4}, "--channels must be 1 or 3, not 4"),
    ],
)
def test_readings_that_make_no_sense(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Config("vae", **values)


# --- Files that cannot be read --------------------------------------------------------------------------------


def test_bad_files_are_counted_and_named_or_left_out(tmp_path: Path) -> None:
    for number in range(14):
        picture(tmp_path / f"{number:02}.png", np.full((5, 4), number, np.uint8))
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "05.png").write_bytes((tmp_path / "04.png").read_bytes()[:40])
    picture(tmp_path / "07.tif", np.full((5, 4), 40_000, np.uint16))
    (tmp_path / "09.png").write_text("<html>not found</html>")
    refuses(
        *("4 of 15 picture files", tmp_path / "03.png", "empty", tmp_path / "05.png", "more than 8 bits", "..."),
        "--skip-bad leaves them out",
        dataset=str(tmp_path),
    )
    said: list[str] = []
    loaded = data.load(str(tmp_path), reading=Reading(skip_bad=True), warn=said.append)
    assert greys(loaded) == [0, 1, 2, 4, 6, 7, 8, 10, 11, 12, 13]
    assert [Path(line.partition(": ")[0]).name for line in loaded.skipped] == ["03.png", "05.png", "07.tif", "09.png"]
    assert len(said) == 1 and "are left out: 4, such as" in said[0] and "03.png" in said[0]


def greys(loaded: data.ImageData) -> list[int]:
    return sorted([*loaded.train[:, 0, 0, 0].tolist(), *loaded.test[:, 0, 0, 0].tolist()])


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_fault_of_the_disk_or_the_process_is_no_bad_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another run would see other images."""
    for place in range(12):
        picture(tmp_path / f"{place:02}.png", noise(5, 4))
    opened = Path.open

    def fails(path: Path, *args: Any, **named: Any) -> Any:
        if path.name == "03.png":
            raise MemoryError if number == errno.ENOMEM else OSError(number, os.strerror(number))
        return opened(path, *args, **named)

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(MemoryError if number == errno.ENOMEM else InputError):
        data.load(str(tmp_path), reading=Reading(skip_bad=True))


def test_to_leave_files_out_needs_a_folder() -> None:
    with pytest.raises(InputError, match="--skip-bad has no effect: --dataset mnist is not a picture folder"):
        Reading(skip_bad=True).check("mnist")


def test_bad_files_of_train_and_test_folders(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            picture(tmp_path / part / f"{number}.png", np.full((5, 4), number, np.uint8))
    (tmp_path / "train" / "1.png").write_bytes(b"junk")
    loaded = data.load(str(tmp_path), reading=Reading(skip_bad=True), warn=lambda _: None)
    assert loaded.train[:, 0, 0, 0].tolist() == [0, 2] and loaded.test[:, 0, 0, 0].tolist() == [0, 1]
    for number in range(2):
        (tmp_path / "test" / f"{number}.png").write_bytes(b"junk")
    refuses(tmp_path / "test", "none of its picture files", dataset=str(tmp_path), reading=Reading(skip_bad=True))


def test_a_folder_of_bad_files_alone(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(b"junk")
    refuses("12 of 12 picture files", dataset=str(tmp_path), reading=Reading(skip_bad=True))


def test_a_file_keeps_its_place_however_many_are_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_AT_ONCE", 3)
    for number in range(20):
        picture(tmp_path / f"{number:02}.png", np.full((5, 4), number, np.uint8))
    assert whole(data.load(str(tmp_path)))[:, 0, 0, 0].tolist() == list(range(20))
