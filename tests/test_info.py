"""The maximum mean discrepancy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from written import double_sum

from jaxvae.objectives.info import mmd

pytestmark = pytest.mark.unoptimized


def test_mmd_matches_a_double_sum() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 7, 3))
    assert float(jax.jit(mmd)(jnp.float32(a), jnp.float32(b))) == pytest.approx(double_sum(a, b), rel=1e-4, abs=1e-6)


def test_mmd_tells_samples_apart() -> None:
    rng = np.random.default_rng(0)
    same, other = rng.normal(size=(2, 800, 3)), rng.normal(size=(800, 3)) + 1
    assert abs(float(mmd(*jnp.float32(same)))) < 0.01
    assert float(mmd(jnp.float32(same[0]), jnp.float32(other))) > 0.1
