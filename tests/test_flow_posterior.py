"""The posterior of `docs/extending.md` that is no Gaussian: its density, and what is written of its latents."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small import keys_of

from jaxvae.config import PRESETS
from jaxvae.encode import encode
from jaxvae.models.flow import FlowModule
from jaxvae.optimizer import build_optimizer
from jaxvae.train.step import init_state
from jaxvae.trained import TrainedRun

pytestmark = [pytest.mark.unoptimized, pytest.mark.slow]

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SHAPE = (28, 28, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRun]:
    """The model of the page, with weights for which the flow is far from the identity."""
    (text,) = re.findall(r"^```python\n# file: flow_posterior.py\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    folder = tmp_path_factory.mktemp("page")
    (folder / "flow_posterior.py").write_text(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        model = importlib.import_module("flow_posterior").FlowVae()
        config = dataclasses.replace(PRESETS["vae"], model="flow_posterior:FlowVae")
        params = jax.jit(lambda: init_state(model, build_optimizer(config, 1), jax.random.key(0)).params)()
        rng = np.random.default_rng(0)
        moved = jax.tree.map(lambda a: np.asarray(a + 0.1 * rng.normal(size=a.shape), np.float32), params)
        yield TrainedRun(config, model, moved, 0, SHAPE, {"image_shape": list(SHAPE)})
    del sys.modules["flow_posterior"]


def images(count: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, *SHAPE), np.uint8)


def test_the_density_is_that_of_the_moved_gaussian(run: TrainedRun) -> None:
    x = np.float32(images(3)) / 255
    drawn = jax.jit(lambda: run.model.apply(run.variables, {"image": x}, keys_of(0, 3), 2, method="draw"))()
    flow, params = FlowModule(8, layers=4, width=32), {"params": run.variables["params"]["flow"]}
    first = flow.apply(params, drawn.latent, method="from_base")
    assert float(jnp.abs(first - drawn.latent).max()) > 0.5
    jacobian = jax.jit(jax.vmap(jax.vmap(jax.jacfwd(lambda z: flow.apply(params, z, method="to_base")[0]))))(first)
    sign, log_det = np.linalg.slogdet(np.float64(jacobian))
    assert (sign != 0).all() and np.abs(log_det).min() > 0.01
    mean, std = np.float64(drawn.mean)[:, None], np.float64(drawn.std)[:, None]
    expected = stats.norm.logpdf(np.float64(first), mean, std).sum(-1) - log_det
    np.testing.assert_allclose(drawn.log_posterior, expected, rtol=1e-3, atol=1e-3)


def test_its_latents_are_written_without_a_deviation(run: TrainedRun, tmp_path: Path) -> None:
    """Two images in the second split: a pair of latents is no mean and deviation."""
    np.savez(tmp_path / "images.npz", train=images(5), test=images(2))
    found = encode(run, str(tmp_path / "images.npz"))
    assert {*found} == {"mean", "split"}
    shown = np.float32(np.concatenate([images(5), images(2)])) / 255
    expected = jax.jit(lambda: run.model.apply(run.variables, shown, method="encode"))()
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="the model FlowVae has no posterior with a standard deviation"):
        run.posterior(images(2))
