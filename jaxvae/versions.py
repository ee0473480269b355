"""What besides its configuration a run's numbers depend on: the versions, the generator, the platform."""

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

    Starts JAX's backend, if nothing has.
    """
    return {**package_versions(), "generator": GENERATOR, "platform": jax.default_backend()}


def version_warnings(old: Mapping[str, Any], new: Mapping[str, str]) -> list[str]:
    """A sentence for each way in which what a run was trained with differs from what it goes on with.

    Args:
      old: what the run recorded, of `run_versions` then; what it lacks is not known, and passed over.
      new: `run_versions` now.
    """
    return [
        f"this run was trained with {name} {old[name]}, and goes on with {name} {version}: it will not end bit for "
        "bit as it would have"
        for name, version in new.items()
        if name in old and old[name] != version
    ]
