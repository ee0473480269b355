"""The labels of pictures: from the folders they lie in, or from a file. All input is untrusted."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.data.formats import blaming
from jaxvae.errors import InputError

FILES = ("metadata.csv", "metadata.jsonl")
"""Files of labels, as Hugging Face's `imagefolder` has them: a line for each picture, with `file_name` and `label`."""
_SPLITS = frozenset(("train", "test", "val", "valid", "validation"))  # Folders of these names are no classes.
_MOST = 2**31 - 1  # The greatest label.
_NAMED = 3  # Files that a message names.


class Labels(NamedTuple):
    """What is known of the classes of pictures.

    Attributes:
      of: the label of each picture, int32.
      classes: the name of each label, in order; empty if labels are numbers.
    """

    of: Mapping[Path, int]
    classes: tuple[str, ...]

    def array(self, paths: Sequence[Path]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The labels of some pictures, int32 [N]."""
        return np.array([self.of[path] for path in paths], np.int32)


def labels_of(folder: Path, parts: Mapping[Path, Sequence[Path]]) -> Labels | None:
    """The labels of picture files.

    They are those of a file `metadata.csv` or `metadata.jsonl` in `folder` or in its parts. Without one, the folders
    directly below a part are classes, if there are at least two and every picture lies in one.

    Args:
      folder: the folder of the dataset.
      parts: the folders of the splits, or `folder` itself, and the pictures in each.

    Returns:
      The labels, or None: there are none.

    Raises:
      InputError: a file of labels cannot be read, or does not name every picture once.
    """
    written: dict[Path, str | int] = {}
    files = [path for place in dict.fromkeys((folder, *parts)) for path in _files_in(place)]
    for file in files:
        for name, value in _lines(file):
            path = file.parent / name
            if path in written:
                raise InputError(f"{file}: names {name} twice")
            written[path] = value
    pictures = [path for paths in parts.values() for path in paths]
    if not written:
        found = {path: part for part, paths in parts.items() for path in paths}
        return _of_folders({path: path.relative_to(part).parts[:-1] for path, part in found.items()})
    if missing := [path for path in pictures if path not in written]:
        raise InputError(f"{files[0]}: no label for {_some(missing, folder)}")
    if unknown := sorted(written.keys() - set(pictures)):
        raise InputError(f"{files[0]}: no such picture: {_some(unknown, folder)}")
    return _numbered(written)


def _files_in(place: Path) -> list[Path]:
    with blaming(place):
        found = [place / name for name in FILES if (place / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{place}: holds {' and '.join(FILES)}: which one has the labels?")
    return found


def _lines(file: Path) -> Iterator[tuple[str, str | int]]:
    """The name and the label of each picture in a file of labels; nothing if it has no labels."""
    with blaming(file):
        text = file.read_text(encoding="utf-8-sig")
    lines = _of_csv(text) if file.suffix == ".csv" else _of_jsonl(text)
    with blaming(file):
        for number, line in lines:
            name, label = line.get("file_name"), line.get("label")
            if not isinstance(name, str) or not name:
                raise InputError(f"{file}: line {number} has no file_name")
            if label is None and "label" not in line:
                return  # It says something else of the pictures, such as captions.
            if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
                raise InputError(
                    f"{file}: line {number}: label {str(label)[:50]!r} is neither a text nor a whole number"
                )
            yield name, label


def _of_csv(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for line in reader:
        yield reader.line_num, line


def _of_jsonl(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError(f"line {number} is not an object")
            yield number, content


def _of_folders(folders: Mapping[Path, tuple[str, ...]]) -> Labels | None:
    """Labels by the first folder of each picture."""
    names = {below[0] if below else "" for below in folders.values()}
    if len(names) < 2 or "" in names or names & _SPLITS:
        return None
    return _numbered({path: below[0] for path, below in folders.items()}, text=True)


def _numbered(labels: Mapping[Path, str | int], text: bool = False) -> Labels:
    """Whole numbers from 0 on stay as they are, unless they are names; names are numbered in their order."""
    values = {str(value) for value in labels.values()}
    if not text and all(value.isascii() and value.isdigit() and int(value) <= _MOST for value in values):
        return Labels({path: int(value) for path, value in labels.items()}, ())
    classes = tuple(sorted(values))
    number = {name: i for i, name in enumerate(classes)}
    return Labels({path: number[str(value)] for path, value in labels.items()}, classes)


def _some(paths: Sequence[Path], folder: Path) -> str:
    named = ", ".join(os.path.relpath(path, folder) for path in paths[:_NAMED])
    return f"{named}, ... ({len(paths):,} in all)" if len(paths) > _NAMED else named
