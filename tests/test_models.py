"""Models: their layers against NumPy, their initial weights, reconstructions and samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxvae.config import PRESETS
from jaxvae.models.autoencoder import AutoEncoder, Head
from jaxvae.models.build import build_model, reconstruct, sample, with_output_bias
from jaxvae.models.layers import ACTIVATIONS, Activation
from jaxvae.models.likelihoods import LIKELIHOODS
from jaxvae.models.networks import Conv, Mlp, ResNet, TwoLayer
from jaxvae.models.two_layer import TwoLayerVAE
from jaxvae.models.vae import LOGVAR_BOUND, VAE, reparameterize
from jaxvae.protocols import Network

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(7)


def dense(params: dict, side: str, i: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # type: ignore[type-arg]
    layer = params["params"][side]["mlp"][f"dense_{i}"]
    return np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)


def forward(params: dict, side: str, x: NDArray[np.float64], layers: int) -> NDArray[np.float64]:  # type: ignore[type-arg]
    """The MLP written out in NumPy, float64."""
    for i in range(layers):
        kernel, bias = dense(params, side, i)
        x = (np.maximum(x, 0) if i else x) @ kernel + bias
    return x


@pytest.mark.slow
@pytest.mark.parametrize("head", ["relu", "linear"])
@pytest.mark.parametrize(("shape", "hidden"), [((28, 28, 1), (256, 64)), ((7, 5, 3), (11,)), ((4, 4, 1), ())])
def test_autoencoder_matches_an_mlp_in_numpy(head: Head, shape: tuple[int, int, int], hidden: tuple[int, ...]) -> None:
    model = AutoEncoder(shape, Mlp(hidden), latent_size=6, head=head)
    x = jax.random.uniform(KEY, (3, *shape))
    params = model.init(KEY, x)
    output = model.apply(params, x)
    code = forward(params, "encoder", np.asarray(x, np.float64).reshape(3, -1), len(hidden) + 1)
    code = np.maximum(code, 0) if head == "relu" else code
    logits = forward(params, "decoder", code, len(hidden) + 1).reshape(x.shape)
    np.testing.assert_allclose(output.latent, code, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.x_hat, 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize("head", ["relu", "linear"])
def test_vae_encode_matches_the_head_in_numpy(head: Head) -> None:
    model = VAE((4, 4, 1), Mlp((9,)), latent_size=3, head=head)
    x = jax.random.uniform(KEY, (5, 4, 4, 1))
    params = model.init(KEY, x, KEY)
    mean, std = model.apply(params, x, method="encode")
    features = forward(params, "encoder", np.asarray(x, np.float64).reshape(5, -1), 2)
    first, second = features[:, :3], features[:, 3:]
    if head == "relu":
        expected_mean, expected_std = np.maximum(first, 0), np.maximum(second, 0)
    else:
        expected_mean, expected_std = first, np.exp(5 * np.tanh(second / 10))
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, expected_std, rtol=1e-4, atol=1e-6)


def test_vae_decodes_the_latent_it_reports() -> None:
    model = VAE((4, 4, 1), Mlp((9,)), latent_size=3)
    x = jax.random.uniform(KEY, (5, 4, 4, 1))
    params = model.init(KEY, x, KEY)
    output = model.apply(params, x, KEY)
    np.testing.assert_array_equal(output.latent, reparameterize(KEY, output.mean, output.std))
    np.testing.assert_array_equal(output.logits, model.apply(params, output.latent, method="decode"))


def test_linear_head_stays_finite_for_any_features() -> None:
    model = VAE((2, 2, 1), Mlp(()), latent_size=2)
    x = jnp.ones((1, 2, 2, 1))
    params = jax.tree.map(lambda p: 1e30 * jnp.ones_like(p), model.init(KEY, x, KEY))
    for sign in (1.0, -1.0):
        _, std = model.apply(jax.tree.map(lambda p: sign * p, params), x, method="encode")  # noqa: B023
        np.testing.assert_allclose(std, np.exp(sign * LOGVAR_BOUND / 2), rtol=1e-5)


def test_presets_have_the_notes_widths() -> None:
    for preset, inner in (("notes-ae", 20), ("notes-vae", 10)):
        model = build_model(PRESETS[preset], (28, 28, 1))
        params = model.init(KEY, jnp.zeros((1, 28, 28, 1)), KEY)
        encoder = [dense(params, "encoder", i)[0].shape for i in range(3)]
        decoder = [dense(params, "decoder", i)[0].shape for i in range(3)]
        assert encoder == [(784, 256), (256, 64), (64, 20)]
        assert decoder == [(inner, 64), (64, 256), (256, 784)]
        assert model.head == "relu"


class TestReparameterize:
    def test_is_mean_plus_std_times_standard_noise(self) -> None:
        mean, std = jnp.full((200, 500), 3.0), jnp.full((200, 500), 0.5)
        sample = np.asarray(reparameterize(KEY, mean, std))
        # 100,000 draws: the standard error of the mean is 0.0016, of the deviation 0.0011.
        assert abs(sample.mean() - 3) < 0.01
        assert abs(sample.std() - 0.5) < 0.01
        eps = reparameterize(KEY, jnp.zeros_like(mean), jnp.ones_like(std))
        np.testing.assert_allclose(sample, 3 + 0.5 * np.asarray(eps), rtol=1e-5)

    def test_gradients_are_one_and_the_noise(self) -> None:
        mean, std = jnp.zeros((4, 3)), jnp.ones((4, 3))
        by_mean, by_std = jax.grad(lambda m, s: reparameterize(KEY, m, s).sum(), (0, 1))(mean, std)
        np.testing.assert_array_equal(by_mean, jnp.ones((4, 3)))
        np.testing.assert_array_equal(by_std, reparameterize(KEY, mean, std))

    def test_zero_std_gives_the_mean(self) -> None:
        mean = jnp.arange(6.0).reshape(2, 3)
        np.testing.assert_array_equal(reparameterize(KEY, mean, jnp.zeros((2, 3))), mean)

    def test_noise_with_a_key_per_example_does_not_depend_on_the_batch(self) -> None:
        keys = jax.random.split(KEY, 6)
        zeros, ones = jnp.zeros((6, 4)), jnp.ones((6, 4))
        whole = reparameterize(keys, zeros, ones)
        np.testing.assert_array_equal(whole[2:4], reparameterize(keys[2:4], zeros[2:4], ones[2:4]))
        assert len(np.unique(whole)) == whole.size

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match="mean .* and std"):
            reparameterize(KEY, jnp.zeros((2, 3)), jnp.ones((2, 1)))
        with pytest.raises(ValueError, match="key"):
            reparameterize(jax.random.split(KEY, 3), jnp.zeros((2, 3)), jnp.ones((2, 3)))


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_bfloat16_models_return_float32(preset: str) -> None:
    model = build_model(PRESETS[preset], (28, 28, 1))
    low = model.clone(dtype=jnp.bfloat16)
    x = jax.random.uniform(KEY, (8, 28, 28, 1))
    params = low.init(KEY, x, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact, rough = model.apply(params, x, KEY), low.apply(params, x, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} - {jnp.dtype("int32")} == {jnp.dtype("float32")}
    if preset in ("vq-vae", "fsq"):  # A code may be another one.
        return
    error = np.abs(np.asarray(exact.x_hat) - np.asarray(rough.x_hat)).max()
    assert 0 < error < 0.02  # bfloat16 keeps 8 bits: different, but close.


@pytest.mark.slow
def test_reconstruct_and_sample() -> None:
    model = VAE((4, 5, 2), Mlp((9,)), latent_size=3)
    x = jax.random.uniform(KEY, (6, 4, 5, 2))
    params = model.init(KEY, x, KEY)
    np.testing.assert_array_equal(reconstruct(model, params, {"image": x}, KEY), model.apply(params, x, KEY).x_hat)
    drawn = sample(model, params, KEY, 7)
    latent = jax.random.normal(KEY, (7, 3))
    expected = jax.nn.sigmoid(model.apply(params, latent, method="decode"))
    np.testing.assert_array_equal(drawn, expected)
    assert drawn.shape == (7, 4, 5, 2)


@pytest.mark.long
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian-pixel"])
@pytest.mark.parametrize("kind", [Conv, ResNet])
@pytest.mark.parametrize(("shape", "channels"), [((28, 28, 1), (4, 6)), ((7, 5, 3), (4,)), ((9, 1, 2), (3, 4, 5))])
def test_convolutions_take_images_of_any_size(
    shape: tuple[int, int, int], channels: tuple[int, ...], kind: type[Conv] | type[ResNet], likelihood: str
) -> None:
    model = VAE(shape, kind(channels), latent_size=3, likelihood=LIKELIHOODS[likelihood]())
    x = jax.random.uniform(KEY, (2, *shape))
    params = model.init(KEY, x, KEY)
    output = model.apply(params, x, KEY)
    assert output.logits.shape == x.shape
    assert output.mean.shape == (2, 3)
    # The encoder sees all pixels, also at the edges.
    seen = jax.grad(lambda x: model.apply(params, x, method="encode")[0].sum())(x)
    assert (np.asarray(seen) != 0).mean() > 0.5  # Except where a ReLU is off.
    bias = params["params"]["decoder"]["out" if channels else "in"]["bias"]
    assert bias.shape == (shape[2] * (2 if likelihood == "gaussian-pixel" else 1),)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Mlp((8,), init="glorot"), Conv((8,)), ResNet((8,))], ids=repr)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
def test_an_untrained_decoder_draws_the_mean_image(network: Network, likelihood: str) -> None:
    shape = (6, 4, 2)
    mean = jnp.float32(np.random.default_rng(0).uniform(0.05, 0.95, shape)).at[0, 0, 0].set(0.0)
    model = VAE(shape, network, latent_size=3, likelihood=LIKELIHOODS[likelihood]())
    params = model.init(KEY, jnp.zeros((1, *shape)), KEY)
    before = jax.tree.map(np.asarray, params)
    biased = with_output_bias(params, model, mean)
    jax.tree.map(np.testing.assert_array_equal, params, before)  # The original ones are unchanged.
    kernels = jax.tree.map(lambda a: 0 * a if a.ndim > 1 else a, biased)
    drawn = np.asarray(jax.nn.sigmoid(model.apply(kernels, jnp.zeros((1, 3)), method="decode")))[0]
    expected = np.asarray(mean) if isinstance(network, Mlp) else np.broadcast_to(mean.mean(axis=(0, 1)), shape)
    np.testing.assert_allclose(drawn, np.clip(expected, 1e-3 if likelihood != "gaussian" else 1e-5, 1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_applied_between_the_layers(activation: Activation) -> None:
    model = AutoEncoder((2, 2, 1), Mlp((5,), activation), latent_size=3)
    x = jax.random.uniform(KEY, (4, 2, 2, 1))
    params = model.init(KEY, x)
    code = model.apply(params, x, method="encode")
    (k0, b0), (k1, b1) = (dense(params, "encoder", i) for i in range(2))
    hidden = np.asarray(ACTIVATIONS[activation](jnp.float32(np.asarray(x).reshape(4, -1) @ k0 + b0)))
    np.testing.assert_allclose(code, np.maximum(hidden @ k1 + b1, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_bfloat16_keeps_losses_and_noise_in_float32() -> None:
    for model in (
        VAE((4, 4, 1), Mlp((8,)), 3, dtype=jnp.bfloat16),
        VAE((4, 4, 1), Conv((8,)), 3, dtype=jnp.bfloat16),
        VAE((4, 4, 1), ResNet((8,)), 3, dtype=jnp.bfloat16),
        VAE((4, 4, 1), ResNet((8,), latents="spatial"), 4, dtype=jnp.bfloat16),
        TwoLayerVAE((4, 4, 1), TwoLayer((8, 6)), 3, dtype=jnp.bfloat16),
    ):
        x = jax.random.uniform(KEY, (2, 4, 4, 1))
        params = jax.jit(model.init)(KEY, x, KEY)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        keys = jax.random.split(KEY, 2)
        draws = jax.jit(partial(model.apply, method="draw"), static_argnums=3)(params, {"image": x}, keys, 3)
        assert {leaf.dtype for leaf in jax.tree.leaves(draws)} == {jnp.dtype("float32")}
