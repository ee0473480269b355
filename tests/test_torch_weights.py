"""`jaxvae.torch_weights`: values travel both ways unchanged, and what does not fit is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import train

from jaxvae import (
    PRESETS,
    TrainState,
    build_model,
    build_objective,
    build_optimizer,
    cli,
    init_state,
    make_train_step,
    torch_weights,
)
from jaxvae.errors import InputError
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.build import reconstruct
from jaxvae.models.networks import Mlp
from jaxvae.models.vae import VAE
from jaxvae.torch_weights import export_run, params_from_torch, torch_from_params
from jaxvae.trained import load_run
from jaxvae.weight_files import StateDict, load_weights, save_weights

pytestmark = pytest.mark.unoptimized

NOTES = ("notes-ae", "notes-vae")
SUFFIXES = (".safetensors", ".npz")


def notes_model(preset: str) -> AutoEncoder | VAE:
    return build_model(PRESETS[preset], (28, 28, 1))


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(0, 1, (8, 28, 28, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def states(images: NDArray[np.float32]) -> dict[str, TrainState]:
    """Each of the notes' models after three steps."""
    trained = {}
    for preset in NOTES:
        config, model = PRESETS[preset], notes_model(preset)
        optimizer = build_optimizer(config, steps_per_epoch=1)
        state = jax.jit(lambda key, m=model, o=optimizer: init_state(m, o, key))(jax.random.key(5))
        step = jax.jit(make_train_step(model, build_objective(config), optimizer))
        for _ in range(3):
            state, _ = step(state, jnp.asarray(images), jax.random.key(6))
        trained[preset] = state
    return trained


@pytest.fixture(params=NOTES)
def preset(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def refuses(*fragments: object) -> Any:
    """An `InputError` of one line that holds the fragments in this order."""
    return pytest.raises(InputError, match="(?m)^[^\n]*" + "[^\n]*".join(map(str, fragments)) + "[^\n]*\\Z")


# --- Names and shapes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_and_layout_are_pytorchs(states: dict[str, TrainState], preset: str) -> None:
    code = {"notes-ae": 20, "notes-vae": 10}[preset]
    widths = {"encoder": (784, 256, 64, 20), "decoder": (code, 64, 256, 784)}
    shapes = {
        name: values.shape for name, values in torch_from_params(states[preset].params, notes_model(preset)).items()
    }
    assert shapes == {
        f"{part}.{2 * i}.{kind}": (w[i + 1], w[i]) if kind == "weight" else (w[i + 1],)
        for part, w in widths.items()
        for i in range(3)
        for kind in ("weight", "bias")
    }


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_round_trip_is_exact(states: dict[str, TrainState], preset: str, suffix: str, tmp_path: Path) -> None:
    params, path = states[preset].params, tmp_path / f"weights{suffix}"
    save_weights(path, torch_from_params(params, notes_model(preset)))
    back = params_from_torch(load_weights(path), notes_model(preset))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def numpy_reconstruct(weights: StateDict, x: NDArray[Any], eps: NDArray[Any]) -> NDArray[Any]:
    """The notes' forward pass from PyTorch's layout: ``x @ weight.T + bias``."""

    def stack(part: str, x: NDArray[Any]) -> NDArray[Any]:
        for i in (0, 2, 4):
            x = (np.maximum(x, 0) if i else x) @ weights[f"{part}.{i}.weight"].T + weights[f"{part}.{i}.bias"]
        return x

    code = np.maximum(stack("encoder", x.reshape(len(x), 784)), 0)
    if weights["decoder.0.weight"].shape[1] == 10:
        code = code[:, :10] + code[:, 10:] * eps
    return 1 / (1 + np.exp(-stack("decoder", code))).reshape(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exported_weights_compute_the_same_in_numpy(
    states: dict[str, TrainState], images: NDArray[np.float32], preset: str, suffix: str, tmp_path: Path
) -> None:
    save_weights(tmp_path / f"w{suffix}", torch_from_params(states[preset].params, notes_model(preset)))
    key = jax.random.key(1)
    eps = np.asarray(jax.random.normal(key, (8, 10)))
    expected = numpy_reconstruct(load_weights(tmp_path / f"w{suffix}"), images, eps)
    found = reconstruct(notes_model(preset), states[preset].params, {"image": jnp.asarray(images)}, key)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_exported_weights_compute_the_same_in_pytorch(
    states: dict[str, TrainState], images: NDArray[np.float32], preset: str, tmp_path: Path, monkeypatch: Any
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments" / "parity")
    import torch_notes
    from safetensors.torch import load_file

    save_weights(tmp_path / "w.safetensors", torch_from_params(states[preset].params, notes_model(preset)))
    module = torch_notes.MODULES[preset]()
    module.load_state_dict(load_file(tmp_path / "w.safetensors"))
    key, x = jax.random.key(1), torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        if preset == "notes-vae":
            expected, _ = module(x, torch.tensor(np.asarray(jax.random.normal(key, (8, 10)))))
        else:
            expected = module(x)
    found = reconstruct(notes_model(preset), states[preset].params, {"image": jnp.asarray(images)}, key)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_what_pytorch_saved_is_read(suffix: str, dtype: str, tmp_path: Path, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "experiments" / "parity")
    import torch_notes

    module = torch_notes.VAE().to(getattr(torch, dtype))
    path = tmp_path / f"weights{suffix}"
    torch.save(module.state_dict(), path)
    params = params_from_torch(load_weights(path), notes_model("notes-vae"))
    back = torch_from_params(params, notes_model("notes-vae"))
    for name, values in module.state_dict().items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], values.float().numpy())


@pytest.mark.long
def test_layers_of_other_widths_travel_too() -> None:
    model = VAE((2, 3, 1), Mlp((5, 4, 3, 2)), latent_size=2)
    params = init_state(model, build_optimizer(PRESETS["vae"]), jax.random.key(0)).params
    weights = torch_from_params(params, model)
    assert weights["decoder.8.weight"].shape == (6, 5)
    jax.tree.map(np.testing.assert_array_equal, params_from_torch(weights, model), params)


# --- What is computed ---------------------------------------------------------------------------------------


def sequentials(weights: StateDict, activation: Any) -> tuple[Any, Any]:
    """The encoder and the decoder of a state_dict, as modules of PyTorch."""
    torch = pytest.importorskip("torch")

    def stack(part: str) -> Any:
        layers = []
        for name in (f"{part}.{2 * i}" for i in range(len(weights)) if f"{part}.{2 * i}.weight" in weights):
            linear = torch.nn.Linear(*weights[f"{name}.weight"].shape[::-1])
            linear.load_state_dict({kind: torch.tensor(weights[f"{name}.{kind}"]) for kind in ("weight", "bias")})
            layers += [linear, activation]
        return torch.nn.Sequential(*layers[:-1])

    return stack("encoder"), stack("decoder")


def spread(weights: StateDict, low: float, high: float) -> StateDict:
    """Random weights of the same names; both halves of the encoder's output go from about `low` to about `high`."""
    rng = np.random.default_rng(3)
    drawn = {name: rng.uniform(-0.1, 0.1, values.shape).astype(np.float32) for name, values in weights.items()}
    last = max(name for name in drawn if name.startswith("encoder") and name.endswith("bias"))
    drawn[last] = np.resize(np.linspace(low, high, drawn[last].size // 2, dtype=np.float32), drawn[last].size)
    return drawn


# What the modules of people who use PyTorch compute from their encoder's last layer, by preset.
IN_PYTORCH = {
    "notes-ae": ("ReLU", lambda h: (h.relu(),)),
    "notes-vae": ("ReLU", lambda h: h.relu().chunk(2, -1)),
    "vae": ("ReLU", lambda h: (h.chunk(2, -1)[0], (0.5 * h.chunk(2, -1)[1]).exp())),
    "iwae": ("Tanh", lambda h: (h.chunk(2, -1)[0], h.chunk(2, -1)[1].exp())),
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", IN_PYTORCH)
def test_an_imported_model_computes_what_pytorch_computes(
    images: NDArray[np.float32], preset: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    optimizer = build_optimizer(PRESETS[preset], steps_per_epoch=1)
    params = init_state(notes_model(preset), optimizer, jax.random.key(0)).params
    low, high = (-7, 3) if preset == "iwae" else (-14, 6)  # Of a log-variance: of a log-deviation half that.
    weights = spread(torch_from_params(params, notes_model(preset)), low, high)
    torch.save({name: torch.tensor(values) for name, values in weights.items()}, tmp_path / "w.pt")
    assert run("import", tmp_path / "w.pt", tmp_path / "run", "--preset", preset) == cli.EXIT_OK
    imported = load_run(tmp_path / "run")

    activation, head = IN_PYTORCH[preset]
    encoder, decoder = sequentials(weights, getattr(torch.nn, activation)())
    with torch.no_grad():
        expected = head(encoder(torch.tensor(images).reshape(8, 784)))
        assert expected[-1].min() < 0.01 and expected[-1].max() > 4
        x_hat = decoder(expected[0]).sigmoid().reshape(images.shape)
    found: Any = imported.model.apply(imported.variables, images, method="encode")
    found = found if isinstance(found, tuple) else (found,)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[-1], expected[-1].numpy(), rtol=1e-5, atol=1e-9)  # Small deviations, too.
    logits = imported.model.apply(imported.variables, found[0], method="decode")
    np.testing.assert_allclose(jax.nn.sigmoid(logits), x_hat.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("notes-ae", {}),
        ("notes-ae", {"head": "linear"}),
        ("notes-vae", {}),
        *(("vae", {"head": head}) for head in ("linear", "logvar", "exp")),
        *(("vae", {"activation": activation}) for activation in ("relu", "tanh", "elu", "gelu", "silu")),
        *(("vae", {"likelihood": kind}) for kind in ("gaussian", "gaussian-global", "gaussian-pixel", "logistic")),
    ],
    ids=str,
)
def test_the_code_for_exported_weights_computes_what_jaxvae_computes(preset: str, changes: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(PRESETS[preset], hidden=(7, 5), latent_size=3, **changes)
    model = build_model(config, (4, 3, 2))
    assert isinstance(model, AutoEncoder | VAE)
    weights = torch_from_params(init_state(model, build_optimizer(config), jax.random.key(0)).params, model)
    weights = spread(weights, -14, 6)
    params = params_from_torch(weights, model)

    rng = np.random.default_rng(4)
    x, z = (rng.uniform(0, 1, shape).astype(np.float32) for shape in ((5, 4, 3, 2), (5, 3)))
    names: dict[str, Any] = {"nn": torch.nn, "channels": 2, "x": torch.tensor(x).flatten(1)}
    activation, posterior, pixels = torch_weights.torch_code(model).splitlines()
    exec(activation, names)
    names["encoder"], names["decoder"] = sequentials(weights, names["activation"])
    with torch.no_grad():
        exec(posterior, names)
        code = [names["mean"], names["std"]] if config.is_vae else [names["z"]]
        names["z"] = torch.tensor(z)
        exec(pixels, names)
    found: Any = model.apply(params, x, method="encode")
    for ours, theirs in zip(found if config.is_vae else (found,), code, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
    if isinstance(model, AutoEncoder):
        np.testing.assert_allclose(
            jax.nn.sigmoid(model.apply(params, z, method="decode")), names["x_hat"].reshape(x.shape).numpy(), atol=1e-6
        )
        return
    distribution: Any = model.apply(params, z, method="pixels")
    gaussian = config.likelihood.startswith("gaussian")
    x_hat = distribution.location if gaussian else jax.nn.sigmoid(distribution.location)
    np.testing.assert_allclose(x_hat, names["x_hat"].reshape(x.shape).numpy(), rtol=1e-5, atol=1e-6)
    if config.likelihood == "gaussian-global":
        assert float(distribution.log_scale) == weights["log_scale"]
    elif distribution.log_scale is not None:
        np.testing.assert_allclose(
            distribution.log_scale, names["log_scale"].reshape(x.shape).numpy(), rtol=1e-5, atol=1e-6
        )


# --- What does not fit --------------------------------------------------------------------------------------


@pytest.fixture
def weights(states: dict[str, TrainState]) -> StateDict:
    return torch_from_params(states["notes-vae"].params, notes_model("notes-vae"))


def test_a_missing_name(weights: StateDict) -> None:
    del weights["encoder.2.bias"], weights["decoder.4.weight"]
    with refuses("lack", "encoder.2.bias", "decoder.4.weight"):
        params_from_torch(weights, notes_model("notes-vae"))


def test_an_unexpected_name(weights: StateDict) -> None:
    weights["decoder.6.bias"] = np.zeros(784, np.float32)
    with refuses("decoder.6.bias"):
        params_from_torch(weights, notes_model("notes-vae"))


def test_weights_of_the_other_model(weights: StateDict) -> None:
    with refuses("decoder.0.weight", r"\[64, 10\]", r"\[64, 20\]"):
        params_from_torch(weights, notes_model("notes-ae"))


def test_a_weight_that_is_transposed(weights: StateDict) -> None:
    weights["encoder.0.weight"] = weights["encoder.0.weight"].T
    with refuses("encoder.0.weight", r"\[784, 256\]", r"\[256, 784\]"):
        params_from_torch(weights, notes_model("notes-vae"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_value_that_is_not_finite_in_float32(weights: StateDict, bad: float) -> None:
    weights["decoder.2.bias"] = weights["decoder.2.bias"].astype(np.float64)
    weights["decoder.2.bias"][7] = bad
    with refuses("decoder.2.bias", "NaN or infinite"):
        params_from_torch(weights, notes_model("notes-vae"))


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64, np.str_])
def test_a_value_that_is_not_floating_point(weights: StateDict, dtype: Any) -> None:
    weights["decoder.2.bias"] = np.zeros(256).astype(dtype)
    with refuses("decoder.2.bias", "not floating-point"):
        params_from_torch(weights, notes_model("notes-vae"))


# --- The command line ---------------------------------------------------------------------------------------


def run(*args: object) -> int:
    return cli.run(lambda: torch_weights.main([str(a) for a in args]))


@pytest.mark.long
def test_import_then_export(
    weights: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture[str], mnist_dir: Path
) -> None:
    source, run_dir, out = tmp_path / "in.npz", tmp_path / "new" / "run", tmp_path / "out.safetensors"
    save_weights(source, weights)
    assert run("import", source, run_dir, "--preset", "notes-vae", "--data-dir", mnist_dir) == cli.EXIT_OK
    assert run("export", run_dir, out) == cli.EXIT_OK
    assert capsys.readouterr().err == ""
    found = load_weights(out)
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(found[name], values)

    from jaxvae import evaluate, generate

    loaded = load_run(run_dir)
    assert loaded.step == 0
    assert loaded.config.preset == "notes-vae" and loaded.config.dataset == "mnist"
    figures = evaluate.evaluate_run(run_dir)
    assert figures["images"] == 20 and 0 < figures["recon"] < figures["loss"]
    assert generate.generate(run_dir, 3).shape == (3, 28, 28, 1)


@pytest.mark.slow
def test_import_refuses_in_one_line_and_leaves_nothing(
    weights: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run_dir = tmp_path / "in.npz", tmp_path / "run"
    save_weights(source, weights)
    missing = tmp_path / "none.npz"
    cases = {
        (source, run_dir, "--preset", "notes-ae"): f"error: {source}: decoder.0.weight has shape",
        (source, run_dir, "--preset", "nothing"): "error: --preset nothing",
        (source, run_dir, "--image-shape", "28", "28", "3"): f"error: {source}: encoder.0.weight has shape",
        (source, run_dir, "--image-shape", "28", "0", "1"): "error: --image-shape takes sizes of at least 1",
        (missing, run_dir): f"error: {missing} cannot be read",
        (source, tmp_path): f"error: {tmp_path} cannot be created: File exists",
        (source, source / "run"): f"error: {source / 'run'} cannot be created: Not a directory",
    }
    for args, message in cases.items():
        assert run("import", *args) == cli.EXIT_BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith(message) and error.count("\n") == 1
    assert not run_dir.exists()


def test_names_of_other_layers_are_refused_and_the_help_says_which_are_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("fc1", "fc21", "fc22", "fc3", "fc4")  # As in the VAE of PyTorch's examples.
    save_weights(tmp_path / "w.npz", {f"{name}.{kind}": np.zeros(2) for name in names for kind in ("weight", "bias")})
    assert run("import", tmp_path / "w.npz", tmp_path / "run", "--preset", "vae") == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "encoder.0.weight" in error and "nn.Sequential" in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        run("import", "--help")
    said = capsys.readouterr().out
    assert all(word in said for word in ("encoder.0", "nn.Sequential", "fc21", "log-variance"))


@pytest.mark.long
def test_export_says_what_pytorch_must_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--hidden", "4", "--latent-size", "2", "--batch-size", "8", "--epochs", "1", "--dataset", "digits"]
    assert train("--preset", "vae", *flags, "--run-dir", str(tmp_path / "run")) == 0
    capsys.readouterr()
    assert run("export", tmp_path / "run", tmp_path / "w.npz") == cli.EXIT_OK
    loaded = load_run(tmp_path / "run")
    assert loaded.config.head == "linear"
    assert torch_weights.torch_code(loaded.model) in capsys.readouterr().out


CONV = ["--architecture", "conv", "--hidden", "3", "4", "--latent-size", "2", "--likelihood", "logistic"]
RESNET = ["--architecture", "resnet", "--hidden", "3", "4", "--latents", "spatial", "--latent-size", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [CONV, RESNET, [*CONV, "--head", "linear", "--activation", "elu"]], ids=" ".join)
def test_flags_say_which_model_is_imported(flags: list[str], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    made = [*flags, "--dataset", "digits", "--image-shape", "7", "5", "2"]
    asked = torch_weights._parse_import(["w", "r", "--preset", "vae", *made], "prog")
    assert asked.config.head == ("linear" if "linear" in flags else "logvar")
    code = torch_weights.torch_code(build_model(asked.config, (7, 5, 2)))
    names: dict[str, Any] = {"x": torch.rand(3, 2, 7, 5)}
    exec(code[: code.index("x_hat")].rpartition("\n")[0], names)
    torch.save(names["model"].state_dict(), tmp_path / "w.pt")
    assert run("import", tmp_path / "w.pt", tmp_path / "run", "--preset", "vae", *made) == cli.EXIT_OK
    imported = load_run(tmp_path / "run")
    x = names["x"].permute(0, 2, 3, 1).numpy()
    encoded: Any = jax.jit(lambda p: imported.model.apply(p, x, method="encode"))(imported.variables)
    for ours, theirs in zip(encoded, (names["mean"], names["std"]), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert run("export", tmp_path / "run", tmp_path / "out.npz") == cli.EXIT_OK
    exported = load_weights(tmp_path / "out.npz")
    assert exported.keys() == names["model"].state_dict().keys()
    for name, values in names["model"].state_dict().items():
        np.testing.assert_array_equal(exported[name], values.numpy())


def described(flags: list[str], shape: tuple[int, int, int]) -> Any:
    """The model that the flags of an import describe."""
    return build_model(torch_weights._parse_import(["w", "r", "--preset", "vae", *flags], "prog").config, shape)


def numbered(model: Any) -> Any:
    """Parameters of a model, with all values different."""
    shapes = jax.eval_shape(lambda: init_state(model, build_optimizer(PRESETS["vae"]), jax.random.key(0))).params
    return jax.tree.map(lambda a: np.arange(a.size, dtype=np.float32).reshape(a.shape), shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "flags", "said"),
    [
        ((9, 5, 2), [], r"encoder.7.weight has shape \[4, 16\]; the model needs \[4, 24\]"),
        (
            (7, 5, 2),
            ["--hidden", "3", "5"],
            r"encoder.4.weight has shape \[4, 3, 3, 3\]; the model needs \[5, 3, 3, 3\]",
        ),
        ((7, 5, 2), ["--hidden", "3"], "weights hold encoder.7.weight, encoder.7.bias"),
        ((7, 5, 2), ["--hidden", "3", "4", "5"], "weights lack encoder.10.weight"),
        (
            (7, 5, 2),
            ["--likelihood", "bernoulli"],
            r"decoder.6.weight has shape \[3, 4, 4, 4\]; the model needs \[3, 2, 4, 4\]",
        ),
    ],
)
def test_convolutional_weights_that_do_not_fit(shape: tuple[int, int, int], flags: list[str], said: str) -> None:
    model = described(CONV, (7, 5, 2))
    weights = torch_from_params(numbered(model), model)
    with refuses(said):
        params_from_torch(weights, described([*CONV, *flags], shape))


def test_the_users_own_parts_travel_if_they_can() -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(4,), likelihood="own_parts:Cauchy", prior="own_parts:Learned")
    model = build_model(config, (2, 2, 1))
    params = numbered(model)
    weights = torch_from_params(params, model)
    np.testing.assert_array_equal(weights["p_z.mean"], params["params"]["p_z"]["mean"])
    jax.tree.map(np.testing.assert_array_equal, params_from_torch(weights, model), params)
    assert torch_weights.torch_code(model).endswith("\ndecoded = decoder(z)")


def test_export_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", tmp_path, tmp_path / "out.npz") == cli.EXIT_BAD_INPUT
    assert "not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--image-size", "64"), ("--channels", "3")])
def test_an_imported_model_is_for_images_as_they_will_be_read(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("import", tmp_path / "w.npz", tmp_path / "run", "--preset", "vae")
    assert run(*args, *flags) == cli.EXIT_BAD_INPUT
    assert "--image-shape 28,28,1 is not what --image-size and --channels give" in capsys.readouterr().err
    assert (
        run(*args, *flags, "--image-shape", "64", "64", "1" if "--image-size" in flags else "3") == cli.EXIT_BAD_INPUT
    )
    assert "w.npz" in capsys.readouterr().err  # Which is not there.


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["convert"], ["--help"]):
        assert run(*args) == (cli.EXIT_OK if args == ["--help"] else cli.EXIT_BAD_INPUT)
        said = capsys.readouterr()
        assert "{export,import}" in (said.out if args == ["--help"] else said.err)
    with pytest.raises(SystemExit) as stopped:
        run("import", "--help")
    assert not stopped.value.code
    assert "--preset" in capsys.readouterr().out


@pytest.mark.long
def test_what_has_no_form_in_pytorch_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["--hidden", "8", "4", "--latent-size", "2", "--batch-size", "8", "--epochs", "1"]
    two_layer = ["--preset", "vae", "--architecture", "two-layer"]
    assert train(*two_layer, "--dataset", "digits", *small, "--run-dir", str(run)) == 0
    with refuses(run, "TwoLayerVAE has no form in PyTorch"):
        export_run(run, tmp_path / "weights.npz")
