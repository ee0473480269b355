"""Every loader against bytes that were tampered with: it takes them, or refuses them in one line."""

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "fuzz"))
from targets import TARGETS, run

FUZZ = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_whole_is_taken(name: str, tmp_path: Path) -> None:
    # The record's files are not there: the step is damaged, and there is no other.
    assert run(TARGETS[name], TARGETS[name].seed, tmp_path) is (name != "record")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@FUZZ
@given(edit=st.data())
def test_what_was_tampered_with_is_taken_or_refused(name: str, edit: st.DataObject) -> None:
    content = bytearray(TARGETS[name].seed)
    for _ in range(edit.draw(st.integers(1, 6))):
        place = edit.draw(st.integers(0, max(len(content) - 1, 0)))
        what = edit.draw(st.sampled_from(["flip", "cut", "insert", "digits"]))
        if what == "flip" and content:
            content[place] ^= 1 << edit.draw(st.integers(0, 7))
        elif what == "cut":
            del content[place : place + edit.draw(st.integers(1, 64))]
        elif what == "insert":
            content[place:place] = edit.draw(st.binary(max_size=16))
        else:
            content[place : place + 1] = edit.draw(st.sampled_from([b"9" * 20, b"-1", b"null", b"[]", b"1e999", b"{"]))
    with tempfile.TemporaryDirectory() as directory:
        run(TARGETS[name], bytes(content), Path(directory))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@FUZZ
@given(content=st.binary(max_size=200))
def test_what_is_nothing_is_refused(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        taken = run(TARGETS[name], content, Path(directory))
    assert not taken or name == "metrics"  # Of which a last line cut short is no error.
