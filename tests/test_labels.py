"""The labels of images: of folders, of files beside pictures, and of .npz files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import noise, refuses
from PIL import Image

from jaxvae import benchmark, cli, data
from jaxvae.config import Config
from jaxvae.data import __main__ as data_command
from jaxvae.data.pictures import pictures_of
from jaxvae.data.reading import Reading


def pictures(folder: Path, *names: str) -> None:
    """Pictures whose pixels tell them apart."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 4), 3 * number, np.uint8)).save(path)


def by_pixel(images: data.ImageData) -> dict[int, Any]:
    """The label of each image, by the value of its pixels."""
    splits = [images.split(name) for name in ("train", "test")]
    return {
        int(image.max()): label for split in splits for image, label in zip(split["image"], split["label"], strict=True)
    }


CLASSES = [*(f"cats/{i}.png" for i in range(7)), *(f"dogs/{i}.png" for i in range(6)), "ants/deep/0.png"]


def test_folders_are_classes(tmp_path: Path) -> None:
    pictures(tmp_path, *CLASSES)
    images = data.load(str(tmp_path))
    assert images.classes == ("ants", "cats", "dogs")
    assert (len(images.train), len(images.test)) == (13, 1)
    expected = {3 * i: images.classes.index(name.split("/")[0]) for i, name in enumerate(CLASSES)}
    assert by_pixel(images) == expected
    assert images.split("train")["label"].dtype == np.int32


def test_folders_of_splits_hold_folders_of_classes(tmp_path: Path) -> None:
    pictures(tmp_path / "train", *CLASSES)
    pictures(tmp_path / "test", "dogs/a.png", "bats/b.png")
    warned = list[str]()
    images = data.load(str(tmp_path), warn=warned.append)
    assert warned == [f"{tmp_path}: no picture for training has the label bats"]
    assert images.classes == ("ants", "bats", "cats", "dogs")
    assert images.split("test")["label"].tolist() == [1, 3]  # Sorted by path: bats before dogs.
    assert sorted(images.split("train")["label"].tolist()) == [0, *[2] * 7, *[3] * 6]


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(12)],
        [*(f"cats/{i}.png" for i in range(11)), "alone.png"],
        [f"cats/{i}.png" for i in range(12)],
        [f"train/{i}.png" for i in range(12)],
        [*(f"train/{name}" for name in CLASSES), *(f"val/{i}.png" for i in range(4))],
    ],
    ids=["flat", "one beside the folders", "one folder", "a split", "a split without classes"],
)
def test_other_folders_have_no_labels(names: list[str], tmp_path: Path) -> None:
    pictures(tmp_path, *names)
    warned = list[str]()
    images = data.load(str(tmp_path), warn=warned.append)
    assert images.classes == () and images.split("train").keys() == {"image"}
    mixed = "val/0.png" in names
    assert warned == [f"{tmp_path}: labels are left out: val/0.png lies in no class folder"] * mixed
    assert not [name for name in data.digests(images) if "label" in name]


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_a_folder_of_validation_pictures(
    validation: str, stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder for testing, as ImageNet has it: every tenth picture for training is held out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures(tmp_path / "d" / "train", *CLASSES)
    pictures(tmp_path / "d" / validation, "dogs/a.png", "bats/b.png")
    images = data.load(str(tmp_path / "d"), reading=data.Reading(stream=stream))
    assert images.classes == ("ants", "bats", "cats", "dogs")
    tenth = sorted(CLASSES)[9]
    names = {"train": [name for name in sorted(CLASSES) if name != tenth], "test": [tenth]}
    for split, expected in names.items():
        assert [image.max() for image in getattr(images, split)] == [3 * CLASSES.index(name) for name in expected]
        labels = [images.classes[label] for label in images.split(split)["label"]]
        assert labels == [name.split("/")[0] for name in expected]
    assert [image.max() for image in images.validation] == [3, 0]
    assert images.split("validation")["label"].tolist() == [1, 3]
    held_out = data.prepared(images, Config(validation=0.5))
    assert (len(held_out.train), len(held_out.validation), len(held_out.test)) == (13, 2, 1)


def test_a_folder_of_training_pictures_alone_is_like_its_content(tmp_path: Path) -> None:
    pictures(tmp_path / "train", *CLASSES)
    whole, content = data.load(str(tmp_path)), data.load(str(tmp_path / "train"))
    assert data.identity(whole) == data.identity(content)
    assert whole.classes == ("ants", "cats", "dogs") and "train_label_sha256" in data.identity(whole)


@pytest.mark.parametrize("numbers", [True, False])
def test_labels_that_no_picture_for_training_has_are_told(numbers: bool, tmp_path: Path) -> None:
    """Of a folder without splits, too: every tenth picture is held out."""
    names = [f"{i:02}.png" for i in range(50)]
    pictures(tmp_path, *names)
    held_out = {9: 3, 19: 4, 29: 5, 39: 6}
    lines = [f"{name},{'' if numbers else 'class'}{held_out.get(i, i % 3)}" for i, name in enumerate(names)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    warned = list[str]()
    data.load(str(tmp_path), warn=warned.append)
    which = "3, 4, 5, ... (4 in all)" if numbers else "class3, class4, class5, ... (4 in all)"
    assert warned == [f"{tmp_path}: no picture for training has the label {which}"]


def test_three_splits_are_three_splits(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 3), ("test", 2), ("extra", 5)):
        pictures(tmp_path / split, *(f"{'ab'[i % 2]}/{i}.png" for i in range(count)))
    images = data.load(str(tmp_path))
    assert (len(images.train), len(images.validation), len(images.test)) == (4, 3, 2)
    assert images.split("validation")["label"].tolist() == [0, 0, 1]


def test_splits_that_would_leave_out_pictures_are_refused(tmp_path: Path) -> None:
    """CIFAR-100 has a class called train."""
    pictures(tmp_path / "classes", *(f"{name}/{i}.png" for name in ("train", "whale") for i in range(6)))
    refuses("pictures lie in train/ and beside it, such as whale/", dataset=str(tmp_path / "classes"))
    pictures(tmp_path / "tests", *(f"{name}/{i}.png" for name in ("test", "whale") for i in range(6)))
    refuses("tests: holds test/, but no train/: add that, or name", dataset=str(tmp_path / "tests"))


def test_links_to_folders_of_classes_are_followed_and_circles_end(tmp_path: Path) -> None:
    pictures(tmp_path / "all", *CLASSES)
    some = tmp_path / "some"
    some.mkdir()
    for name in ("cats", "dogs"):
        (some / name).symlink_to(tmp_path / "all" / name)
    (tmp_path / "all" / "cats" / "again").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "dogs" / "up").symlink_to(tmp_path)
    found = pictures_of(some, Reading())
    own = [name for name in CLASSES if name.startswith(("cats", "dogs"))]
    assert {name for name in found.files if name.count("/") == 1} == {*own}
    assert found.classes == ("cats", "dogs") and len(found.files) < 200


def test_names_in_json_lines_may_hold_any_character(tmp_path: Path) -> None:
    name = "a\u2028b\x85.png"
    pictures(tmp_path, name, *(f"{i}.png" for i in range(11)))
    written = [{"file_name": each, "label": each[0]} for each in (name, *(f"{i}.png" for i in range(11)))]
    lines = [json.dumps(line, ensure_ascii=False) for line in written]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert "a" in data.load(str(tmp_path)).classes


FLAT = [f"{i}.png" for i in range(12)]


def csv_of(names: list[str], labels: list[object]) -> str:
    return "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))


def jsonl_of(names: list[str], labels: list[object]) -> str:
    lines = [{"file_name": name, "text": "x", "label": label} for name, label in zip(names, labels, strict=True)]
    return "\n".join(map(json.dumps, lines))


@pytest.mark.parametrize(("file", "written"), [("metadata.csv", csv_of), ("metadata.jsonl", jsonl_of)])
@pytest.mark.parametrize("numbers", [True, False])
def test_a_file_of_labels(file: str, written: Any, numbers: bool, tmp_path: Path) -> None:
    """Whole numbers stay as they are; texts are numbered in their order."""
    pictures(tmp_path, *FLAT)
    labels: list[object] = [7 * (i % 3) if numbers else "cab"[i % 3] for i in range(12)]
    shuffled = np.random.default_rng(0).permutation(12)
    text = written([FLAT[i] for i in shuffled], [labels[i] for i in shuffled])
    (tmp_path / file).write_bytes(b"\xef\xbb\xbf" * (not numbers) + text.encode())  # With a mark, as Excel writes it.
    images = data.load(str(tmp_path))
    assert images.classes == (() if numbers else ("a", "b", "c"))
    expected = labels if numbers else ["abc".index(str(label)) for label in labels]
    assert by_pixel(images) == {3 * i: label for i, label in enumerate(expected)}


def test_a_file_of_labels_comes_before_folders(tmp_path: Path) -> None:
    pictures(tmp_path, *CLASSES)
    (tmp_path / "metadata.csv").write_text(csv_of(CLASSES, list(range(14))))
    images = data.load(str(tmp_path))
    assert images.classes == () and by_pixel(images) == {3 * i: i for i in range(14)}


def test_each_split_may_have_its_file_of_labels(tmp_path: Path) -> None:
    for split, label in (("train", "up"), ("test", "down"), ("val", "even")):
        pictures(tmp_path / split, "a.png", "b.png")
        (tmp_path / split / "metadata.csv").write_text(csv_of(["a.png", "b.png"], [label, "up"]))
    images = data.load(str(tmp_path))
    assert images.classes == ("down", "even", "up")
    labels = {split: images.split(split)["label"].tolist() for split in ("train", "test", "validation")}
    assert labels == {"train": [2, 2], "test": [0, 2], "validation": [1, 2]}


def test_splits_may_share_a_file_of_labels(tmp_path: Path) -> None:
    names = [*(f"train/x/{i}.png" for i in range(12)), "val/0.png", "val/1.png"]
    pictures(tmp_path, *names)
    (tmp_path / "metadata.csv").write_text(csv_of([*names[:-1], "./val//1.png"], list(range(14))))
    images = data.load(str(tmp_path))
    assert images.split("validation")["label"].tolist() == [12, 13]
    assert by_pixel(images) == {3 * i: i for i in range(12)}


def test_a_file_without_labels_says_nothing_of_them(tmp_path: Path) -> None:
    pictures(tmp_path, *FLAT)
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},a cat\n" for name in FLAT))
    assert data.load(str(tmp_path)).split("train").keys() == {"image"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (csv_of(FLAT[1:], list(range(11))), "metadata.csv: no label for 0.png"),
        (csv_of(FLAT[5:], list(range(7))), "0.png, 1.png, 2.png, ... (5 in all)"),
        (csv_of([*FLAT, "12.png"], list(range(13))), "metadata.csv: no such picture: 12.png"),
        (csv_of([*FLAT, "/etc/passwd"], list(range(13))), "metadata.csv: no such picture: "),
        (csv_of([*FLAT, "3.png"], list(range(13))), "metadata.csv: names 3.png twice"),
        (csv_of(FLAT, [*range(11), ""]), "line 13: label '' is neither a text nor a whole number"),
        ("name,label\n0.png,1\n", "line 2 has no file_name"),
        ('file_name,label\n"0.png,1\n', "metadata.csv: cannot be read"),
    ],
)
def test_a_file_of_labels_that_does_not_match_is_refused(text: str, said: str, tmp_path: Path) -> None:
    pictures(tmp_path, *FLAT)
    (tmp_path / "metadata.csv").write_text(text)
    refuses(said, dataset=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "0.png", "label": 1.5}', "line 1: label '1.5' is neither"),
        ('{"file_name": "0.png", "label": [1]}', "line 1: label '[1]' is neither"),
        ('{"file_name": "0.png", "label": true}', "line 1: label 'True' is neither"),
        ("[1]", "line 1 is not an object"),
        ('{"file_name": ', "metadata.jsonl: cannot be read"),
        ("[" * 100_000, "metadata.jsonl: cannot be read"),
        ("\udcff", "metadata.jsonl: cannot be read"),
    ],
    ids=range(7),
)
def test_lines_that_are_no_labels_are_refused(text: str, said: str, tmp_path: Path) -> None:
    pictures(tmp_path, *FLAT)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    refuses(said, dataset=str(tmp_path))


def test_two_files_of_labels_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, *FLAT)
    (tmp_path / "metadata.csv").write_text(csv_of(FLAT, list(range(12))))
    (tmp_path / "metadata.jsonl").write_text(jsonl_of(FLAT, list(range(12))))
    refuses("which one has the labels?", dataset=str(tmp_path))


def test_damaged_pictures_take_their_labels_along(tmp_path: Path) -> None:
    pictures(tmp_path, *CLASSES)
    (tmp_path / "cats" / "3.png").write_bytes(b"")
    images = data.load(str(tmp_path), reading=data.Reading(skip_bad=True), warn=lambda _: None)
    expected = {3 * i: images.classes.index(name.split("/")[0]) for i, name in enumerate(CLASSES) if i != 3}
    assert by_pixel(images) == expected


ARRAYS = {"x": noise(6, 5, 4), "y": np.arange(6) % 3, "a": noise(4, 5, 4, seed=1), "b": np.array([2, 0, 1, 2])}


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
def test_a_npz_file_with_labels(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = [ARRAYS[key] for key in "xyab"]
    arrays[1], arrays[3] = arrays[1].astype(np.uint8)[:, None], arrays[3].astype(np.uint8)[:, None]  # As in MedMNIST.
    np.savez(tmp_path / "x.npz", **dict(zip(names, arrays, strict=True)))
    images = data.load(str(tmp_path / "x.npz"))
    np.testing.assert_array_equal(images.train[..., 0], ARRAYS["x"])
    np.testing.assert_array_equal(images.split("train")["label"], ARRAYS["y"])
    np.testing.assert_array_equal(images.split("test")["label"], ARRAYS["b"])


def test_a_npz_file_with_its_own_validation_images(tmp_path: Path) -> None:
    """They are used instead of training images, unless no validation is asked for."""
    names = ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels")
    held_out = noise(3, 5, 4, seed=2)
    arrays = (*(ARRAYS[key] for key in "xyab"), held_out, np.array([1, 1, 0]))
    np.savez(tmp_path / "x.npz", **dict(zip(names, arrays, strict=True)))
    images = data.load(str(tmp_path / "x.npz"))
    whole = data.prepared(images, Config(validation=0.5))
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (6, 3, 4)
    np.testing.assert_array_equal(whole.validation[..., 0], held_out)
    assert whole.split("validation")["label"].tolist() == [1, 1, 0]
    none = data.prepared(images, Config(validation=0.0))
    assert (len(none.train), len(none.validation), len(none.test)) == (6, 0, 4)
    assert len(none.split("validation")["label"]) == 0


def test_images_and_labels_without_a_test_set(tmp_path: Path) -> None:
    images, labels = noise(25, 5, 4), np.arange(25)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    found = data.load(str(tmp_path / "x.npz"))
    assert found.split("test")["label"].tolist() == [9, 19]
    np.testing.assert_array_equal(found.test[..., 0], images[[9, 19]])
    assert found.split("train")["label"].tolist() == [i for i in range(25) if i not in (9, 19)]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(24), "24 labels for 25 images"),
        (np.linspace(0, 1, 25), "labels must be whole numbers"),
        (np.arange(25) - 1, "values from -1 to 23"),
        (np.full(25, 2**40), "labels must be from 0 to 2^31 - 1"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(25, 5, 4), labels=labels)
    refuses(said, dataset=str(tmp_path / "x.npz"))


def test_what_the_data_command_says_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path, *CLASSES)
    assert cli.run(lambda: data_command.main([str(tmp_path)])) == 0
    out = capsys.readouterr().out
    assert "test 1 images, 5 x 4 x 1, 3 classes\n" in out and "\n3 classes: ants 1, cats 7, dogs 6\n" in out


def test_repeated_images_keep_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark repeats small sets."""
    monkeypatch.setattr(benchmark, "IMAGES", 20)
    split = {"train": {"label": ARRAYS["y"]}, "test": {"label": ARRAYS["b"]}}
    few = data.ImageData("x", "a test", ARRAYS["x"][..., None], ARRAYS["a"][..., None], others=split)
    many = benchmark.repeated(few).split("train")
    assert [len(values) for values in many.values()] == [20, 20]
    for image, label in zip(many["image"], many["label"], strict=True):
        assert label in ARRAYS["y"][(ARRAYS["x"][..., None] == image).all((1, 2, 3))]


def test_labels_that_a_run_did_not_have_do_not_contradict_it() -> None:
    record = {"train_images_sha256": "a", "train_label_sha256": "b", "example": {"label": {}}}
    assert data.contradicted({"train_images_sha256": "a"}, record) == []
    assert data.contradicted({"train_images_sha256": "c"}, record) == ["train_images_sha256"]
    assert data.contradicted({**record, "train_label_sha256": "c"}, record) == ["train_label_sha256"]
