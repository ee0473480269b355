"""FID, KID, precision and recall against SciPy and direct sums, and the classifier that gives features."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from runs import SMALL, keep_classifiers, train
from scipy import linalg
from scipy.spatial.distance import cdist
from small import SMALL as CONFIG
from small import subject_of

from jaxvae import cli, evaluate
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.metrics import SampleQuality, Subject, classifier, samples
from jaxvae.metrics.distances import frechet_distance, kernel_distances, precision_and_recall
from jaxvae.models.build import build_model, init_variables

pytestmark = pytest.mark.unoptimized
KEY = jax.random.key(0, impl="threefry2x32")


def features(seed: int, count: int, width: int = 7) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return np.maximum(mixed + rng.normal(size=width), 0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, 40])
def test_the_frechet_distance_has_the_root_of_scipy(width: int, kind: type) -> None:
    x, y = features(0, 100, width).astype(kind), features(1, 80, width).astype(kind)
    first, second = (np.atleast_2d(np.cov(np.float64(f), rowvar=False)) for f in (x, y))
    means = np.float64(x).mean(0) - np.float64(y).mean(0)
    root = linalg.sqrtm(first @ second)
    expected = means @ means + np.trace(first + second - 2 * np.real(root))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings("default")  # Those of other packages.
def test_fid_kid_precision_and_recall_are_those_of_torch_fidelity() -> None:
    torch = pytest.importorskip("torch")
    fid, kid, prc = (pytest.importorskip(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "prc"))
    real, drawn = features(9, 300, 20), features(10, 250, 20)
    x, y = torch.from_numpy(real), torch.from_numpy(drawn)
    moments = [fid.fid_features_to_statistics(each) for each in (x, y)]
    [found] = fid.fid_statistics_to_metric(*moments, verbose=False).values()
    assert frechet_distance(real, drawn) == pytest.approx(found, rel=1e-6)
    # A subset is all features, in another order.
    told = {"kid_subsets": 1, "kid_subset_size": 250, "rng_seed": 0, "verbose": False}
    found = kid.kid_features_to_metric(x[:250], y, **told)[kid.KEY_METRIC_KID_MEAN]
    np.testing.assert_allclose(kernel_distances(real[:250], drawn, 1, 250), found, rtol=1e-6)
    found = prc.prc_features_to_metric(y, x, prc_neighborhood=3, verbose=False)
    expected = found[prc.KEY_METRIC_PRECISION], found[prc.KEY_METRIC_RECALL]
    assert precision_and_recall(real, drawn, 3) == pytest.approx(expected)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1


def test_the_frechet_distance_of_features_that_depend_on_each_other() -> None:
    """Singular covariances: the closed form for a common diagonal."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) * np.ones(3)
    y = 2 * x + [1, 2, 0]
    # One Gaussian along (1, 1, 1): the distance of the deviations s and 2 s is s^2, and the means differ.
    assert frechet_distance(x, y) == pytest.approx(
        3 * x[:, 0].var(ddof=1) + np.square(x.mean(0) - y.mean(0)).sum(), rel=1e-6
    )


def test_kid_is_a_direct_sum() -> None:
    x, y = features(2, 30), features(3, 30)

    def kernel(a: Any, b: Any) -> float:
        return (a @ b / 7 + 1) ** 3

    def mmd(x: Any, y: Any) -> float:
        count = len(x)
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs) / (count * (count - 1))
        return within - 2 * sum(kernel(a, b) for a in x for b in y) / count**2

    np.testing.assert_allclose(kernel_distances(x, y, 2, 30), mmd(x, y), rtol=1e-9)  # A subset is all of them.
    rng = np.random.default_rng(5)
    chosen = [(x[rng.choice(30, 9, replace=False)], y[rng.choice(30, 9, replace=False)]) for _ in range(4)]
    expected = [mmd(*subset) for subset in chosen]
    np.testing.assert_allclose(kernel_distances(x, y, 4, 9, seed=5), expected, rtol=1e-9)


def test_kid_is_unbiased() -> None:
    """Between subsets of one distribution it is 0 on average."""
    rng = np.random.default_rng(7)
    found = kernel_distances(rng.uniform(size=(4000, 3)), rng.uniform(size=(4000, 3)), 400, 20)
    assert abs(found.mean()) < 5 * found.std() / 20
    assert (found < 0).any()


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_a_direct_search(k: int) -> None:
    rng = np.random.default_rng(8)
    real, drawn = rng.normal(size=(60, 2)), rng.normal(size=(50, 2)) + 1

    def covered(points: Any, by: Any) -> float:
        radii = np.sort(cdist(by, by), axis=1)[:, k]
        return float((cdist(points, by) <= radii).any(axis=1).mean())

    expected = covered(drawn, real), covered(real, drawn)
    assert precision_and_recall(real, drawn, k) == pytest.approx(expected)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1
    assert precision_and_recall(real, real, k) == (1, 1)
    assert precision_and_recall(real, real + 1e6, k) == (0, 0)


SHAPE = (12, 9, 1)


def examples(seed: int, count: int) -> dict[str, NDArray[Any]]:
    """Images with a bar, whose place is the label."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count).astype(np.int32)
    image = rng.integers(0, 60, (count, *SHAPE))
    for place, which in enumerate(label):
        image[place, 3 * which : 3 * which + 3] += 150
    return {"image": image.astype(np.uint8), "label": label}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory, and a classifier that takes few steps."""
    return keep_classifiers(tmp_path / "caches", monkeypatch, steps=60)


def subject(**changes: Any) -> Subject:
    config = dataclasses.replace(CONFIG, **changes)
    model = build_model(config, SHAPE)
    example = {"image": np.zeros((1, *SHAPE), np.float32), "label": np.zeros(1, np.int32)}
    found = subject_of(config, model, init_variables(model, KEY, example))
    return dataclasses.replace(
        found,
        run=dataclasses.replace(found.run, image_shape=SHAPE, record={"example": {"label": {"dtype": "int32"}}}),
        train=examples(0, 200),
    )


@pytest.mark.long
def test_the_classifier_is_trained_once(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, test = examples(0, 200), examples(1, 50)
    name, params, classes = classifier.trained(told["image"], told["label"], "bars")
    assert "training classifier:bars-" in capsys.readouterr().err
    found, logits = classifier.features_and_logits(params, test["image"], classes)
    assert found.shape == (50, classifier.FEATURES) and found.min() == 0
    assert (logits.argmax(1) == test["label"]).mean() > 0.9
    every, _ = classifier.features_and_logits(params, told["image"], classes)
    assert np.square(every).mean() == pytest.approx(1, rel=1e-3)
    again, same, _ = classifier.trained(told["image"], told["label"], "bars")
    assert again == name and capsys.readouterr().err == ""
    jax.tree.map(np.testing.assert_array_equal, params, same)
    # Another one for other labels; a damaged file is replaced.
    other, _, _ = classifier.trained(told["image"], np.roll(told["label"], 1), "bars")
    assert other != name
    for path in caches.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    _, anew, _ = classifier.trained(told["image"], told["label"], "bars")
    assert "training" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, params, anew)


@pytest.mark.long
def test_all_four_numbers_of_a_model(caches: Path) -> None:
    test = examples(1, 100)
    found = SampleQuality(count=80).measure(subject(), test, KEY)
    [name] = {name.partition("[")[2] for name in found}
    assert name.startswith("classifier:") and name.endswith("-v1]")
    fid = found[f"fid[{name}"]
    assert fid.value > 0 and "80 samples, 100 test images, 64 features" in fid.note
    assert fid.extra["classifier_accuracy"] > 0.9
    # Training images are as close to the test images as samples could come.
    assert fid.extra[f"fid_of_training_images[{name}"] < 0.1 * fid.value
    kid = found[f"kid[{name}"]
    assert kid.value > 0 and kid.standard_error > 0 and "100 subsets of 80" in kid.note
    # An untrained model draws nothing like the bars.
    assert found[f"precision[{name}"].value < 0.2 and found[f"recall[{name}"].value < 0.2


def test_too_few_images_have_no_fid() -> None:
    def wide(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images.reshape(len(images), -1) / 255

    found = SampleQuality(wide, count=30).measure(subject(), examples(1, 40), KEY)
    [fid] = [measured for name, measured in found.items() if name.startswith("fid[test_samples:")]
    assert fid.value is None and fid.note == "none: 108 features need more than 108 test images and samples"
    assert len(found) == 4


@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True])
def test_samples_have_the_labels_of_the_test_images(binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    actual = samples.Examples

    def noted(batch: dict[str, Any]) -> Any:
        jax.debug.callback(lambda label: seen.extend(label.tolist()), batch["label"])
        return actual(batch)

    monkeypatch.setattr(samples, "Examples", noted)
    labels = np.repeat([0, 1, 2], [50, 30, 20]).astype(np.int32)
    model = subject(condition="label", classes=3)
    drawn = samples.draw(model, 200, labels, binary, KEY)
    jax.effects_barrier()
    assert np.bincount(seen).tolist() == [100, 60, 40]
    assert drawn.shape == (200, *SHAPE) and drawn.dtype == np.uint8
    assert ({*np.unique(drawn)} == {0, 255}) == binary
    np.testing.assert_array_equal(samples.draw(model, 200, labels, binary, KEY), drawn)


def _bad(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.full((len(images), 2), np.nan)


@pytest.mark.parametrize(
    ("features", "said"), [(_bad, "must return finite features \\[40, F\\]"), (lambda images: images, "not uint8")]
)
def test_features_of_the_wrong_kind_are_refused(features: Callable[..., Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SampleQuality(features, count=20).measure(subject(), examples(1, 40), KEY)


def test_an_autoencoder_has_no_samples() -> None:
    with pytest.raises(InputError, match="--metric fid: the model has no prior to draw from"):
        SampleQuality().check(PRESETS["notes-ae"])


@pytest.mark.long
def test_the_flags(caches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = examples(3, 80), examples(4, 40)
    path = tmp_path / "bars.npz"
    np.savez(path, x_train=first["image"], x_test=second["image"])
    flags = ["--dataset", str(path), *SMALL, "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert train("--preset", "vae", *flags) == 0

    def evaluated(*flags: str) -> int:
        capsys.readouterr()
        return cli.run(lambda: evaluate.main([str(tmp_path / "run"), *flags]))

    assert evaluated("--metric", "fid", "--features", "own_parts:brightness") == 0
    shown = capsys.readouterr().out
    assert "fid[own_parts:brightness]" in shown and "recall[own_parts:brightness]" in shown
    assert "10,000 samples, 40 test images, 12 features; of training images it is" in shown
    for flags, said in (
        (["--metric", "fid"], "bars.npz: the images have no labels"),
        (["--features", "own_parts:brightness"], "--features own_parts:brightness has no effect"),
        (["--metric", "fid", "--features", "own_parts:nothing"], "--features own_parts:nothing: own_parts holds"),
    ):
        assert evaluated(*flags) == 2
        assert said in capsys.readouterr().err
