import json

import jax
import jaxlib
import pytest

from jaxvae import versions


def test_a_run_records_what_its_numbers_depend_on() -> None:
    found = versions.run_versions()
    assert (found["jax"], found["jaxlib"]) == (jax.__version__, jaxlib.version.__version__)
    assert (found["generator"], found["platform"]) == ("threefry2x32", "cpu")
    assert found.keys() == {"jaxvae", "jax", "jaxlib", "generator", "platform"}
    assert json.loads(json.dumps(found)) == found


def test_a_version_that_nothing_knows_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise versions.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.importlib.metadata, "version", missing)
    assert versions.package_versions()["jaxvae"] == "unknown"


def test_a_warning_names_both_versions() -> None:
    new = {"jax": "0.10.2", "jaxlib": "0.10.2", "platform": "cpu"}
    assert versions.version_warnings(new, new) == []
    assert versions.version_warnings({}, new) == []
    (one,) = versions.version_warnings({**new, "jax": "0.9.0"}, new)
    assert "jax 0.9.0" in one and "jax 0.10.2" in one and "\n" not in one
    assert len(versions.version_warnings({"jax": "1", "platform": "tpu", "unheard": "of"}, new)) == 2
