"""The script of `docs/extending.md`, killed and resumed. That the page runs is tested in `test_docs.py`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import environment

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


@pytest.mark.long
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
