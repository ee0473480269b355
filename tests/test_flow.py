"""The flow prior: its inverse, its Jacobian by automatic differentiation, and that its density integrates to 1."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.models.flow import FlowModule

pytestmark = pytest.mark.unoptimized


def module_and_params(size: int, layers: int, moved: float = 0.5) -> tuple[FlowModule, Any]:
    """A flow far from the identity."""
    module = FlowModule(size, layers, width=8)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1, size)), {}, method="log_density")
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return module, jax.tree.unflatten(
        tree, [leaf + moved * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


@pytest.mark.long
@pytest.mark.parametrize(("size", "layers"), [(2, 1), (5, 4), (6, 3)])
def test_the_inverse_and_the_jacobian(size: int, layers: int) -> None:
    module, params = module_and_params(size, layers)
    latent = jax.random.normal(jax.random.key(2), (7, size))
    base, log_det = module.apply(params, latent, method="to_base")
    np.testing.assert_allclose(module.apply(params, base, method="from_base"), latent, rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(base - latent).max()) > 0.1
    jacobian = jax.vmap(jax.jacfwd(lambda z: module.apply(params, z, method="to_base")[0]))(latent)
    sign, expected = np.linalg.slogdet(np.float64(jacobian))
    assert (np.abs(sign) == 1).all()
    np.testing.assert_allclose(log_det, expected, rtol=1e-4, atol=1e-4)
    density = module.apply(params, latent[:, None], {}, method="log_density")[:, 0]
    np.testing.assert_allclose(density, stats.norm.logpdf(np.float64(base)).sum(-1) + expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_density_integrates_to_one() -> None:
    module, params = module_and_params(2, 3, 0.3)
    axis = np.linspace(-12, 12, 601)
    grid = jnp.float32(np.stack(np.meshgrid(axis, axis), axis=-1))
    density = np.exp(np.float64(module.apply(params, grid, {}, method="log_density")))
    assert density.max() > 1.3 * stats.norm.pdf(0) ** 2 or density.max() < 0.7 * stats.norm.pdf(0) ** 2
    assert abs(np.trapezoid(np.trapezoid(density, axis), axis) - 1) < 0.01


@pytest.mark.slow
def test_draws_follow_the_density() -> None:
    """The mean of log p over draws is minus the entropy, which the flow's log-determinants give as well."""
    module, params = module_and_params(3, 4, 0.3)
    drawn = module.apply(params, jax.random.key(5), (20_000,), method="sample")
    assert drawn.shape == (20_000, 3) and module.apply(params, jax.random.key(5), (), method="sample").shape == (3,)
    base, _ = module.apply(params, drawn, method="to_base")
    # What the draws were made of is standard normal, in every dimension and between them.
    assert (np.abs(np.cov(np.float64(base).T) - np.eye(3)) < 0.05).all()
    assert stats.kstest(np.float64(base).ravel(), "norm").pvalue > 1e-3


@pytest.mark.slow
def test_it_starts_as_a_standard_normal() -> None:
    module = FlowModule(4, 5, 8)
    latent = jax.random.normal(jax.random.key(3), (2, 3, 4))
    params = module.init(jax.random.key(0), latent, {}, method="log_density")
    density = module.apply(params, latent, {}, method="log_density")
    np.testing.assert_allclose(density, stats.norm.logpdf(np.float64(latent)).sum(-1), rtol=1e-5)
    gradients = jax.grad(lambda p: module.apply(p, latent, {}, method="log_density").sum())(params)["params"]
    assert all(float(jnp.abs(layer["out"]["kernel"]).max()) > 0 for layer in gradients.values())


def test_a_single_latent_is_refused() -> None:
    with pytest.raises(InputError, match="--prior realnvp needs --latent-size 2 or more"):
        Config(preset="vae", prior="realnvp", latent_size=1)
