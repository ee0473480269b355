"""The terms of the notes' objectives. Their formulas are tested in test_parity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import Given

from jaxvae.models.autoencoder import AutoEncoderOutput
from jaxvae.models.priors import gaussian_kl_per_dimension
from jaxvae.models.vae import VAEOutput
from jaxvae.objectives.notes import Mse, NotesElbo


def notes_terms(objective: Any, output: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The terms of the notes' objectives for images and what a model made of them."""
    terms: dict[str, jax.Array] = objective.terms(
        Given(output), {"image": x}, jax.random.split(jax.random.key(0), len(x))
    )
    return terms


def outputs(objective: Any) -> tuple[Any, jax.Array]:
    rng = np.random.default_rng(3)
    logits = jnp.float32(rng.normal(size=(6, 4, 3, 2)))
    x = jnp.float32(rng.uniform(size=logits.shape))
    latent, mean = jnp.float32(rng.normal(size=(2, 6, 5)))
    std = jnp.float32(rng.uniform(0.1, 2, size=(6, 5)))
    return (VAEOutput(logits, latent, mean, std) if objective.latent_model else AutoEncoderOutput(logits, latent)), x


@pytest.mark.slow
@pytest.mark.parametrize("objective", [Mse(), NotesElbo()])
def test_terms_are_per_example_and_add_up(objective: Any) -> None:
    output, x = outputs(objective)
    terms = notes_terms(objective, output, x)
    assert {v.shape for v in terms.values()} == {(6,)}
    if objective.latent_model:
        np.testing.assert_allclose(terms["loss"], terms["recon"] + terms["kl"], rtol=1e-6)
    # An example alone gives the same terms as in a batch.
    alone = notes_terms(objective, jax.tree.map(lambda a: a[2:3], output), x[2:3])
    for term, value in alone.items():
        np.testing.assert_allclose(value[0], terms[term][2], rtol=1e-6)


def test_notes_elbo_is_a_gaussian_elbo_of_variance_one_half_over_pixels() -> None:
    output, x = outputs(NotesElbo())
    terms = notes_terms(NotesElbo(), output, x)
    pixels = x[0].size
    squared = (np.asarray(output.x_hat, np.float64) - np.asarray(x, np.float64)) ** 2
    nll = (squared + 0.5 * np.log(np.pi)).reshape(6, -1).sum(1)  # -log N(x; x_hat, 1/2), summed
    elbo_loss = nll + np.asarray(gaussian_kl_per_dimension(output.mean, output.std), np.float64).sum(1)
    constant = 0.5 * np.log(np.pi) * pixels
    np.testing.assert_allclose(np.asarray(terms["loss"]) * pixels, elbo_loss - constant, rtol=1e-5)
