"""What a run's numbers depend on besides its configuration: the versions, the generator, the platform."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax

from jaxvae.keys import GENERATOR


def package_versions() -> dict[str, str]:
    """The versions of jaxvae, jax and jaxlib, by name."""
    return {name: _version(name) for name in ("jaxvae", "jax", "jaxlib")}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # A checkout that was never installed.
        return "unknown"


def run_versions() -> dict[str, str]:
    """What a run records: `package_versions`, the "generator" of its random numbers, and its "platform".

    Starts JAX's backend, if it is not started yet.
    """
    return {**package_versions(), "generator": GENERATOR, "platform": jax.default_backend()}


def version_warnings(old: Mapping[str, Any], new: Mapping[str, str]) -> list[str]:
    """A sentence for each difference between what a run was trained with and what it resumes with.

    Args:
      old: `run_versions` as the run recorded it; entries that it lacks are skipped.
      new: `run_versions` now.
    """
    return [
        f"this run was trained with {name} {old[name]}, and resumes with {name} {version}: its results will not be "
        "bit for bit the same"
        for name, version in new.items()
        if name in old and old[name] != version
    ]
