"""`jaxvae COMMAND`: the list of commands, and what each is handed."""

import importlib
import re
from pathlib import Path

import pytest

import jaxvae
from jaxvae import cli
from jaxvae.__main__ import COMMANDS, main


def run(*args: str) -> int:
    return cli.run(lambda: main(args))


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_it_lists_the_commands(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == cli.EXIT_OK
    assert re.findall(r"^  (\S+) ", capsys.readouterr().out, flags=re.MULTILINE) == list(COMMANDS)


def test_every_module_that_can_be_run_is_a_command() -> None:
    root = Path(jaxvae.__file__).parent
    runnable = {
        ".".join(("jaxvae", *path.relative_to(root).with_suffix("").parts))
        for path in root.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert {module for module, _ in COMMANDS.values()} == runnable - {"jaxvae.__main__"}
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("name", ["torch_weights", "torch-weights"])
def test_a_command_gets_its_flags_and_gives_the_exit_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("jaxvae.torch_weights.main", lambda argv: seen.append(argv) or cli.EXIT_NOT_SAVED)
    assert run(name, "export", "runs/x", "--out", "w.npz") == cli.EXIT_NOT_SAVED
    assert seen == [["export", "runs/x", "--out", "w.npz"]]


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trian") == cli.EXIT_BAD_INPUT
    assert (
        capsys.readouterr().err
        == f"error: trian: no such command; choose from {', '.join(COMMANDS)}; did you mean train?\n"
    )


def test_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("--version")
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith("jaxvae ")
