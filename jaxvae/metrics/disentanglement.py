"""How far single latents stand for single factors of variation, where the factors of the images are known."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from jaxvae.data.images import ImageData
from jaxvae.errors import InputError
from jaxvae.metrics.labelled import check_encodes, encoded, some_training
from jaxvae.metrics.subject import Subject
from jaxvae.protocols import Measured, Metric

BINS = 20  # Of each latent, of equal width from its least to its highest value: Locatello et al. (arXiv 1811.12359).
MOST_TEST = 5_000  # Test images on which classifiers are scored, as there.

Latents = Float[np.ndarray, "N L"]
Factors = Int[np.ndarray, "N F"]


@dataclass(frozen=True)
class Disentanglement(Metric):
    """MIG, DCI and SAP of the means of the posteriors, or of the codes of an autoencoder.

    The images need an array "factors" [N, F] of whole numbers, as those of the dataset `dsprites` have. Each score is
    in [0, 1], higher is better, and depends on choices that papers make differently; these are of Locatello et al.
    (arXiv 1811.12359), but for the forests of DCI.
    """

    reads_labels: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """See `Component`."""
        check_encodes("disentanglement", config)

    def check_images(self, images: ImageData) -> None:
        """See `Metric`."""
        for name in ("train", "test"):
            factors = images.split(name).get("factors")
            if factors is None:
                raise InputError(
                    f"--metric disentanglement: {images.source}: the images have no factors, which it needs"
                )
            if factors.ndim != 2 or factors.dtype.kind not in "iu":
                raise InputError(f"--metric disentanglement: factors must be whole numbers [N, F], not {factors.shape}")
        if images.split("train")["factors"].shape[1] != images.split("test")["factors"].shape[1]:
            raise InputError("--metric disentanglement: training and test images differ in their number of factors")

    def measure(self, subject: Subject, images: Mapping[str, NDArray[Any]], key: jax.Array) -> Mapping[str, Measured]:
        """See `Metric`: "mig", "dci_disentanglement", "dci_completeness", "dci_informativeness" and "sap"."""
        few = some_training(subject)
        places = np.linspace(0, len(images["image"]) - 1, min(len(images["image"]), MOST_TEST)).astype(int)
        test = {name: values[places] for name, values in images.items()}
        latents, latents_test = encoded(subject, few), encoded(subject, test)
        varies = [len(np.unique(column)) > 1 for column in few["factors"].T]
        factors, factors_test = few["factors"][:, varies], test["factors"][:, varies]
        if not any(varies) or latents.shape[1] < 2:
            why = "no factor varies" if not any(varies) else "there is only one latent"
            return {"mig": Measured(None, note=why)}
        importance, accuracy = forests(latents, factors, latents_test, factors_test)
        note = f"; latents of {len(latents):,} training images, {factors.shape[1]} factors"
        return {
            "mig": Measured(mutual_information_gap(latents, factors), note=f"{note}, {BINS} bins"),
            "dci_disentanglement": Measured(disentanglement(importance), note="; random forests"),
            "dci_completeness": Measured(disentanglement(importance.T), note="; random forests"),
            "dci_informativeness": Measured(accuracy, note=f"; accuracy of the forests on {len(places):,} test images"),
            "sap": Measured(separated(latents, factors, latents_test, factors_test), note="; linear SVMs"),
        }


def mutual_information_gap(latents: Latents, factors: Factors) -> float:
    """The MIG of Chen et al. (arXiv 1802.04942, section 4.1), with the mutual information of `BINS` bins.

    For each factor: how much more the latent that says most of it says than the next, as a share of its entropy; the
    mean over the factors. Every factor must vary, and L >= 2.
    """
    from sklearn.metrics import mutual_info_score

    binned = [np.digitize(z, np.histogram_bin_edges(z, BINS)[:-1]) for z in latents.astype(np.float64).T]
    gaps = []
    for factor in factors.T:
        least, most = sorted(mutual_info_score(factor, z) for z in binned)[-2:]
        gaps.append((most - least) / mutual_info_score(factor, factor))
    return float(np.mean(gaps))


def forests(
    latents: Latents, factors: Factors, latents_test: Latents, factors_test: Factors
) -> tuple[Float[np.ndarray, "L F"], float]:
    """How important each latent is to a random forest that reads a factor; the mean accuracy on the test images.

    Eastwood and Williams, "A framework for the quantitative evaluation of disentangled representations" (2018).
    """
    from sklearn.ensemble import RandomForestClassifier

    importance, right = [], []
    for factor, wanted in zip(factors.T, factors_test.T, strict=True):
        forest = RandomForestClassifier(n_estimators=50, random_state=0).fit(latents, factor)
        importance.append(forest.feature_importances_)
        right.append(np.mean(forest.predict(latents_test) == wanted))
    return np.stack(importance, axis=1), float(np.mean(right))


def disentanglement(importance: Float[np.ndarray, "L F"]) -> float:
    """The disentanglement of a matrix of importances; of its transpose, the completeness (same source).

    1 - H(p) for each row, with p its shares and the entropy in units of log F; the mean over rows, weighted by their
    sums. 1 if every latent serves one factor, 0 if none serves any.
    """
    rows = importance.sum(axis=1)
    if not rows.any():  # No latent says anything.
        return 0.0
    shares = importance / np.where(rows > 0, rows, 1)[:, None]
    if shares.shape[1] == 1:
        return 1.0
    logs = np.log(np.where(shares > 0, shares, 1)) / np.log(shares.shape[1])
    return float(np.average(1 + (shares * logs).sum(axis=1), weights=rows))


def separated(latents: Latents, factors: Factors, latents_test: Latents, factors_test: Factors) -> float:
    """The SAP of Kumar, Sattigeri and Balakrishnan (arXiv 1711.00848), with linear SVMs that each read one latent.

    For each factor: by how much the accuracy of the best latent is above that of the next; the mean over the factors.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    gaps = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Of latents that say nothing of a factor.
        for factor, wanted in zip(factors.T, factors_test.T, strict=True):
            scores = []
            for z, z_test in zip(latents.T, latents_test.T, strict=True):
                machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(z[:, None], factor)
                scores.append(np.mean(machine.predict(z_test[:, None]) == wanted))
            least, most = sorted(scores)[-2:]
            gaps.append(most - least)
    return float(np.mean(gaps))
