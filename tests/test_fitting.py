"""`jaxvae.fit` with the user's own model, loss, optimiser and data."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_parts
import pytest
from flax import linen as nn
from numpy.typing import NDArray
from runs import assert_same_run

import jaxvae
from jaxvae import fitting, own
from jaxvae.config import Config
from jaxvae.errors import InputError
from jaxvae.evaluate import evaluate_run
from jaxvae.fitting import fit, image_data

pytestmark = pytest.mark.unoptimized

OWN: dict[str, Any] = {"model": own_parts.Net(), "objective": own_parts.loss, "optimizer": optax.lion(1e-3)}
SMALL: dict[str, Any] = {"batch_size": 16, "epochs": 3, "checkpoint_every": 1, "devices": 1}


@pytest.mark.slow
def test_the_users_own_model_gets_all_that_a_run_has(images: NDArray[np.uint8], tmp_path: Path) -> None:
    run = fit(data=images, run_dir=tmp_path / "run", **OWN, **SMALL)
    assert run.run_dir == tmp_path / "run"
    assert {"config.json", "metrics.jsonl", "checkpoints", "images", "tensorboard"} <= set(os.listdir(run.run_dir))
    assert set(run.metrics["train"]) == {"step", "epoch", "loss", "recon", "sparsity"}
    loss, recon, sparsity = (run.metrics["train"][name] for name in ("loss", "recon", "sparsity"))
    np.testing.assert_allclose(loss, recon + 0.1 * sparsity, rtol=1e-5)
    assert int(run.state.step) == 15  # Of 96 images 9 are for testing, and 7 for validation.
    assert set(run.state.collections) == {"batch_stats"}
    assert run.run.reconstruct(images[:5]).shape == (5, 6, 5, 1)
    assert "sparsity" in repr(run) and str(run.run_dir) in repr(run)


@pytest.mark.long
def test_a_step_is_that_of_plain_flax_and_optax(images: NDArray[np.uint8], tmp_path: Path) -> None:
    """Without noise: batch statistics and parameters after an epoch, against a loop written out."""
    model, optimizer = Plain(), optax.sgd(0.01, momentum=0.9)
    run = fit(
        data=(images[:80], images[80:]), model=model, objective=squares, optimizer=optimizer, run_dir=tmp_path / "run",
        **{**SMALL, "epochs": 1, "validation": 0.0},
    )  # fmt: skip
    from jaxvae.keys import purpose_key
    from jaxvae.train.step import epoch_order

    order = np.asarray(epoch_order(purpose_key(0, "shuffle"), 0, 80))
    variables = model.init(purpose_key(0, "init"), np.zeros((1, 6, 5, 1), np.float32), train=False)
    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    for step in range(5):
        x = images[order[16 * step : 16 * step + 16]] / np.float32(255)

        def mean_loss(params: Any, x: Any = x, stats: Any = stats) -> Any:
            output, changed = model.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            return squares(output, {"image": x})["loss"].mean(), changed["batch_stats"]

        grads, stats = jax.grad(mean_loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (run.state.params["params"], run.state.collections["batch_stats"]),
        (params, stats),
    )


class Plain(own_parts.nn.Module):
    @own_parts.nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        nn = own_parts.nn
        h = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x.reshape(len(x), -1))))
        return nn.sigmoid(nn.Dense(x[0].size)(h)).reshape(x.shape)


def squares(output: Any, batch: Any) -> Any:
    return {"loss": jax.numpy.square(output - batch["image"]).sum((1, 2, 3))}


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4])
def test_any_number_of_devices_computes_what_one_does(devices: int, images: NDArray[np.uint8], tmp_path: Path) -> None:
    """With batch statistics and dropout, which are of the whole batch. (Lion takes signs, and multiplies rounding.)"""
    options = {**OWN, **SMALL, "optimizer": optax.sgd(0.01), "epochs": 1}
    found = [fit(data=images, run_dir=tmp_path / str(n), **{**options, "devices": n}) for n in (1, devices)]
    one, many = (run.metrics["train"]["loss"] for run in found)
    np.testing.assert_allclose(one, many, rtol=1e-5)
    stats = [run.state.collections for run in found]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *stats)


@pytest.mark.slow
def test_other_arrays_of_an_example_reach_the_model_and_the_loss(images: NDArray[np.uint8], tmp_path: Path) -> None:
    label = np.arange(96, dtype=np.int32) % 4
    run = fit(
        data={"image": images, "label": label}, model=own_parts.Labelled(), objective=own_parts.label_loss,
        run_dir=tmp_path / "run", **{**SMALL, "epochs": 1, "validation": 0.0},
    )  # fmt: skip
    assert run.metrics["test"]["labels"] == pytest.approx(np.mean(label[9::10]))
    assert run.run.sample(7).shape == (7, 6, 5, 1)
    assert len(np.unique(run.run.sample(40), axis=0)) == 4
    assert run.run.reconstruct(images[:3], label=label[:3]).shape == (3, 6, 5, 1)
    record = json.loads(next((run.run_dir / "checkpoints").glob("*/record.json")).read_text())["record"]
    assert record["example"] == {"label": {"shape": [], "dtype": "int32"}}
    assert "train_label_sha256" in record


@pytest.mark.long
@pytest.mark.parametrize("stream", ["never", "always"])
def test_each_split_has_its_own_arrays(stream: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
    """Held-out examples reach the loss as they were given, whatever the training examples have."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=(80, 2, 3)), rng.uniform(size=(16, 3, 2))

    def corner(output: Any, batch: Any) -> Any:
        named = jnp.full(len(batch["image"]), 1.0 if "name" in batch else 0.0)
        return {**own_parts.loss(output, batch), "corner": batch["map"][:, 1, 0].astype(jnp.float32), "named": named}

    data = jaxvae.ImageData(
        "given", "a test", images[:80], images[80:],
        others={"train": {"map": first}, "test": {"map": second, "name": np.arange(16)}},
    )  # fmt: skip
    run = fit(
        data=data, model=own_parts.Net(), objective=corner, stream=stream, run_dir=tmp_path / "run",
        **{**SMALL, "epochs": 1, "validation": 0.0},
    )  # fmt: skip
    assert run.metrics["train"]["corner"] == pytest.approx(first[:, 1, 0].mean())
    assert run.metrics["test"]["corner"] == pytest.approx(second[:, 1, 0].mean())
    assert (run.metrics["train"]["named"], run.metrics["test"]["named"]) == (0, 1)


@pytest.mark.long
def test_an_interrupt_saves_and_is_raised(images: NDArray[np.uint8], tmp_path: Path) -> None:
    """A loop around `fit` ends with it."""
    from jaxvae.train.trainer import Trainer

    whole = Trainer.run_steps

    def interrupted(self: Trainer, state: Any, step: int, count: int) -> Any:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, state, step, count)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "run_steps", interrupted)
        with pytest.raises(KeyboardInterrupt, match="resume"):
            fit(data=images, run_dir=tmp_path / "run", **OWN, **SMALL)
    again = fit(data=images, run_dir=tmp_path / "run", resume=True, **OWN, **SMALL)
    whole_run = fit(data=images, run_dir=tmp_path / "whole", **OWN, **SMALL)
    jax.tree.map(np.testing.assert_array_equal, again.state, whole_run.state)


def test_data_of_any_kind_is_the_same(images: NDArray[np.uint8]) -> None:
    expected = image_data(images)
    assert len(expected.test) == 9 and len(expected.train) == 87
    floats = images / np.float32(255)
    kinds = (images[..., 0], floats, {"image": images}, [images[:50], images[50:]], iter([{"image": floats}]))
    for given in kinds:
        found = image_data(given)
        np.testing.assert_array_equal(found.train, expected.train)
        np.testing.assert_array_equal(found.test, expected.test)
    pair = image_data((images[:80], images[80:]))
    assert (len(pair.train), len(pair.test)) == (80, 16)
    assert image_data(pair) is pair


COLOUR, LABELS = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), np.uint8), np.arange(30) % 4
PAIRS = list(zip(COLOUR, LABELS, strict=True))


def reused(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The images, one after the other in the same array."""
    buffer = np.empty_like(images[0])
    for image in images:
        buffer[:] = image
        yield buffer


class Indexed:
    """A dataset as PyTorch's are: it has items, no iterator, and not always a length."""

    def __init__(self, items: list[Any]):
        self._items = items

    def __getitem__(self, place: int) -> Any:
        return self._items[place]

    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("given", "labelled"),
    [
        (list(COLOUR), False),
        ((*COLOUR[..., :1],), False),
        (({"image": image} for image in COLOUR), False),
        ([{"image": image, "label": label} for image, label in PAIRS], True),
        (PAIRS, True),
        (iter([(COLOUR[:20], LABELS[:20]), (COLOUR[20:], LABELS[20:])]), True),
        ([(COLOUR[:20, ..., 0], LABELS[:20]), (COLOUR[20:, ..., 0], LABELS[20:])], True),
        ([[COLOUR[:20], LABELS[:20]], [COLOUR[20:], LABELS[20:]]], True),
        ([[COLOUR[:20]], (COLOUR[20:],)], False),
        (reused(COLOUR), False),
        (Indexed(PAIRS), True),
    ],
    ids=[
        *("pictures", "grey", "mappings", "labelled", "pairs", "batches", "batches without an axis of channels"),
        *("lists as PyTorch's", "of one", "one buffer", "by index alone"),
    ],
)
def test_elements_are_pictures_or_batches(given: Any, labelled: bool) -> None:
    found = image_data(given)
    for split, places in (("train", np.arange(30) % 10 != 9), ("test", np.arange(30) % 10 == 9)):
        examples = found.split(split)
        image = examples.pop("image")
        np.testing.assert_array_equal(image, COLOUR[places][..., : image.shape[-1]])
        assert [*examples] == ["label"] * labelled
        assert not labelled or examples["label"].tolist() == LABELS[places].tolist()


def test_an_iterable_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxvae.memory.host_free_bytes", lambda: 200_000)
    asked = []

    def endless() -> Any:
        while len(asked) < 1000:
            asked.append(1)
            yield COLOUR

    class Endless(list[Any]):
        def __len__(self) -> int:
            return sys.maxsize

    image_data(iter([COLOUR] * 30))
    for given in (endless(), Endless(COLOUR)):
        with pytest.raises(
            InputError, match=r"^data: the iterable gives more than 97\.7 KiB, half of the free memory, or"
        ):
            image_data(given)
    assert len(asked) == 100_000 // (COLOUR.nbytes + 400) + 1


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("end", [True, False])
def test_datasets_of_grain(batched: bool, end: bool) -> None:
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.source([{"image": image, "label": label} for image, label in PAIRS])
    dataset = dataset if end else dataset.repeat()
    dataset = dataset.batch(8) if batched else dataset
    if not end:
        with pytest.raises(InputError, match="or has no end"):
            image_data(dataset)
        return
    for each in (dataset, dataset.to_iter_dataset()):
        found = image_data(each)
        np.testing.assert_array_equal(found.test, COLOUR[9::10])
        assert found.split("test")["label"].tolist() == LABELS[9::10].tolist()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((20, 5), np.uint8), "shape"),
        (np.full((20, 5, 5), 300), "300"),
        (np.full((20, 5, 5), np.nan), "finite"),
        ({"label": np.zeros(20)}, "image"),
        ({"image": np.zeros((20, 5, 5), np.uint8), "label": np.zeros(19)}, "label"),
        ({"image": np.zeros((20, 5, 5), np.uint8), "name": np.full(20, "x")}, "name"),
        (({"image": np.zeros((20, 5, 5), np.uint8), "label": np.zeros(20)}, np.zeros((2, 5, 5), np.uint8)), "label"),
        (7, "int"),
        ([], "no batches"),
        ([1, 2, 3], "batch"),
        ([np.zeros((5, 5))], r"a picture \[H, W, C\].*, not ndarray"),
        ([(np.zeros((4, 5, 5)), np.zeros(4), np.zeros(4))], "tuple"),
        ([[np.zeros(4), np.zeros((4, 5, 5))]], "a pair of images and labels.*, not list"),
        ([{"image": np.zeros((4, 5, 5)), "label": 3}], "not dict"),
        ([{"image": np.zeros((4, 5, 5))}, {"image": np.zeros((4, 5, 5)), "label": np.zeros(4)}], "the first does"),
        ([np.zeros((5, 4, 3)), np.zeros((4, 5, 3))], r"each image must have the same shape, not \[5, 4, 3\] and \[4"),
        (np.zeros((4, 5, 5), np.uint8), "10"),
    ],
)
def test_data_that_cannot_be_used_is_refused(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        fit(data=data, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_errors_name_arguments(images: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^batch_size") as told:
        fit(data=images, batch_size=1000, run_dir=tmp_path / "run")
    assert "--" not in str(told.value)
    with pytest.raises(InputError, match="latent_size 3 has no effect with model, which has its own"):
        fit(data=images, model=own_parts.Net(), objective=own_parts.loss, latent_size=3)
    with pytest.raises(InputError, match=r"^epochs must be at least 1, not '5' \(str\)$"):
        fit(data=images, epochs="5")
    with pytest.raises(InputError, match="hiden: there is no such option; did you mean hidden"):
        fit(data=images, hiden=(3,))


def test_networks_have_the_same_default_widths_as_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Given(Exception):
        pass

    def train(config: Config, *_: Any) -> None:
        raise Given(config)

    monkeypatch.setattr(fitting.loop, "train", train)
    for options in ({"architecture": "conv"}, {"architecture": "resnet", "hidden": (8,)}, {"architecture": "mlp"}):
        with pytest.raises(Given) as given:
            fit("vae", **options)
        assert given.value.args == (Config("vae", **options),)


@pytest.mark.slow
def test_a_failed_start_leaves_nothing(images: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not_a_loss must return a mapping of terms, among them loss, not recon"):
        fit(data=images, model=own_parts.Net(), objective=own_parts.not_a_loss, run_dir=tmp_path / "run", **SMALL)
    assert os.listdir(tmp_path) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="not_a_loss"):
        fit(data=images, model=own_parts.Net(), objective=own_parts.not_a_loss, run_dir=tmp_path / "run", **SMALL)
    assert os.listdir(tmp_path / "run") == []  # It was there before.
    fit(data=images, run_dir=tmp_path / "run", **OWN, **{**SMALL, "epochs": 1})


def test_a_model_that_needs_what_nothing_gives(images: NDArray[np.uint8], tmp_path: Path) -> None:
    class Training(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, training: bool) -> jax.Array:
            return x

    with pytest.raises(InputError, match=r"Training.__call__ needs training, .* it may take key, train, deterministic"):
        fit(data=images, model=Training(), objective=squares, run_dir=tmp_path / "run", **SMALL)
    assert os.listdir(tmp_path) == []


def test_a_loss_whose_arguments_are_in_another_order(images: NDArray[np.uint8], tmp_path: Path) -> None:
    def swapped(batch: Any, output: Any) -> Any:
        return squares(output, batch)

    def alone(output: Any) -> Any:
        return {"loss": output.sum((1, 2, 3))}

    for loss in (swapped, alone):
        with pytest.raises(InputError, match=r"must take \(output, batch\), not \("):
            fit(data=images, model=Plain(), objective=loss, run_dir=tmp_path / "run", **SMALL)


@pytest.mark.parametrize("name", ["step", "unit"])
def test_terms_may_not_have_the_names_of_record_fields(name: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
    def loss(output: Any, batch: Any) -> Any:
        return {**squares(output, batch), name: squares(output, batch)["loss"]}

    with pytest.raises(InputError, match=f"must not be called {name}"):
        fit(data=images, model=Plain(), objective=loss, run_dir=tmp_path / "run", **SMALL)


def test_a_term_that_is_not_finite_ends_a_run(images: NDArray[np.uint8], tmp_path: Path) -> None:
    def loss(output: Any, batch: Any) -> Any:
        return {**squares(output, batch), "bound": jax.numpy.log(-1 - jax.numpy.abs(output).sum((1, 2, 3)))}

    with pytest.raises(jaxvae.Diverged, match="the bound is nan at step 1"):
        fit(data=images, model=Plain(), objective=loss, run_dir=tmp_path / "run", **SMALL)


@pytest.mark.long
def test_components_are_given_by_name_or_as_objects(images: NDArray[np.uint8], tmp_path: Path) -> None:
    small: dict[str, Any] = {**SMALL, "epochs": 1, "hidden": (8,), "latent_size": 2, "data": images}
    named = fit(likelihood="own_parts:Cauchy", cauchy_scale=0.3, objective="iwae", run_dir=tmp_path / "a", **small)
    given = fit(likelihood=own_parts.Cauchy(0.3), objective="iwae", run_dir=tmp_path / "b", **small)
    np.testing.assert_array_equal(named.metrics["test"]["loss"], given.metrics["test"]["loss"])


@pytest.mark.long
def test_a_prior_that_depends_on_the_label(images: NDArray[np.uint8], tmp_path: Path) -> None:
    """Pictures and samples of a label are drawn, and a label that is misspelt or missing is refused."""
    data = {"image": images, "label": np.arange(96) % 4}
    small: dict[str, Any] = {**SMALL, "epochs": 1, "hidden": (8,), "latent_size": 2}
    run = fit(data=data, prior=own_parts.OfLabel(), run_dir=tmp_path / "run", **small).run
    assert (tmp_path / "run" / "images" / "samples_epoch_0001.png").exists()
    means = np.asarray(run.variables["params"]["p_z"]["means"])
    label = np.array([3, 1, 1])
    np.testing.assert_allclose(run.sample(3, label=label), run.decode(means[label]), atol=0.02)
    with pytest.raises(ValueError, match="lable.*did you mean label"):
        run.sample(3, lable=label)
    with pytest.raises(ValueError, match="label must have 3 entries"):
        run.reconstruct(images[:3], label=label[:2])
    with pytest.raises(InputError, match="holds no label"):
        run.sample(3)


@pytest.mark.slow
def test_a_run_of_given_data_is_evaluated_with_it(images: NDArray[np.uint8], tmp_path: Path) -> None:
    run = fit(data=images, run_dir=tmp_path / "run", **OWN, **{**SMALL, "epochs": 1})
    with pytest.raises(InputError, match="given in Python"):
        evaluate_run(tmp_path / "run")
    found = evaluate_run(tmp_path / "run", images=images)
    assert found["sparsity"] == pytest.approx(run.metrics["test"]["sparsity"][-1], rel=1e-5)


@pytest.mark.slow
def test_other_arguments_than_the_runs_are_refused_on_resume(images: NDArray[np.uint8], tmp_path: Path) -> None:
    fit(data=images, run_dir=tmp_path / "run", **OWN, **{**SMALL, "epochs": 1})
    for other, named in (({"objective": squares}, "objective"), ({"batch_size": 8}, "batch_size")):
        with pytest.raises(InputError, match=named):
            fit(data=images, run_dir=tmp_path / "run", resume=True, **{**OWN, **SMALL, **other})
    with pytest.raises(InputError, match="images"):
        fit(data=images[::-1], run_dir=tmp_path / "run", resume=True, **OWN, **SMALL)


@pytest.mark.long
def test_a_preset_is_fitted_by_its_name(images: NDArray[np.uint8], tmp_path: Path) -> None:
    """A single number stands for a list of one, as on the command line."""
    run = fit("notes-ae", data=images, hidden=8, latent_size=3, image_size=6, run_dir=tmp_path / "run", **SMALL).run
    assert run.config.preset == "notes-ae" and run.config.hidden == (8,) and run.image_shape == (6, 6, 1)  # type: ignore[attr-defined]
    assert run.encode(np.zeros((4, 6, 6, 1), np.uint8)).shape == (4, 3)
    assert repr(run).startswith("TrainedRun(notes-ae, changed: ") and repr(run).endswith("images 6 x 6 x 1)")
    assert jaxvae.data.Reading(6) == jaxvae.data.Reading((6,))


@pytest.mark.slow
def test_a_run_of_objects_is_loaded_with_them(images: NDArray[np.uint8], tmp_path: Path) -> None:
    """A process that cannot import them gets an error; one that gives them can use the model."""
    fit(data=images, run_dir=tmp_path / "run", model=Plain(), objective=local_loss(), **{**SMALL, "epochs": 1})
    own._given.clear()
    with pytest.raises(InputError, match="--objective .*given in Python"):
        jaxvae.load(tmp_path / "run")
    run = jaxvae.load(tmp_path / "run", model=Plain(), objective=local_loss())
    assert run.reconstruct(images[:2]).dtype == np.uint8
    own._given.clear()
    given = {"model": Plain(), "objective": local_loss()}
    assert evaluate_run(tmp_path / "run", images=image_data(images), **given)["images"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("kind", [tuple, list])
def test_latents_come_first_in_what_a_model_of_ones_own_encodes(
    images: NDArray[np.uint8], tmp_path: Path, kind: Any
) -> None:
    class Halves(nn.Module):
        def setup(self) -> None:
            self.moments = nn.Dense(6)

        def encode(self, x: Any) -> Any:
            return kind(jnp.split(self.moments(x.reshape(len(x), -1)), 2, axis=-1))

        def __call__(self, x: Any) -> Any:
            return x * self.encode(x)[0].mean()

    run = fit(data=images, model=Halves(), objective=squares, run_dir=tmp_path / "run", **{**SMALL, "epochs": 1}).run
    weights = run.variables["params"]["moments"]
    expected = (images[:7].reshape(7, -1) / 255) @ weights["kernel"][:, :3] + weights["bias"][:3]
    np.testing.assert_allclose(run.encode(images[:7]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match=r"the model Halves has no method sample\(count\)"):
        run.sample(2)


def local_loss() -> Any:
    return lambda output, batch: squares(output, batch)


@pytest.mark.long
def test_what_is_fitted_is_what_the_command_line_trains(image_file: Path, tmp_path: Path) -> None:
    from runs import train

    args = ["--preset", "vae", "--dataset", str(image_file), "--hidden", "8", "--latent-size", "2"]
    args += ["--batch-size", "16"]
    assert train(*args, "--epochs", "2", "--run-dir", str(tmp_path / "command")) == 0
    options: dict[str, Any] = {"hidden": (8,), "latent_size": 2, "batch_size": 16, "epochs": 2, "devices": 1}
    fit("vae", data=str(image_file), run_dir=tmp_path / "fit", **options)
    assert_same_run(tmp_path / "command", tmp_path / "fit")


def test_names_of_the_module_are_exported() -> None:
    assert jaxvae.fit is fitting.fit and jaxvae.Fit is fitting.Fit
    assert all(hasattr(jaxvae, name) for name in jaxvae.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = jaxvae.nothing  # type: ignore[attr-defined]
