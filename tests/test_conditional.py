"""Conditional models: what a label changes, what is drawn of a class, and what is refused."""

import dataclasses
import shutil
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.typing import NDArray
from runs import SMALL, assert_same_run, train
from small import SHAPE, config_of, images, keys_of

import jaxvae
from jaxvae import cli, data, encode, evaluate, generate
from jaxvae import torch_weights as torch_command
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.models.build import build_model, call_arguments
from jaxvae.models.priors import LabelGaussianModule
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.sweep import __main__ as sweep_command
from jaxvae.train.step import init_state
from jaxvae.weight_files import save_weights

CLASSES = 3
LABELS = jnp.array([2, 0, 1, 2], jnp.int32)


def conditional(**changes: Any) -> Config:
    return config_of(**{"condition": "label", "classes": CLASSES, **changes})


def model_and_params(config: Config) -> tuple[Any, Any]:
    """A model whose parameters, those of the labels among them, are far from 0."""
    model = build_model(config, SHAPE)
    params = init_state(model, build_optimizer(config), jax.random.key(1)).params
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, moved)


@pytest.mark.long
def test_a_label_adds_an_image_to_the_input_and_numbers_to_the_latents() -> None:
    """In NumPy, in float64."""
    model, params = model_and_params(conditional(hidden=(8,), activation="tanh", head="logvar"))
    p = jax.tree.map(np.float64, params["params"])
    x, label = np.float64(images(4)), np.asarray(LABELS)

    def mlp(part: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = (p[part]["mlp"][f"dense_{i}"] for i in range(2))
        return np.tanh(h @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]

    features = mlp("encoder", x.reshape(4, -1) + p["label_image"]["table"][label])
    mean, logvar = np.split(features, 2, axis=1)
    told = p["label_latents"]["table"][label]
    logits = mlp("decoder", np.concatenate([mean, told], axis=1)).reshape(4, *SHAPE)

    found_mean, found_std = model.apply(params, images(4), LABELS, method="encode")
    np.testing.assert_allclose(found_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found_std, np.exp(logvar / 2), rtol=1e-4)
    np.testing.assert_allclose(model.apply(params, found_mean, LABELS, method="decode"), logits, rtol=1e-4, atol=1e-4)
    many = jnp.stack([found_mean, 2 * found_mean], axis=1)
    several = model.apply(params, many, LABELS, method="pixels").location
    np.testing.assert_allclose(several[:, 0], logits, rtol=1e-4, atol=1e-4)


OBJECTIVES = {
    "elbo": {},
    "iwae": {"samples": 3},
    "dreg": {"samples": 3},
    "beta-tc": {},
    "factor": {"discriminator_width": 4},
    "info": {},
    "notes-elbo": {"likelihood": "bernoulli"},
}
NETWORKS = {
    "conv": {"architecture": "conv", "hidden": (4, 6)},
    "spatial resnet": {"architecture": "resnet", "hidden": (8,), "blocks": 1, "latents": "spatial", "latent_size": 4},
}


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [*({"objective": name, **more} for name, more in OBJECTIVES.items()), *NETWORKS.values(), {"prior": "label"}],
    ids=[*OBJECTIVES, *NETWORKS, "prior"],
)
def test_each_image_is_told_its_own_label(changes: dict[str, Any]) -> None:
    """The terms of an image change with its label, and with no other's."""
    config = conditional(**changes)
    model, params = model_and_params(config)
    loss = build_objective(config, 1, 1)

    def terms(label: jax.Array) -> Any:
        found, _ = loss.of(model, params, {"image": images(4), "label": label}, keys_of(3, 4), Context())
        return found["recon"]

    one, other = jax.jit(terms)(LABELS), jax.jit(terms)(LABELS.at[1].set(1))
    assert one[1] != other[1]
    np.testing.assert_array_equal(np.delete(one, 1), np.delete(other, 1))


@pytest.mark.long
def test_the_gradient_reaches_the_vectors_of_the_labels_at_hand() -> None:
    config = conditional(prior="label")
    model, params = model_and_params(config)
    loss = build_objective(config, 1, 1)

    def mean_loss(params: Any) -> jax.Array:
        batch = {"image": images(4), "label": jnp.array([2, 0, 0, 2])}
        return loss.of(model, params, batch, keys_of(3, 4), Context())[0]["loss"].mean()

    gradients = jax.grad(mean_loss)(params)["params"]
    tables = [
        gradients["label_image"],
        gradients["label_latents"],
        gradients["p_z"]["mean"],
        gradients["p_z"]["log_std"],
    ]
    for table in tables:
        moved = jnp.abs(table["table"]).max(axis=1)
        assert moved[0] > 0 and moved[2] > 0 and moved[1] == 0


@pytest.mark.long
def test_the_prior_of_a_label() -> None:
    """Its density, its KL term and its draws, against PyTorch's normal distribution."""
    torch = pytest.importorskip("torch")
    prior = LabelGaussianModule(latent_size=2, classes=CLASSES)
    rng = np.random.default_rng(0)
    means, log_stds = rng.normal(size=(2, CLASSES, 2)).astype(np.float32)
    params = {"params": {"mean": {"table": means}, "log_std": {"table": log_stds}}}
    batch, label = {"label": LABELS}, np.asarray(LABELS)
    theirs = torch.distributions.Normal(torch.tensor(means[label]), torch.tensor(np.exp(log_stds[label])))

    latent = rng.normal(size=(4, 5, 2)).astype(np.float32)
    density = prior.apply(params, latent, batch, method="log_density")
    expected = theirs.log_prob(torch.tensor(latent).swapaxes(0, 1)).sum(-1).T
    np.testing.assert_allclose(density, expected, rtol=1e-5, atol=1e-5)

    mean, std = rng.normal(size=(4, 2)).astype(np.float32), rng.uniform(0.5, 2, (4, 2)).astype(np.float32)
    kl = prior.apply(params, mean, std, batch, method="kl")
    posterior = torch.distributions.Normal(torch.tensor(mean), torch.tensor(std))
    np.testing.assert_allclose(kl, torch.distributions.kl_divergence(posterior, theirs), rtol=1e-4, atol=1e-5)

    one = {"label": jnp.full(20_000, 1)}
    drawn = prior.apply(params, jax.random.key(0), (20_000,), one, method="sample")
    np.testing.assert_allclose(drawn.mean(axis=0), means[1], atol=0.05 * np.exp(log_stds[1]).max())
    np.testing.assert_allclose(drawn.std(axis=0), np.exp(log_stds[1]), rtol=0.05)


def sides(count: int) -> dict[str, NDArray[Any]]:
    """Images of two classes: white on the left, or on the right."""
    label = np.arange(count) // 2 % 2
    image = np.zeros((count, 6, 6), np.uint8)
    image[label == 0, :, :3] = 255
    image[label == 1, :, 3:] = 255
    return {"image": image, "label": label}


def fitted(tmp_path: Path, **options: Any) -> jaxvae.Fit:
    given = {
        "hidden": (16,),
        "latent_size": 2,
        "batch_size": 20,
        "epochs": 60,
        "learning_rate": 0.01,
        "condition": "label",
        **options,
    }
    return jaxvae.fit(data=sides(400), run_dir=tmp_path / "run", devices=1, image_every=0, **given)


@pytest.mark.long
@pytest.mark.parametrize("prior", ["normal", "label"])
def test_what_is_drawn_of_a_class_looks_like_it(prior: str, tmp_path: Path) -> None:
    run = fitted(tmp_path, prior=prior).run
    assert run.config.classes == 2
    drawn = run.sample(20, label=np.arange(20) % 2)
    left, right = drawn[..., :3, :].mean(axis=(1, 2, 3)), drawn[..., 3:, :].mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(left < right, np.arange(20) % 2)
    # Without labels, 8 of each class in turn.
    np.testing.assert_array_equal(run.sample(20), run.sample(20, label=np.arange(20) // 8 % 2))
    given = sides(6)
    latents = run.encode(given["image"], label=given["label"])
    assert latents.shape == (6, 2)
    assert run.decode(latents, label=given["label"]).shape == (6, 6, 6, 1)
    assert run.reconstruct(given["image"], label=given["label"]).shape == (6, 6, 6, 1)
    assert run.interpolate(given["image"][0], given["image"][2], steps=3, label=0).shape == (3, 6, 6, 1)
    with pytest.raises(ValueError, match=r"label must hold whole numbers from 0 to 1, not \[0, 2\]"):
        run.sample(2, label=[0, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures with a folder for each of two classes."""
    from PIL import Image

    given = sides(60)
    for i, (image, label) in enumerate(zip(given["image"], given["label"], strict=True)):
        path = tmp_path / "pictures" / ("left", "right")[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "pictures"


def flags(folder: Path, *more: str) -> list[str]:
    return ["--preset", "vae", "--dataset", str(folder), *SMALL, *more]


@pytest.mark.long
def test_a_run_is_trained_resumed_evaluated_and_drawn_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = flags(folder, "--condition", "label", "--prior", "label")
    assert train(*given, "--epochs", "4", "--run-dir", str(whole)) == 0
    assert train(*given, "--epochs", "2", "--run-dir", str(cut)) == 0
    assert train("--resume", "--run-dir", str(cut), "--epochs", "4") == 0
    assert_same_run(whole, cut)
    found = evaluate.evaluate_run(whole)
    assert np.isfinite(found["loss"]) and jaxvae.load(whole).record["classes"] == ["left", "right"]
    given = data.load(str(folder))
    others = {name: {"label": 1 - split["label"]} for name, split in given.others.items()}
    with pytest.raises(InputError, match="not the labels of the test images"):
        evaluate.evaluate_run(whole, images=dataclasses.replace(given, others=others))

    def draw(*args: str) -> int:
        return cli.run(lambda: generate.main([str(whole), "--out", str(tmp_path / "drawn.png"), *args]))

    capsys.readouterr()
    assert draw() == draw("--label", "right") == draw("--label", "0", "-n", "3") == 0
    assert [line.split(" ->")[0] for line in capsys.readouterr().out.splitlines()] == [
        "16 images",
        "64 images",
        "3 images",
    ]
    np.testing.assert_array_equal(generate.generate(whole, 3, label="left"), generate.generate(whole, 3, label="0"))
    # Other pictures: their classes are those of the same names, and others are none that it knows.
    shutil.copytree(folder, tmp_path / "more")
    (tmp_path / "more" / "left").rename(tmp_path / "more" / "up")
    with pytest.raises(InputError, match="the run knows no class up: its classes are left, right"):
        encode.encode(jaxvae.load(whole), str(tmp_path / "more"))
    assert draw("--label", "rihgt") == 2
    assert "--label rihgt: the classes are left, right; did you mean right?" in capsys.readouterr().err
    assert draw("--label", "2") == 2


@pytest.mark.long
def test_members_of_a_sweep_are_what_single_runs_are(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "--condition", "label", "--epochs", "2")
    swept = ["--beta", "0.5", "1", "--seeds", "1", "--run-dir", str(tmp_path / "sweep"), "--devices", "1"]
    assert cli.run(lambda: sweep_command.main([*given, *swept])) == 0
    extracted = ["--extract", "1", "--to", str(tmp_path / "member")]
    assert cli.run(lambda: sweep_command.main(["--run-dir", str(tmp_path / "sweep"), *extracted])) == 0
    assert train(*given, "--run-dir", str(tmp_path / "single")) == 0
    one, other = (jaxvae.load(tmp_path / name).variables["params"] for name in ("member", "single"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.long
def test_two_devices_compute_what_one_does(folder: Path, tmp_path: Path) -> None:
    given = flags(folder, "--condition", "label", "--epochs", "1")
    for devices in ("1", "2"):
        assert train(*given, "--devices", devices, "--run-dir", str(tmp_path / devices)) == 0
    one, two = (jaxvae.load(tmp_path / name).variables["params"] for name in ("1", "2"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)


def test_images_without_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", sides(30)["image"])
    for option in ("--condition", "--prior"):
        assert train(*flags(tmp_path / "images.npy", option, "label", "--run-dir", str(tmp_path / "run"))) == 2
        assert (
            f"{option} label: NumPy file {tmp_path / 'images.npy'}: the images have no labels"
            in capsys.readouterr().err
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "mse", "preset": "notes-ae", "condition": "label"}, "needs a VAE with one layer of latents"),
        (
            {"preset": "iwae", "architecture": "two-layer", "hidden": (8, 4), "condition": "label"},
            "--condition label needs a VAE with one layer of latents",
        ),
        (
            {"preset": "iwae", "architecture": "two-layer", "hidden": (8, 4), "prior": "label"},
            "--prior label needs a VAE with one layer of latents",
        ),
        ({"preset": "vae", "classes": 3}, "--classes 3 has no effect: it needs --condition label or --prior label"),
        ({"preset": "vae", "condition": "label", "classes": -1}, "--classes must be from 0 to 65536, not -1"),
    ],
)
def test_what_has_no_condition_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Config(**changes)


def test_more_labels_than_the_model_knows_are_refused() -> None:
    given = data.from_arrays({**sides(30), "label": np.arange(30) % 7})
    with pytest.raises(InputError, match="--condition label with 3 classes: .* has the label 6; labels count from 0"):
        data.for_run(conditional(), given)
    assert data.for_run(conditional(classes=0), given).classes == 7
    assert data.for_run(conditional(classes=9), given).classes == 9
    fractions = dataclasses.replace(given, others={"train": {"label": np.ones(27)}, "test": {"label": np.ones(3)}})
    with pytest.raises(InputError, match="a label must be a whole number of at least 0"):
        data.for_run(conditional(classes=0), fractions)


@pytest.mark.parametrize("option", ["--condition", "--prior"])
def test_it_has_no_form_in_pytorch(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "weights.npz", {})
    words = [str(tmp_path / "weights.npz"), str(tmp_path / "run"), "--preset", "vae", option, "label"]
    assert cli.run(lambda: torch_command.main(["import", *words])) == 2
    assert f"a model with {option} label has no form in PyTorch" in capsys.readouterr().err


def test_a_module_of_ones_own_may_have_a_field_called_classes() -> None:
    class Own(nn.Module):
        classes: int = 3

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return x

    assert call_arguments(Own(), {"image": images(4), "label": LABELS}, keys_of(0, 4), train=False)[1] == {}


def idx(magic: int, array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def test_the_labels_of_idx_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {"train": rng.integers(0, 10, 12, np.uint8), "t10k": rng.integers(0, 10, 3, np.uint8)}
    for name, values in labels.items():
        pixels = rng.integers(0, 256, (len(values), 5, 4), np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(0x803, pixels))
    with pytest.raises(InputError, match="has no file train-labels-idx1-ubyte, with or without .gz"):
        data.load("mnist", tmp_path, labels=True)
    for name, values in labels.items():
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(0x801, values))
    assert data.load("mnist", tmp_path).split("train").keys() == {"image"}
    found = data.load("mnist", tmp_path, labels=True)
    np.testing.assert_array_equal(found.split("train")["label"], labels["train"])
    np.testing.assert_array_equal(found.split("test")["label"], labels["t10k"])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(0x801, labels["train"]))
    with pytest.raises(InputError, match="12 labels for 3 images"):
        data.load("mnist", tmp_path, labels=True)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(0x803, labels["t10k"]))
    with pytest.raises(InputError, match="not IDX labels: magic number 0x00000803, not 0x00000801"):
        data.load("mnist", tmp_path, labels=True)


def test_the_digits_have_labels() -> None:
    from sklearn.datasets import load_digits

    found = data.load("digits", labels=True)
    labels = np.concatenate([found.split(name)["label"] for name in ("train", "test")])
    np.testing.assert_array_equal(labels, load_digits().target)
    assert data.load("digits").split("train").keys() == {"image"}
