"""The README and the pages of `docs/`, run as a reader would: files are written, commands and Python are run.

In order, in one directory per page. A block below a line ``<!-- not run: REASON -->`` is left out. Commands that would
take long are made small: see `small`.
"""

import functools
import importlib
import itertools
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import keep_classifiers

from jaxvae import benchmark, cli, data
from jaxvae.__main__ import COMMANDS
from jaxvae.data import sources
from jaxvae.data.arrays import paired

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKS = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


class Block(NamedTuple):
    """A block of code of a page."""

    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The blocks that are run: Python and commands."""
    found = re.finditer(r"(<!-- not run: [^\n]+ -->\n)?^ *```(\w+)[^\n]*\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    for left_out, language, text in (match.groups() for match in found):
        assert language in ("python", "sh", "text", "yaml"), language
        if not left_out and language not in ("text", "yaml"):
            yield Block(language, text)


def commands(text: str) -> list[list[str]]:
    """The commands of a block, each as its words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


SMALLER = {"--epochs": 1, "--samples": 10, "-n": 9, "--seeds": 2, "--rounds": 1}


def small(words: list[str]) -> list[str]:
    """The flags of a command, so that it ends within seconds: few epochs, of few images."""
    args = list(words)
    for place, (name, value) in enumerate(itertools.pairwise(words)):
        if name in SMALLER:
            # A resumed run must become longer.
            most = SMALLER[name] + ("--resume" in words)
            args[place + 1] = str(min(int(value), most))
        elif (name == "--dataset" or not name.startswith("-")) and value in ("mnist", "fashion_mnist", "kmnist"):
            args[place + 1] = "digits"
    return args


def run(words: list[str]) -> int:
    """A command of a page, in this process: its exit code."""
    program, *args = words
    if program == "python" and args[0] != "-m":
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", args)
            runpy.run_path(args[0], run_name="__main__")
        return 0
    if program == "python":
        module, *args = args[1:]
        command = module.removeprefix("jaxvae.")
    else:
        assert program == "jaxvae"
        command, *args = args
    args = small(args)
    if command in ("train", "sweep") and not {"--devices", "--extract", "--help"} & {*args}:
        args += ["--devices", "1"]
    if command in ("train", "sweep", "benchmark") and not {"--dataset", "--resume", "--extract", "--help"} & {*args}:
        args += ["--dataset", "digits"]
    if command == "benchmark":
        args += ["--skip-first-step"]
    main = importlib.import_module(COMMANDS[command][0]).main
    return cli.run(lambda: main(args))


def fewer(read: Callable[[bool], data.ImageData], labels: bool) -> data.ImageData:
    """400 of the images that `read` returns: programs that compile fast run slowly."""
    whole = read(labels)
    train, test = ({key: values[:200] for key, values in whole.split(name).items()} for name in ("train", "test"))
    return paired(whole.name, whole.source, train, test)


@pytest.fixture
def directory(images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a reader, with a folder of small photographs and an array of grey images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(benchmark, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "IMAGES", 300)
    monkeypatch.setattr(sources, "_digits", functools.partial(fewer, sources._digits))
    keep_classifiers(tmp_path, monkeypatch, steps=20)
    photos = tmp_path / "path" / "to" / "photos"
    photos.mkdir(parents=True)
    (tmp_path / "photos").symlink_to(photos)
    rng = np.random.default_rng(0)
    for number in range(24):
        picture = rng.integers(0, 256, (3, 3, 3), np.uint8).repeat(4, 0).repeat(4, 1)[:, :10]
        Image.fromarray(picture).save(photos / f"{number:02}.png")
    np.savez(tmp_path / "images.npz", train=images[:64], test=images[64:])
    return tmp_path


@pytest.mark.long
@pytest.mark.unoptimized
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs(path: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    written: list[str] = []
    jax.config.update("jax_numpy_rank_promotion", "allow")  # As users have it.
    try:
        for block in blocks(path.read_text()):
            if block.language == "sh":
                for words in commands(block.text):
                    assert run(words) == 0, (words, capsys.readouterr().err)
            elif file := re.match(r"# file: (\S+)\.py\n", block.text):
                written.append(file[1])
                sys.modules.pop(file[1], None)
                (directory / f"{file[1]}.py").write_text(block.text)
            else:
                exec(compile(block.text, f"{path.name}: {block.text.splitlines()[0]}", "exec"), names)
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
        for name in written:
            sys.modules.pop(name, None)


def anchors(page: str) -> set[str]:
    """The anchors of the headings of a page."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {"#" + re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINKS.findall(path.read_text()):
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{path.name} links to {target}{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pictures_have_alternative_text(path: Path) -> None:
    for text, target in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", path.read_text()):
        assert len(text) > 10, f"{path.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
