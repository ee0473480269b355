"""`docs/extending.md`, run as it stands: its files are written, its commands are run."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from runs import environment

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
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", args)
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


def test_the_script_of_the_page_goes_on_to_the_same_bytes_when_killed(tmp_path: Path) -> None:
    """As it stands but for the number of epochs, so that there is time to kill it."""
    (text,) = re.findall(r"^```python\n# file: mine.py\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    assert "epochs=10" in text
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def steps(directory: Path) -> list[int]:
        saved = (directory / "runs" / "mine" / "checkpoints").glob("*")
        return sorted(int(path.name) for path in saved if path.name.isdigit())

    def script(directory: Path, *args: str) -> "subprocess.Popen[bytes]":
        directory.mkdir(exist_ok=True)
        (directory / "mine.py").write_text(text.replace("epochs=10", "epochs=60"))
        return subprocess.Popen([sys.executable, "mine.py", *args], cwd=directory, env=environment())

    assert script(whole).wait() == 0
    killed = script(cut)
    while not steps(cut):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    assert steps(cut)[-1] < steps(whole)[-1], "it was killed too late"
    assert script(cut, "resume").wait() == 0
    one, other = (directory / "runs" / "mine" for directory in (whole, cut))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    records = [run / "checkpoints" / str(steps(whole)[-1]) / "record.json" for run in (one, other)]
    arrays = [json.loads(record.read_text())["arrays"] for record in records]
    assert arrays[0] == arrays[1]
