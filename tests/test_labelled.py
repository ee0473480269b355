"""The linear probe and k-NN on latents, against SciPy and a direct search."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import SMALL, train
from scipy import optimize, stats
from small import SMALL as CONFIG
from small import subject_of

from jaxvae import cli, evaluate
from jaxvae.data.images import ImageData
from jaxvae.errors import InputError
from jaxvae.metrics import LinearProbe, NearestNeighbours, Subject, labelled
from jaxvae.models.build import build_model, init_variables
from jaxvae.protocols import Metric

pytestmark = pytest.mark.unoptimized
KEY = jax.random.key(0)
CLASSES = 3


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A model as it is at first, and images whose labels their brightness mostly tells."""
    model = build_model(CONFIG, (4, 3, 1))
    variables = init_variables(model, KEY, {"image": np.zeros((1, 4, 3, 1), np.float32)})
    return dataclasses.replace(subject_of(CONFIG, model, variables), train=examples(0, 90))


def examples(seed: int, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count).astype(np.int32)
    pixels = 70 * label[:, None, None, None] + rng.integers(0, 110, (count, 4, 3, 1))
    return {"image": np.clip(pixels, 0, 255).astype(np.uint8), "label": label}


def logistic_regression(x: np.ndarray, y: np.ndarray) -> Any:
    """Minimise the multinomial cross entropy plus half the squared weights, in float64, by SciPy."""
    design = np.hstack([x, np.ones((len(x), 1))])
    hot = np.eye(CLASSES)[y]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(design.shape[1], CLASSES)
        logits = design @ weights
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        shrunk = weights * np.r_[np.ones(x.shape[1]), 0][:, None]
        gradient = design.T @ (np.exp(log_p) - hot) + shrunk
        return -(hot * log_p).sum() + 0.5 * np.square(shrunk).sum(), gradient.ravel()

    found = optimize.minimize(cost, np.zeros(design.shape[1] * CLASSES), jac=True, tol=1e-12)
    return found.x.reshape(design.shape[1], CLASSES)


@pytest.mark.slow
def test_the_probe_is_a_logistic_regression(subject: Subject) -> None:
    test = examples(1, 60)
    found = LinearProbe().measure(subject, test, KEY)["probe_accuracy"]
    x, x_test = (np.float64(subject.run.encode(split["image"])) for split in (subject.train, test))
    mean, std = x.mean(0), x.std(0)
    weights = logistic_regression((x - mean) / std, subject.train["label"])
    predicted = np.argmax(((x_test - mean) / std) @ weights[:-1] + weights[-1], axis=1)
    right = predicted == test["label"]
    assert found.each is not None
    assert (found.each != right).sum() <= 1  # An image at the border may fall to either side.
    assert 0.5 < found.value < 1 and found.value == found.each.mean()
    assert found.standard_error == pytest.approx(stats.sem(found.each))


@pytest.mark.parametrize("k", [1, 10, 500])
def test_k_nn_is_a_direct_search(k: int, subject: Subject) -> None:
    test = examples(2, 40)
    found = NearestNeighbours(k).measure(subject, test, KEY)["knn_accuracy"]
    x, x_test = (np.float64(subject.run.encode(split["image"])) for split in (subject.train, test))
    nearest = np.argsort(np.square(x_test[:, None] - x[None]).sum(-1), axis=1)[:, :k]
    votes = [np.bincount(subject.train["label"][places], minlength=CLASSES).argmax() for places in nearest]
    np.testing.assert_array_equal(found.each, votes == test["label"])
    assert f"k = {min(k, 90)}, latents of 90 training images" in found.note


def test_a_fixed_choice_of_many_training_images(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "MOST_TRAINING", 20)
    once, again = (labelled.labelled_latents("knn", subject, examples(1, 5)) for _ in range(2))
    assert once.train.shape == (20, 3) and once.test.shape == (5, 3)
    np.testing.assert_array_equal(once.train, again.train)
    everything = subject.run.encode(subject.train["image"])
    places = [np.flatnonzero(np.isclose(everything, latent, atol=1e-6).all(1))[0] for latent in once.train]
    assert len(set(places)) == 20
    np.testing.assert_array_equal(subject.train["label"][places], once.train_labels)


def test_one_class_is_refused(subject: Subject) -> None:
    one = dataclasses.replace(subject, train={**subject.train, "label": np.zeros(90, np.int32)})
    with pytest.raises(InputError, match="--metric probe: the training images are all of one class"):
        LinearProbe().measure(one, examples(1, 5), KEY)


@pytest.mark.parametrize("metric", [LinearProbe(), NearestNeighbours()])
def test_one_class_is_refused_before_anything_is_measured(metric: Metric) -> None:
    image, label = np.zeros((8, 4, 3, 1), np.uint8), np.arange(8) % 2
    for given, said in ((label, None), (np.ones(8, int), "are all of one class"), (None, "have no labels")):
        others = {} if given is None else {"train": {"label": given}, "test": {"label": label}}
        images = ImageData("x", "a test", image, image, others=others)
        if said is None:
            metric.check_images(images)
            continue
        with pytest.raises(InputError, match=said):
            metric.check_images(images)


@pytest.mark.long
def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads labels that the model does not, and refuses images without them before anything is compiled."""
    first, second = examples(3, 80), examples(4, 24)
    for name, more in (("labelled", {"y_train": first["label"], "y_test": second["label"]}), ("bare", {})):
        np.savez(tmp_path / f"{name}.npz", x_train=first["image"], x_test=second["image"], **more)
        flags = ["--dataset", str(tmp_path / f"{name}.npz"), *SMALL, "--epochs", "1"]
        assert train("--preset", "vae", *flags, "--run-dir", str(tmp_path / name)) == 0
    capsys.readouterr()
    assert cli.run(lambda: evaluate.main([str(tmp_path / "labelled"), "--metric", "probe", "knn"])) == 0
    shown = capsys.readouterr().out
    assert "probe_accuracy" in shown and "k = 10" in shown
    assert cli.run(lambda: evaluate.main([str(tmp_path / "bare"), "--metric", "knn"])) == 2
    assert "bare.npz: the images have no labels" in capsys.readouterr().err
    assert cli.run(lambda: evaluate.main([str(tmp_path / "bare"), "--metric", "prbe"])) == 2
    assert "--metric prbe: choose from probe, knn" in capsys.readouterr().err
