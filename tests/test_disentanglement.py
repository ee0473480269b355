"""MIG, DCI and SAP, against their closed forms on codes whose answer is known, and direct sums."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from dataset_files import dsprites
from runs import SMALL, train
from scipy import stats
from small import SMALL as CONFIG
from small import subject_of

from jaxvae import cli, data, evaluate
from jaxvae.errors import InputError
from jaxvae.metrics import Disentanglement, Subject
from jaxvae.metrics import disentanglement as module
from jaxvae.models.build import build_model, init_variables

pytestmark = pytest.mark.unoptimized
KEY = jax.random.key(0)


def factors_of(count: int, seed: int = 0) -> np.ndarray:
    """[N, 2]: a factor of 4 values and one of 3, independent."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 4, count), rng.integers(0, 3, count)], axis=1)


def entropy(factor: np.ndarray) -> float:
    return float(stats.entropy(np.bincount(factor)))


def test_mig_is_one_if_each_factor_is_a_latent_of_its_own() -> None:
    factors = factors_of(2_000)
    latents = np.stack([factors[:, 1], -2.5 * factors[:, 0], np.zeros(2_000)], axis=1)
    assert module.mutual_information_gap(latents, factors) == pytest.approx(1, abs=0.01)


def test_mig_is_zero_if_every_latent_says_the_same() -> None:
    factors = factors_of(500)
    both = factors[:, 0] + 10.0 * factors[:, 1]
    assert module.mutual_information_gap(np.stack([both, -both], axis=1), factors) == pytest.approx(0, abs=1e-9)


def test_mig_of_latents_that_hardly_differ_in_float32() -> None:
    factors = factors_of(300)
    latents = np.stack([1 + 1.2e-7 * factors[:, 0], np.full(300, 2.0)], axis=1).astype(np.float32)
    assert module.mutual_information_gap(latents, factors) == pytest.approx(0.5, abs=0.05)


def test_mig_is_a_sum_over_the_table_of_bins_and_values() -> None:
    factors = factors_of(300)
    rng = np.random.default_rng(1)
    latents = np.stack([factors[:, 0] + rng.normal(size=300), factors.sum(1) + rng.normal(size=300)], axis=1)

    def information(z: np.ndarray, factor: np.ndarray) -> float:
        bins = np.minimum((z - z.min()) / (z.max() - z.min()) * 20, 19).astype(int)
        table = np.zeros((20, 4))
        np.add.at(table, (bins, factor), 1 / len(z))
        alone = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
        return float((table[table > 0] * np.log(table[table > 0] / alone[table > 0])).sum())

    gaps = []
    for factor in factors.T:
        first, second = (information(z, factor) for z in latents.T)
        gaps.append(abs(first - second) / entropy(factor))
    assert module.mutual_information_gap(latents, factors) == pytest.approx(np.mean(gaps), rel=1e-6)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], 1.0),
        ([[0.5, 0.5], [0.5, 0.5]], 0.0),
        ([[1.0, 0.0], [0.0, 0.0]], 1.0),  # A latent that is of no use does not count.
        ([[3.0, 1.0], [0.0, 8.0]], (4 * (1 - stats.entropy([3, 1], base=2)) + 8) / 12),
        ([[1.0], [0.5]], 1.0),  # A single factor.
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),  # Latents that say nothing.
    ],
)
def test_dci_disentanglement_is_one_minus_the_entropy_of_rows(importance: list[list[float]], expected: float) -> None:
    assert module.disentanglement(np.array(importance)) == pytest.approx(expected)


def test_forests_find_the_latent_of_each_factor() -> None:
    factors, factors_test = factors_of(400), factors_of(200, seed=1)
    latents, latents_test = (np.stack([f[:, 1], f[:, 0]], axis=1).astype(np.float32) for f in (factors, factors_test))
    importance, accuracy = module.forests(latents, factors, latents_test, factors_test)
    np.testing.assert_allclose(importance, [[0, 1], [1, 0]], atol=0.05)
    assert accuracy == 1


def test_sap_is_the_gap_between_the_accuracies_of_the_two_best_latents() -> None:
    rng = np.random.default_rng(0)
    factor, factor_test = rng.integers(0, 2, (2, 2_000, 1))
    useless, useless_test = rng.normal(size=(2, 2_000, 1))
    latents, latents_test = np.hstack([4.0 * factor, useless]), np.hstack([4.0 * factor_test, useless_test])
    assert module.separated(latents, factor, latents_test, factor_test) == pytest.approx(0.5, abs=0.05)
    twice = np.hstack([4.0 * factor, -4.0 * factor]), np.hstack([4.0 * factor_test, -4.0 * factor_test])
    assert module.separated(twice[0], factor, twice[1], factor_test) == 0


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A model as it is at first."""
    model = build_model(CONFIG, (4, 3, 1))
    variables = init_variables(model, KEY, {"image": np.zeros((1, 4, 3, 1), np.float32)})
    return dataclasses.replace(subject_of(CONFIG, model, variables), train=examples(0, 90))


def examples(seed: int, count: int) -> dict[str, Any]:
    """Images of which one half is as bright as the first factor says, the other as the second does."""
    factors = factors_of(count, seed)
    image = np.repeat(factors[:, :, None, None], 2, axis=1) * np.full((1, 1, 3, 1), 60)
    return {"image": image.astype(np.uint8), "factors": np.hstack([factors, np.zeros((count, 1), int)])}


@pytest.mark.slow
def test_all_scores_of_a_model(subject: Subject) -> None:
    test = examples(1, 60)
    found = Disentanglement().measure(subject, test, KEY)
    latents, latents_test = (subject.run.encode(split["image"]) for split in (subject.train, test))
    factors, factors_test = (split["factors"][:, :2] for split in (subject.train, test))  # The third never varies.
    importance, accuracy = module.forests(latents, factors, latents_test, factors_test)
    assert {name: one.value for name, one in found.items()} == {
        "mig": module.mutual_information_gap(latents, factors),
        "dci_disentanglement": module.disentanglement(importance),
        "dci_completeness": module.disentanglement(importance.T),
        "dci_informativeness": accuracy,
        "sap": module.separated(latents, factors, latents_test, factors_test),
    }
    assert "latents of 90 training images, 2 factors, 20 bins" in found["mig"].note


def test_there_are_no_scores_if_no_factor_varies(subject: Subject) -> None:
    still = dataclasses.replace(subject, train={**subject.train, "factors": np.ones((90, 3), int)})
    found = Disentanglement().measure(still, examples(1, 20), KEY)
    assert {name: (one.value, one.note) for name, one in found.items()} == {"mig": (None, "no factor varies")}


@pytest.mark.parametrize(
    ("train_factors", "test_factors", "said"),
    [
        (None, None, "have no factors"),
        (np.zeros(20), np.zeros(20), "must be whole"),
        (np.zeros((20, 2), int), np.zeros((20, 3), int), "differ in their number of factors"),
    ],
)
def test_images_without_the_right_factors_are_refused(train_factors: Any, test_factors: Any, said: str) -> None:
    splits = [{"image": np.zeros((20, 4, 3, 1), np.uint8)} for _ in range(2)]
    for split, factors in zip(splits, (train_factors, test_factors), strict=True):
        split.update({} if factors is None else {"factors": factors})
    with pytest.raises(InputError, match=said):
        Disentanglement().check_images(data.from_arrays(*splits))


@pytest.mark.long
def test_the_flag(tmp_path: Path, image_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The factors of dSprites are read although the model does not; images without them are refused."""
    dsprites(tmp_path, 80)
    flags = ["--preset", "vae", *SMALL, "--epochs", "1"]
    sprites = ["--dataset", "dsprites", "--data-dir", str(tmp_path), "--image-size", "8"]
    assert train(*flags, *sprites, "--run-dir", str(tmp_path / "sprites")) == 0
    assert train(*flags, "--dataset", str(image_file), "--run-dir", str(tmp_path / "bare")) == 0
    capsys.readouterr()
    given = ["--metric", "disentanglement", "--json", str(tmp_path / "found.json")]
    assert cli.run(lambda: evaluate.main([str(tmp_path / "sprites"), *given])) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    names = ("mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap")
    assert all(0 <= found[name] <= 1 for name in names)
    assert "; latents of 72 training images, 2 factors, 20 bins" in capsys.readouterr().out
    assert cli.run(lambda: evaluate.main([str(tmp_path / "bare"), *given])) == 2
    assert "the images have no factors, which it needs" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"object must inherit from jaxvae\.protocols\.Metric"):
        evaluate.evaluate_run(tmp_path / "bare", metrics=[object()])  # type: ignore[list-item]
