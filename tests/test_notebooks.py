"""The notebooks of docs/notebooks: each is the script beside it, was executed without an error, and still runs."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupytext
import pytest
from runs import PATIENCE, environment

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.py"))


def cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert isinstance(notebook["cells"], list)
    return notebook["cells"]


@pytest.mark.slow
def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == len(list(NOTEBOOKS[0].parent.glob("*.ipynb"))) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(path: Path) -> None:
    script = [(cell["cell_type"], cell["source"]) for cell in jupytext.read(path)["cells"]]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells(path)] == script


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_in_order_without_an_error(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert "Warning" not in json.dumps(outputs)


def test_links_lead_to_pages_of_the_site() -> None:
    hook = runpy.run_path(str(NOTEBOOKS[0].parents[1] / "notebook_links.py"))["on_post_page"]
    text = '<a href="../evaluation.md#x">a</a> <a href="other-one.ipynb">b</a> <a href="https://a.b/c.md">c</a>'
    page = SimpleNamespace(file=SimpleNamespace(src_uri="notebooks/one.ipynb"))
    expected = '<a href="../../evaluation/#x">a</a> <a href="../other-one/">b</a> <a href="https://a.b/c.md">c</a>'
    assert hook(text, page, None) == expected
    page.file.src_uri = "one.md"
    assert hook(text, page, None) == text


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name, value in (("DATASET", '"digits"'), ("EPOCHS", "1")):
        text, count = re.subn(rf"^{name} = \S+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    script = tmp_path / path.name
    script.write_text(text, encoding="utf-8")
    own = {**environment(), "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=own, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
