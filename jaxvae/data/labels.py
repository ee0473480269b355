"""The labels of pictures: from the folders they lie in, or from a file. All input is untrusted."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxvae import errors
from jaxvae.data.formats import blaming
from jaxvae.errors import InputError

FILES = ("metadata.csv", "metadata.jsonl")
"""Files of labels, as Hugging Face's `imagefolder` has them: a line for each picture, with `file_name` and `label`."""
_MOST = 2**31 - 1  # The greatest label.
_NAMED = 3  # Files that a message names.


class Labels(NamedTuple):
    """What is known of the classes of pictures.

    Attributes:
      values: the label of each picture, int32 [N].
      classes: the name of each label, in order; empty if labels are numbers.
    """

    values: NDArray[np.int32]
    classes: tuple[str, ...]


def labels_of(
    folder: Path, parts: Sequence[Path], names: Sequence[str], warn: Callable[[str], None] = errors.warn
) -> Labels | None:
    """The labels of picture files.

    They are those of a file `metadata.csv` or `metadata.jsonl` in `folder` or in its parts. Without one, the folders
    directly below a part are classes, if there are at least two and every picture lies in one.

    Args:
      folder: the folder of the dataset.
      parts: the folders of its splits, or `folder` itself.
      names: the pictures, as paths relative to `folder`.
      warn: called with one line if only some pictures of splits lie in folders of classes.

    Returns:
      The labels, or None: there are none.

    Raises:
      InputError: a file of labels cannot be read, or does not name every picture once.
    """
    written: dict[str, str | int] = {}
    files = [file for place in dict.fromkeys((folder, *parts)) for file in _files_in(place)]
    for file in files:
        place = file.parent.relative_to(folder)
        for name, value in _lines(file):
            picture = os.path.normpath(os.path.join(place, name))
            if picture in written:
                raise InputError(f"{file}: names {name} twice")
            written[picture] = value
    if not written:
        return _of_folders(names, len(parts[0].relative_to(folder).parts), lambda why: warn(f"{folder}: {why}"))
    if missing := [name for name in names if name not in written]:
        raise InputError(f"{files[0]}: no label for {some(missing)}")
    if unknown := sorted(written.keys() - set(names)):
        raise InputError(f"{files[0]}: no such picture: {some(unknown)}")
    return _numbered([written[name] for name in names])


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
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError(f"line {number} is not an object")
            yield number, content


def _of_folders(names: Sequence[str], depth: int, warn: Callable[[str], None]) -> Labels | None:
    """Labels by the folder of each picture that lies below `depth` others."""
    parts = [name.split("/", depth + 1)[depth:] for name in names]
    folders = [below[0] for below in parts if len(below) > 1]
    if len(set(folders)) < 2:
        return None
    if len(folders) < len(names):
        if depth:  # Else the folders may be anything.
            outside = next(name for name, below in zip(names, parts, strict=True) if len(below) == 1)
            warn(f"labels are left out: {outside} lies in no class folder")
        return None
    return _numbered(folders, text=True)


def _numbered(labels: Sequence[str | int], text: bool = False) -> Labels:
    """Whole numbers from 0 on stay as they are, unless they are names; names are numbered in their order."""
    values = {str(value) for value in labels}
    if not text and all(value.isascii() and value.isdigit() and int(value) <= _MOST for value in values):
        return Labels(np.array([int(value) for value in labels], np.int32), ())
    classes = tuple(sorted(values))
    number = {name: i for i, name in enumerate(classes)}
    return Labels(np.array([number[str(value)] for value in labels], np.int32), classes)


def some(names: Sequence[str]) -> str:
    """A few of `names`, in words."""
    named = ", ".join(names[:_NAMED])
    return f"{named}, ... ({len(names):,} in all)" if len(names) > _NAMED else named
