import re
import shlex
import shutil
import subprocess
from collections.abc import Callable

import pytest

from jaxvae import cli, completion
from jaxvae.__main__ import COMMANDS

Complete = Callable[..., list[str]]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """What bash offers for the last of some words."""
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    path = tmp_path_factory.mktemp("completion") / "jaxvae"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        with pytest.raises(SystemExit):
            completion.main(["bash"])

    def offered(*words: str) -> list[str]:
        function = re.findall(r"^complete -F (\S+) jaxvae$", path.read_text(), re.MULTILINE)[0]
        typed = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}"
        script = f"source {shlex.quote(str(path))}; {typed}; {function}; printf '%s\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.split()

    return offered


def test_commands(complete: Complete) -> None:
    assert {*complete("jaxvae", "")} >= {*COMMANDS}


def test_flags_of_a_command(complete: Complete) -> None:
    assert complete("jaxvae", "train", "--archi") == ["--architecture"]
    assert {*complete("jaxvae", "sweep", "--see")} == {"--seed", "--seeds"}
    assert complete("jaxvae", "evaluate", "--architecture") == []


def test_values_of_a_flag(complete: Complete) -> None:
    assert {*complete("jaxvae", "train", "--architecture", "")} >= {"mlp", "conv", "resnet"}


def test_commands_of_a_command(complete: Complete) -> None:
    assert {*complete("jaxvae", "torch_weights", "")} >= {"export", "import"}
    assert complete("jaxvae", "torch_weights", "import", "--image-sh") == ["--image-shape"]


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: completion.main(["powershell"])) == cli.EXIT_BAD_INPUT
    assert "bash, zsh, fish, tcsh" in capsys.readouterr().err.replace("'", "")
