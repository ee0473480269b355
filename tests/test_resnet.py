"""`jaxvae.models.resnet` against PyTorch, its initial weights, and the two kinds of latents."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import train

from jaxvae import PRESETS, build_model
from jaxvae.errors import InputError
from jaxvae.models.networks import ResNet
from jaxvae.models.resnet import GroupNorm, ResidualBlock, ResNetDecoder, ResNetEncoder, group_count
from jaxvae.models.vae import VAE

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(2)


def drawn(module: Any, x: Any, dtype: Any = np.float64) -> Any:
    """Random parameters of a module that takes `x`, none of them 0, of about the size of initial ones."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: module.init(KEY, x))
    return jax.tree.map(lambda a: rng.normal(0.1, np.prod(a.shape[:-1]) ** -0.5, a.shape).astype(dtype), shapes)


# --- Layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (7, 1), (15, 1), (16, 2), (17, 1), (24, 3), (32, 4), (40, 5), (50, 5), (256, 32), (264, 24), (1024, 32)],
)
def test_groups_divide_the_channels_and_are_not_small(channels: int, groups: int) -> None:
    assert group_count(channels) == groups
    assert channels % groups == 0 and (groups == 1 or channels // groups >= 8)


def test_group_normalisation_matches_numpy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(100, 3, (2, 3, 5, 16))  # A mean far from 0: the variance must keep its digits.
    scale, bias = rng.normal(size=(2, 16))
    expected = np.empty_like(x)
    for image in range(2):
        for group in (slice(0, 8), slice(8, 16)):
            values = x[image, :, :, group]
            expected[image, :, :, group] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    expected = expected * scale + bias
    params = {"params": {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}}
    found = GroupNorm().apply(params, jnp.float32(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    low = GroupNorm().apply(params, jnp.bfloat16(x))
    assert low.dtype == jnp.float32


def test_an_untrained_block_is_the_identity_and_learns() -> None:
    x = jax.random.normal(KEY, (2, 4, 4, 16))
    params = jax.jit(ResidualBlock().init)(KEY, x)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        y = ResidualBlock().apply(params, x)
        return jnp.square(y).sum(), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(y, x)
    gradients = gradients["params"]
    assert float(jnp.abs(gradients["conv_1"]["kernel"]).max()) > 0


def test_an_untrained_upsampling_step_is_nearest_neighbour_and_a_3_x_3_convolution() -> None:
    decoder = ResNetDecoder((2,), (8, 6, 3), blocks=1)
    z = jax.random.normal(KEY, (1, 5))
    params = jax.jit(decoder.init)(KEY, z)
    kernel = np.asarray(params["params"]["out"]["kernel"], np.float64)  # [4, 4, 2, 3]
    # Each value of the 3 x 3 kernel was added to 2 x 2 places. Recover them from the corner on.
    small = np.zeros((3, 3, 2, 3))
    for i in range(3):
        for j in range(3):
            small[i, j] = kernel[i, j] - sum(
                small[a, b] for a in (i - 1, i) for b in (j - 1, j) if (a, b) != (i, j) and min(a, b) >= 0
            )
    low = np.random.default_rng(0).normal(size=(4, 3, 2))
    large = np.pad(low.repeat(2, 0).repeat(2, 1), ((1, 1), (1, 1), (0, 0)))
    expected = sum(
        np.einsum("hwi,io->hwo", large[i : i + 8, j : j + 6], small[i, j]) for i in range(3) for j in range(3)
    )
    found = jax.lax.conv_transpose(jnp.float32(low)[None], jnp.float32(kernel), (2, 2), "SAME")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- Written out in PyTorch ---------------------------------------------------------------------------------


def torch_block(p: Any, x: Any) -> Any:
    y = x
    for i in (0, 1):
        y = torch_conv(p[f"conv_{i}"], torch_norm(p[f"norm_{i}"], y).relu(), padding=1)
    return x + y


def torch_norm(p: Any, x: Any) -> Any:
    import torch

    return torch.nn.functional.group_norm(x, max(1, x.shape[1] // 8), p["scale"], p["bias"])


def torch_conv(p: Any, x: Any, **how: Any) -> Any:
    import torch

    return torch.nn.functional.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p["bias"], **how)


def torch_encoder(p: Any, x: Any, levels: int, blocks: int, spatial: bool) -> Any:
    """Encode images [B, H, W, C] to features [B, size], with the parameters of a `ResNetEncoder`."""
    import torch

    x = x.permute(0, 3, 1, 2)
    for level in range(levels):
        rows, cols = x.shape[2:]
        x = torch.nn.functional.pad(x, (cols % 2, 1, rows % 2, 1))
        x = torch_conv(p[f"down_{level}"], x, stride=2)
        for block in range(blocks):
            x = torch_block(p[f"block_{level}_{block}"], x)
    x = torch_norm(p["norm"], x).relu().permute(0, 2, 3, 1)
    if spatial:
        x = x @ p["out"]["kernel"] + p["out"]["bias"]
        half = x.shape[-1] // 2
        return torch.cat([values.permute(0, 3, 1, 2).flatten(1) for values in (x[..., :half], x[..., half:])], dim=1)
    return x.flatten(1) @ p["out"]["kernel"] + p["out"]["bias"]


def torch_decoder(p: Any, z: Any, shape: tuple[int, int, int], last: Any, blocks: int, spatial: bool) -> Any:
    """Decode latents [B, L] to images [B, H, W, C], with the parameters of a `ResNetDecoder`.

    `last` is the shape of its last level.
    """
    import torch

    sizes = [shape[:2]]
    while sizes[-1] != last[:2]:
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))
    if spatial:
        x = z.unflatten(1, (-1, *last[:2])).permute(0, 2, 3, 1) @ p["in"]["kernel"] + p["in"]["bias"]
    else:
        x = (z @ p["in"]["kernel"] + p["in"]["bias"]).unflatten(1, last)
    x = x.permute(0, 3, 1, 2)
    for level in range(len(sizes) - 2, -1, -1):
        for block in range(blocks):
            x = torch_block(p[f"block_{level}_{block}"], x)
        x = x if level else torch_norm(p["norm"], x).relu()
        up = p[f"up_{level}" if level else "out"]
        # Zeros between the pixels and a convolution replace PyTorch's transposed convolution.
        zeros = torch.zeros(*x.shape[:2], 2 * x.shape[2] + 3, 2 * x.shape[3] + 3, dtype=x.dtype)
        zeros[:, :, 2:-2:2, 2:-2:2] = x
        x = torch_conv(up, zeros)[:, :, : sizes[level][0], : sizes[level][1]]
    return x.permute(0, 2, 3, 1)


@pytest.mark.long
@pytest.mark.parametrize(("hidden", "spatial"), [((5, 16), False), ((16, 5), True)])
def test_outputs_and_gradients_match_pytorch(hidden: tuple[int, ...], spatial: bool) -> None:
    """For images with an even number of rows and an odd number of columns; the last level is 2 x 2; float64."""
    torch = pytest.importorskip("torch")
    rng, shape, last = np.random.default_rng(1), (8, 5, 2), (2, 2, hidden[-1])
    x, z, weights = rng.uniform(size=(3, *shape)), rng.normal(size=(3, 8)), rng.normal(size=(3, 16))

    def as_torch(tree: Any) -> Any:
        return jax.tree.map(lambda a: torch.tensor(np.array(a), requires_grad=True), tree)["params"]

    with jax.enable_x64(True):
        encoder = ResNetEncoder(hidden, 16, 1, spatial, jnp.float64)
        decoder = ResNetDecoder(hidden, shape, 1, spatial, jnp.float64)
        p, q = drawn(encoder, x), drawn(decoder, z)

        @jax.jit
        def both(p: Any, q: Any) -> Any:
            features, back = jax.vjp(lambda p: encoder.apply(p, x), p)
            images, decoded_back = jax.vjp(lambda q: decoder.apply(q, z), q)
            return features, images, (back(weights)[0]["params"], decoded_back(jnp.square(images))[0]["params"])

        features, images, gradients = both(p, q)
    there = as_torch(p), as_torch(q)
    expected = torch_encoder(there[0], torch.tensor(x), len(hidden), 1, spatial)
    expected_images = torch_decoder(there[1], torch.tensor(z), shape, last, 1, spatial)
    expected.backward(torch.tensor(weights))
    expected_images.backward(expected_images.detach().square())
    np.testing.assert_allclose(features, expected.detach(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(images, expected_images.detach(), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, there, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b.grad, rtol=0, atol=1e-10 * float(b.grad.abs().max())),
            ours,
            theirs,
        )


# --- Latents ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_spatial_latent_belongs_to_its_pixel() -> None:
    """With 2 latents for each of 4 x 3 pixels, changing one of them changes the image most around its pixel."""
    model = VAE((32, 24, 1), ResNet((8, 8, 8), blocks=1, latents="spatial"), latent_size=24)
    params = jax.jit(model.init)(KEY, jnp.zeros((1, 32, 24, 1)), KEY)
    z = np.zeros((2, 24), np.float32)
    z[1, 12 + 3 * 3 + 2] = 1.0  # The second map, row 3, column 2: the last pixel.
    one, other = np.asarray(jax.jit(lambda: model.apply(params, z, method="decode"))())
    # Normalisation sees the whole image. The change is largest where the latent is.
    change = np.abs(other - one).reshape(4, 8, 3, 8).mean((1, 3))
    assert change.argmax() == 11 and change[3, 2] > 2 * change[:2].max()


def test_mean_and_deviation_are_halves_of_the_channels() -> None:
    network = ResNet((8,), blocks=1, latents="spatial")
    model = VAE((4, 4, 1), network, latent_size=8, head="logvar")
    params: Any = jax.jit(model.init)(KEY, jnp.zeros((1, 4, 4, 1)), KEY)
    out = params["params"]["encoder"]["out"]
    out["kernel"] = jnp.zeros((8, 4))
    out["bias"] = jnp.log(jnp.float32([1, 2, 9, 25]))
    mean, std = jax.jit(lambda: model.apply(params, jnp.ones((1, 4, 4, 1)), method="encode"))()
    np.testing.assert_allclose(mean[0], np.repeat(np.log([1, 2]), 4), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(std[0], np.repeat([3, 5], 4), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "hidden", "size", "said"),
    [
        ((28, 28, 1), (8, 8, 8), 20, "28 x 28 images is 4 x 4, so it must be a multiple of 16, such as 16 or 32"),
        ((45, 60, 3), (8, 8), 100, "45 x 60 images is 12 x 15, so it must be a multiple of 180, such as 180 or 360"),
        ((7, 5, 2), (8, 8), 50, "7 x 5 images is 2 x 2, so it must be a multiple of 4, such as 48 or 52"),
    ],
)
def test_a_latent_size_that_does_not_fit_is_refused(
    shape: tuple[int, int, int], hidden: tuple[int, ...], size: int, said: str
) -> None:
    config = dataclasses.replace(
        PRESETS["vae"], architecture="resnet", hidden=hidden, latents="spatial", latent_size=size
    )
    with pytest.raises(InputError, match=f"^--latent-size {size} does not fit --latents spatial: .*{re.escape(said)}$"):
        build_model(config, shape)
    fits = int(said.split()[-1])
    model = build_model(dataclasses.replace(config, latent_size=fits), shape)
    output = jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, *shape)), KEY)[0])
    assert output.mean.shape == (2, fits) and output.logits.shape == (2, *shape)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--architecture", "resnet", "--latents", "spatial"], "--latent-size 20 does not fit --latents spatial"),
        (
            ["--architecture", "mlp", "--latents", "spatial"],
            "--latents spatial has no effect: it needs --architecture conv or resnet",
        ),
        (["--architecture", "conv", "--blocks", "3"], "--blocks 3 has no effect: it needs --architecture resnet"),
        (["--architecture", "resnet", "--blocks", "0"], "--blocks must be from 1 to 64, not 0"),
        (["--architecture", "resnet", "--hidden"], "--architecture resnet needs --hidden"),
        (["--architecture", "resnet", "--init", "pytorch", "--preset", "iwae"], "--init pytorch has no effect"),
    ],
)
def test_conflicting_flags_are_refused_before_a_run_is_created(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hidden = [] if "--hidden" in flags else ["--hidden", "8", "8", "8"]
    preset = [] if "--preset" in flags else ["--preset", "vae"]
    assert train(*preset, "--dataset", "digits", "--run-dir", str(run), *hidden, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert not run.exists()


def test_a_sweep_over_latent_sizes_names_the_one_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxvae import cli
    from jaxvae.sweep import __main__ as sweep

    flags = ["--preset", "vae", "--architecture", "resnet", "--hidden", "8", "8", "--latents", "spatial"]
    args = [*flags, "--dataset", "digits", "--latent-size", "49", "50", "--run-dir", str(tmp_path / "run")]
    assert cli.run(lambda: sweep.main(args)) == 2
    assert "error: --latent-size 50 does not fit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
