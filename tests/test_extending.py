"""`docs/extending.md`, run as it stands: its files are written, its commands are run."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import jax
import pytest

from jaxvae import cli, evaluate, generate
from jaxvae.sweep import __main__ as sweep
from jaxvae.train import __main__ as train

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
COMMANDS = {"train": train.main, "sweep": sweep.main, "evaluate": evaluate.main, "generate": generate.main}
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]


def run(command: str) -> int:
    """A command of the page, in this process."""
    python, *args = shlex.split(command)
    assert python == "python"
    if args[0] != "-m":
        runpy.run_path(args[0], run_name="__main__")
        return 0
    main = COMMANDS[args[1].removeprefix("jaxvae.")]
    devices = [] if main in (evaluate.main, generate.main) else ["--devices", "1"]
    return cli.run(lambda: main([*args[2:], *devices]))


@pytest.mark.unoptimized
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_the_page_runs(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if "runs/gated" in section and "gated.py" not in section:  # A section that goes on with the run of another.
        section = next(other for other in SECTIONS if "file: gated.py" in other) + section
    files = re.findall(r"^```python\n# file: (\S+)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    for name, text in files:
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    commands = [
        line.removeprefix("$ ")
        for block in re.findall(r"^```console\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    assert files and commands
    jax.config.update("jax_numpy_rank_promotion", "allow")  # As users have it.
    try:
        for command in commands:
            assert run(command) == 0, (command, capsys.readouterr().err)
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
    for name, _ in files:
        sys.modules.pop(name.removesuffix(".py"), None)
