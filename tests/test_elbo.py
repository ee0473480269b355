"""The weight of the KL term."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small import config_of, images, keys_of, model_and_params

from jaxvae.objectives.base import Context, View
from jaxvae.objectives.build import build_objective

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
def test_kl_warmup_is_linear_and_repeats_and_is_over_in_evaluation() -> None:
    def weights(**changes: Any) -> list[float]:
        loss = build_objective(config_of("elbo", beta=2.0, epochs=8, **changes), steps_per_epoch=10)
        elbo: Any = loss.objective
        steps = [Context(jnp.int32(step)) for step in (0, 5, 10, 20, 39, 40, 45, 79)]
        return [float(elbo.kl_weight(View(None, {"params": {}}, loss, context))) for context in steps]

    assert weights() == [2.0] * 8
    np.testing.assert_allclose(weights(kl_warmup_epochs=2.0), [0, 0.5, 1, 2, 2, 2, 2, 2])
    np.testing.assert_allclose(weights(kl_warmup_epochs=2.0, kl_cycles=2), [0, 0.5, 1, 2, 2, 0, 0.5, 2])
    config = config_of("elbo", beta=2.0, kl_warmup_epochs=2.0)
    model, params = model_and_params(config)
    x, keys, objective = images(3), keys_of(0, 3), build_objective(config, steps_per_epoch=10)
    first, _ = objective.of(model, params, {"image": x}, keys, Context(jnp.int32(0)))
    np.testing.assert_allclose(first["loss"], first["recon"], rtol=1e-6)
    evaluated, _ = objective.of(model, params, {"image": x}, keys, Context())
    np.testing.assert_allclose(evaluated["loss"], evaluated["recon"] + 2 * evaluated["kl"], rtol=1e-6)
