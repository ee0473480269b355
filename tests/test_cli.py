import dataclasses
import importlib
import io
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TextIO

import jax
import pytest
import tyro

from jaxvae import __main__, cli
from jaxvae.errors import InputError, SaveError

COMMANDS = [module for module, _ in __main__.COMMANDS.values()]


@dataclasses.dataclass(frozen=True)
class Inner:
    """Some numbers."""

    count: int = 3
    """How many."""
    learning_rate: float = 0.1
    """How fast."""
    colour: Literal["red", "green"] = "red"
    """Which."""
    sides: tuple[int, ...] = ()
    """How long."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """Where."""

    inner: Inner
    where: Annotated[str, tyro.conf.Positional]
    """A place."""


def parse(*args: str) -> Outer:
    return cli.parse(Outer, args, prog="prog", description="Does it.")


def test_fields_of_inner_dataclasses_are_flags_without_prefix() -> None:
    assert parse("here", "--count", "5") == Outer(Inner(5), "here")
    assert parse("here", "--learning_rate=5") == Outer(Inner(learning_rate=5.0), "here")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["here", "--count", "many"], ["--count", "many"]),
        (["here", "--cuont", "5"], ["--cuont", "--count"]),
        (["here", "--cuont=5"], ["--cuont", "--count"]),
        (["here", "--where", "5"], ["--where"]),
        (["here", "--lr", "5"], ["--lr", "--learning-rate"]),
        (["here", "--xyz", "5"], ["--xyz"]),
        (["here", "--colour", "rde"], ["--colour rde", "red", "green", "did you mean red?"]),
        (["here", "--learning-rate", "fast"], ["--learning-rate", "fast"]),
        (["here", "--sides", "3x4"], ["--sides must be whole numbers with spaces between them, not 3x4 (see"]),
        (["here", "--sides", "512,256"], ["--sides must be whole numbers with spaces between them, not 512,256 (see"]),
        (["here", "--sides", "3", "1.5"], ["--sides must be whole numbers with spaces between them, not 3 1.5 (see"]),
        ([], ["STR is missing: a place (see"]),
        (["here", "x" * 300], ["x" * 60]),
    ],
)
def test_a_refusal_is_one_line_that_names_the_flag(args: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        parse(*args)
    message = str(refused.value)
    assert all(word in message for word in words) and "\n" not in message
    assert message.endswith("(see prog --help)") and "│" not in message


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Error ─────────╮\n│ --a is wrong,    │\n│ or so            │\n│ ──────────────── │\n│ For help │\n╰────╯\n",
        " Error           \n --------------- \n  --a is wrong,  \n  or so          \n  ---------------\n  For help\n\n",
    ],
)
def test_a_refusal_is_the_same_on_terminals_with_and_without_boxes(box: str) -> None:
    assert cli._first_paragraph(box) == "--a is wrong, or so"


def test_help_explains_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "Does it." in shown and "How many. (default: 3)" in shown


@pytest.mark.parametrize("word", ["--where", "--xyz", "--quite-another"])
def test_nothing_is_suggested_where_nothing_is_near(word: str) -> None:
    with pytest.raises(InputError) as refused:
        parse("here", word)
    assert "?" not in str(refused.value)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_prints_versions(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main(["--version"])
    assert not stop.value.code
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("jaxvae ") and f"jax {jax.__version__}  jaxlib " in line


def test_run_turns_input_errors_into_a_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise InputError("--flag is\nwrong")

    assert cli.run(command) == 2
    assert capsys.readouterr().err == "error: --flag is wrong\n"
    assert cli.run(lambda: 0) == 0


@pytest.mark.parametrize("kind", [InputError, SaveError])
def test_errors_are_one_line_whatever_a_file_put_into_them(kind: type[Exception]) -> None:
    assert str(kind("field a\nb\t\x1b[2J\udcff: Größe")) == r"field a b \x1b[2J\udcff: Größe"
    again = pickle.loads(pickle.dumps(kind("a\nb")))
    assert isinstance(again, kind) and str(again) == "a b"


def test_run_names_a_path_that_no_file_could_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: int(Path("x" * 300).exists())) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: xxx") and error.endswith("File name too long\n") and error.count("\n") == 1

    def bug() -> int:
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):
        cli.run(bug)


@pytest.fixture
def reader_gone() -> Iterator[TextIO]:
    """A pipe that nobody reads from."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        yield stream


@pytest.fixture
def full_disk() -> Iterator[TextIO]:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as stream:
        yield stream


@pytest.mark.parametrize(("stream", "code"), [("reader_gone", 141), ("full_disk", 4)])
@pytest.mark.parametrize(("words", "leaves"), [("few", False), ("few", True), ("many " * 10_000, False)])
def test_results_that_are_lost_have_an_exit_code(
    stream: str, code: int, words: str, leaves: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found while it prints, or when the buffer is written at the end; but not again when the stream is closed."""
    monkeypatch.setattr(sys, "stdout", request.getfixturevalue(stream))
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())

    def command() -> int:
        print(words)
        if leaves:  # As after --help.
            raise SystemExit
        return 0

    assert cli.run(command) == code
    lost = "error: stdout cannot be written: No space left on device\n"
    assert said.getvalue() == ("" if code == 141 else lost)


@pytest.mark.parametrize("stream", ["reader_gone", "full_disk", None])
def test_a_stderr_that_breaks_stops_nothing(
    stream: str | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", request.getfixturevalue(stream) if stream else None)
    done = []

    def command() -> int:
        for number in range(3):
            print("words", file=sys.stderr, flush=True)
            done.append(number)
        raise InputError("it is said to nobody")

    assert cli.run(command) == 2
    assert done == [0, 1, 2]


def test_run_turns_ctrl_c_into_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise KeyboardInterrupt

    assert cli.run(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("no/file", "No such file")])
def test_check_writable_names_the_flag(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--out .* cannot be written: {reason}"):
        cli.check_writable("--out", tmp_path / name)


def test_check_writable_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("text")
    cli.check_writable("--out", tmp_path / "old")
    cli.check_writable("--out", tmp_path / "new")
    assert (tmp_path / "old").read_text() == "text"
    assert not (tmp_path / "new").exists()
