"""`jaxvae.models.torch_layers`: the modules that `torch_code` prints compute what jaxvae computes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import PRESETS, build_model, torch_weights
from jaxvae.config import Config
from jaxvae.models.vae import VAE
from jaxvae.torch_weights import params_from_torch, torch_from_params
from jaxvae.weight_files import StateDict

pytestmark = pytest.mark.unoptimized

torch = pytest.importorskip("torch")

KEY = jax.random.key(0)
RESNET: dict[str, Any] = {"architecture": "resnet", "hidden": (16, 6), "latent_size": 3}
GATED: dict[str, Any] = {"architecture": "gated", "hidden": (5, 4), "latent_size": 3}
CONV: dict[str, Any] = {"architecture": "conv", "hidden": (3, 4), "latent_size": 3}


def config_of(preset: str, **changes: Any) -> Config:
    return dataclasses.replace(PRESETS[preset], **changes)


def drawn(model: Any, seed: int = 3) -> Any:
    """Random parameters of a model, float64, none of them 0, of about the size of initial ones."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.image_shape)), KEY))
    return jax.tree.map(lambda a: rng.normal(0.1, np.prod(a.shape[:-1]) ** -0.5, a.shape), shapes)


def in_pytorch(model: Any) -> tuple[dict[str, Any], str, str]:
    """What the printed code defines, and its two lines: from `x` to the posterior, from `z` to pixels."""
    modules, _, computed = torch_weights.torch_code(model).partition("\n\n# x:")
    names: dict[str, Any] = {}
    exec(modules, names)
    _, posterior, pixels = computed.splitlines()
    return names, posterior, pixels


def compared(model: Any, params: Any, names: dict[str, Any], posterior: str, pixels: str, rtol: float) -> None:
    """Assert that the encoder and the decoder of `model` agree with the lines of PyTorch."""
    rng = np.random.default_rng(4)
    dtype = jax.tree.leaves(params)[0].dtype
    x, z = (rng.uniform(0, 1, shape).astype(dtype) for shape in ((3, *model.image_shape), (3, model.latent_size)))
    with torch.no_grad():
        names["x"] = torch.tensor(x).permute(0, 3, 1, 2)
        exec(posterior, names)
        theirs = [names["mean"], names["std"]] if isinstance(model, VAE) else [names["z"]]
        names["z"] = torch.tensor(z)
        exec(pixels, names)
    decode = "pixels" if isinstance(model, VAE) else "decode"
    both = jax.jit(lambda p: (model.apply(p, x, method="encode"), model.apply(p, z, method=decode)))
    ours, decoded = both(params)
    for one, other in zip(ours if isinstance(model, VAE) else (ours,), theirs, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=rtol, atol=rtol)
    location, log_scale = decoded if isinstance(model, VAE) else (decoded, None)
    gaussian = isinstance(model, VAE) and "Gaussian" in type(model.likelihood).__name__
    images = {"x_hat": location if gaussian else jax.nn.sigmoid(location)}
    if log_scale is not None and log_scale.ndim:
        images["log_scale"] = log_scale
    elif log_scale is not None:
        assert float(log_scale) == names["model"].log_scale.item()
    for name, values in images.items():
        found = names[name].permute(0, 2, 3, 1).numpy()
        assert found.shape == values.shape
        np.testing.assert_allclose(values, found, rtol=rtol, atol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "shape", "changes"),
    [
        ("vae", (28, 28, 1), CONV),
        ("vae", (7, 5, 2), {**GATED, "likelihood": "logistic"}),
        ("notes-ae", (6, 4, 3), {**GATED, "hidden": ()}),
        ("vae", (32, 32, 3), {**CONV, "likelihood": "logistic", "hidden": (3, 4, 5), "activation": "elu"}),
        ("vae", (45, 60, 3), {**CONV, "likelihood": "gaussian-pixel", "hidden": (2, 3, 4, 3), "activation": "gelu"}),
        ("vae", (7, 5, 2), {**CONV, "likelihood": "gaussian-global", "head": "exp", "activation": "silu"}),
        ("vae", (1, 9, 1), {**CONV, "likelihood": "gaussian", "head": "logvar", "activation": "tanh"}),
        ("notes-ae", (7, 5, 2), CONV),
        ("notes-ae", (6, 4, 1), {**CONV, "hidden": (4,), "head": "linear"}),
        ("notes-vae", (5, 6, 2), CONV),
        ("vae", (45, 60, 3), {**RESNET, "likelihood": "logistic", "blocks": 1, "activation": "silu"}),
        ("vae", (7, 5, 2), {**RESNET, "latents": "spatial", "latent_size": 12}),
        ("notes-ae", (7, 5, 2), {**RESNET, "latents": "spatial", "latent_size": 4, "activation": "gelu"}),
    ],
    ids=str,
)
def test_the_printed_modules_compute_what_jaxvae_computes(
    preset: str, shape: tuple[int, int, int], changes: dict[str, Any]
) -> None:
    with jax.enable_x64(True):
        model = build_model(config_of(preset, **changes), shape).clone(dtype=jnp.float64)
        params = drawn(model)
        weights = torch_from_params(params, model)
        names, *lines = in_pytorch(model)
        names["model"].double().load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
        compared(model, params, names, *lines, rtol=1e-10)
        back = params_from_torch(weights, model, np.float64)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [GATED, CONV, {**RESNET, "latents": "spatial", "latent_size": 4}], ids=str)
def test_a_module_initialised_by_pytorch_computes_the_same_in_jaxvae(changes: dict[str, Any]) -> None:
    model = build_model(config_of("vae", likelihood="gaussian-global", **changes), (7, 5, 2))
    torch.manual_seed(0)
    names, *lines = in_pytorch(model)
    weights: StateDict = {name: values.numpy() for name, values in names["model"].state_dict().items()}
    params = params_from_torch(weights, model)
    compared(model, params, names, *lines, rtol=1e-5)
    back = torch_from_params(params, model)
    assert back.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, back, weights)


@pytest.mark.long
@pytest.mark.parametrize("changes", [GATED, CONV, {**RESNET, "latents": "spatial", "latent_size": 4}], ids=str)
def test_gradients_match_pytorch(changes: dict[str, Any]) -> None:
    """Gradients of the reconstructions' squared error with respect to every parameter; float64."""
    shape, rng = (7, 5, 2), np.random.default_rng(5)
    with jax.enable_x64(True):
        model = build_model(
            config_of("notes-ae", head="linear", **({} if changes is GATED else {"activation": "silu"}), **changes),
            shape,
        )
        model = model.clone(dtype=jnp.float64)
        params, x = drawn(model), rng.uniform(0, 1, (4, *shape))

        def loss(params: Any) -> jax.Array:
            return jnp.square(model.apply(params, x).x_hat - x).sum()

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        ours, weights = torch_from_params(gradients, model), torch_from_params(params, model)
    names, *_ = in_pytorch(model)
    module = names["model"].double()
    module.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
    images = torch.tensor(x).permute(0, 3, 1, 2)
    expected = (names["decoder"](names["encoder"](images)).sigmoid() - images).square().sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    for name, parameter in module.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=0, atol=1e-10 * scale, err_msg=name)
