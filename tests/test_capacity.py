"""The KL term with a capacity: its loss in NumPy, its growth, and that training reaches it."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from runs import train
from small import config_of, images, keys_of, model_and_params, terms_of

import jaxvae
from jaxvae import evaluate
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
@pytest.mark.parametrize(("step", "grown"), [(0, 0.0), (5, 0.25), (20, 1.0), (99, 1.0), (None, 1.0)])
def test_the_loss_in_numpy(step: int | None, grown: float) -> None:
    config = config_of("capacity", capacity=8.0, capacity_weight=3.0, capacity_epochs=2.0, epochs=9)
    model, params = model_and_params(config, scale=3.0)
    loss = build_objective(config, 10, 100)
    context = Context() if step is None else Context(jnp.int32(step))
    terms, _ = loss.of(model, params, {"image": images(4)}, keys_of(0, 4), context)
    mean, std = (np.float64(a) for a in model.apply(params, images(4), method="encode"))
    kl = (0.5 * (mean**2 + std**2 - 1) - np.log(std)).sum(1)
    np.testing.assert_allclose(terms["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(terms["loss"], np.float64(terms["recon"]) + 3 * abs(kl - 8 * grown), rtol=1e-5)
    if step is None:
        np.testing.assert_allclose(terms[loss.bound_name], -(np.float64(terms["recon"]) + kl), rtol=1e-5)


def test_its_reconstruction_is_that_of_elbo() -> None:
    model, params = model_and_params(config_of("elbo"))
    found = [terms_of(config_of(name), model, params, images(4), keys_of(0, 4)) for name in ("elbo", "capacity")]
    np.testing.assert_array_equal(found[0]["recon"], found[1]["recon"])


@pytest.mark.long
def test_training_holds_the_kl_term_at_the_capacity(image_file: Path, tmp_path: Path) -> None:
    given = ["--preset", "vae", "--dataset", str(image_file), "--hidden", "16", "--latent-size", "4"]
    given += ["--batch-size", "8", "--learning-rate", "0.01", "--objective", "capacity", "--capacity", "3"]
    given += ["--capacity-weight", "20", "--capacity-epochs", "2"]
    assert train(*given, "--epochs", "40", "--run-dir", str(tmp_path / "whole")) == 0
    assert abs(evaluate.evaluate_run(tmp_path / "whole")["kl"] - 3) < 0.7
    assert jaxvae.load(tmp_path / "whole").sample(2).shape == (2, 6, 5, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prior": "mixture"}, "--objective capacity needs a prior whose KL term has a closed form: --prior normal"),
        ({"head": "relu"}, "--objective capacity needs --head linear, logvar or exp"),
        ({"capacity_epochs": 30.0}, "--capacity-epochs 30 must be at most --epochs 20"),
        ({"beta": 2.0}, "--beta 2 has no effect"),
    ],
)
def test_what_does_not_fit_it_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Config(**{"preset": "vae", "objective": "capacity", **changes})
