from pathlib import Path
from typing import Any

import matplotlib.axes
import matplotlib.figure
import matplotlib.legend
import numpy as np
import pytest
from PIL import Image

from jaxvae.run import plots
from jaxvae.run.records import record


def test_image_grid_is_eight_to_a_row() -> None:
    images = np.random.default_rng(5).integers(0, 256, (19, 6, 5, 3), np.uint8)
    grid = plots.image_grid(images)
    assert grid.shape == (3 * 8 + 2, 8 * 7 + 2, 3)
    for i, image in enumerate(images):
        row, column = divmod(i, 8)
        tile = grid[2 + row * 8 : 8 + row * 8, 2 + column * 7 : 7 + column * 7]
        np.testing.assert_array_equal(tile, image)
    assert len(np.unique(grid[18:24, 2 + 3 * 7 :])) == 1  # The places that are left are blank.


def test_intensities_are_clipped_and_rounded() -> None:
    images = np.float32([-0.5, 0, 0.5, 1, 2]).reshape(5, 1, 1, 1)
    grid = plots.image_grid(images)
    np.testing.assert_array_equal(grid[2, 2 : 2 + 3 * 5 : 3, 0], [0, 0, 128, 255, 255])


@pytest.mark.parametrize("count", [1, 8, 11, 32])
def test_reconstructions_stand_below_their_images(count: int) -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
    x_hat = rng.uniform(size=(count, 4, 4, 1)).astype(np.float32)
    grid = plots.reconstruction_grid(x, x_hat)
    assert grid.shape[0] == 2 * -(-count // 8) * 6 + 2
    for i in range(count):
        row, column = divmod(i, 8)
        top, left = 2 + 12 * row, 2 + 6 * column
        np.testing.assert_array_equal(grid[top : top + 4, left : left + 4], x[i])
        below = grid[top + 6 : top + 10, left : left + 4]
        np.testing.assert_array_equal(below, np.round(x_hat[i] * 255))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_holds_the_picture(channels: int, mode: str, tmp_path: Path) -> None:
    picture = np.random.default_rng(7).integers(0, 256, (5, 7, channels), np.uint8)
    plots.save_png(tmp_path / "p.png", picture, scale=2)
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == mode
        read = np.asarray(image).reshape(10, 14, channels)
    np.testing.assert_array_equal(read[::2, ::2], picture)
    np.testing.assert_array_equal(read[1::2, 1::2], picture)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [("loss",), ("loss", "recon", "kl")])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "validation", "test")])
def test_curves_are_drawn(
    splits: tuple[str, ...], terms: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panel per term, also for a term that only evaluations have; a line per split, even of one point."""
    drawn: list[tuple[str, list[int]]] = []
    plot = matplotlib.axes.Axes.plot

    def noting(axes: Any, x: list[int], *args: Any, **options: Any) -> Any:
        drawn.append((options["label"], x))
        return plot(axes, x, *args, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", noting)
    records = [
        record(step, step // 10, split, "nats/image", {t: np.float32([100 / step]) for t in (*terms, *bound)})
        for step in (10, 20, 30)
        for split, bound in zip(splits, ((), ("elbo",), ("elbo",)), strict=False)
        if split != "test" or step == 30
    ]
    plots.save_curves(tmp_path / "curves.png", records, "vae, changed: beta 2")
    assert_drawn(tmp_path / "curves.png", width=540 * (len(terms) + 1))
    steps = {"train": [10, 20, 30], "validation": [10, 20, 30], "test": [30]}
    assert drawn == [
        (split, steps[split]) for term in (*terms, "elbo") for split in splits if term != "elbo" or split != "train"
    ]


def sweep_rows() -> list[dict[str, Any]]:
    """Rows of two learning rates, three betas and two seeds; every metric has a spread."""
    return [
        {"learning_rate": rate, "beta": beta, "hidden": "8,8", "seed": seed, "unit": "nats/image"}
        | {"test_loss": 100 + beta + seed, "test_recon": 80 + 5 * beta + seed, "test_kl": 20 / beta + seed}
        for rate in (1e-3, 1e-4)
        for beta in (0.5, 1.0, 4.0)
        for seed in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "others"), [("beta", ["learning_rate"]), ("learning_rate", []), ("hidden", ["beta"])])
def test_metrics_against_an_axis_are_drawn(axis: str, others: list[str], tmp_path: Path) -> None:
    plots.save_axis(tmp_path / "axis.png", sweep_rows(), "vae", axis, "test", others)
    assert_drawn(tmp_path / "axis.png", width=540 * 3)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["beta"], ["beta", "learning_rate"], []])
def test_rate_against_distortion_is_drawn(settings: list[str], tmp_path: Path) -> None:
    unusable = {**sweep_rows()[0], "test_kl": None, "test_recon": None}
    plots.save_rate_distortion(tmp_path / "rd.png", [*sweep_rows(), unusable], "vae", "test", settings)
    assert_drawn(tmp_path / "rd.png", width=768)


def test_a_plot_says_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(matplotlib.figure.Figure, "suptitle", lambda _, title, **__: titles.append(title))
    records = [record(10, 1, "train", "nats/image", {"loss": np.float32([1.0])})]
    plots.save_curves(tmp_path / "a.png", records, "one")
    plots.save_axis(tmp_path / "b.png", sweep_rows(), "two", "beta", "test")
    plots.save_rate_distortion(tmp_path / "c.png", sweep_rows(), "three", "test", ["beta"])
    assert titles == ["one", "two", "three"]


def test_no_plot_searches_all_points_for_a_place_for_its_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matplotlib warns where that takes more than a second: on a slow machine, or for a long run."""

    def searched(*_: Any) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr(matplotlib.legend.Legend, "_find_best_position", searched)
    records = [record(10, 1, "train", "nats/image", {"loss": np.float32([1.0])})]
    plots.save_curves(tmp_path / "a.png", records, "one")
    plots.save_axis(tmp_path / "b.png", sweep_rows(), "two", "beta", "test", ["learning_rate"])
    plots.save_rate_distortion(tmp_path / "c.png", sweep_rows(), "three", "test", ["beta"])


def assert_drawn(path: Path, width: int) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == width
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # Lines in colours, not a white sheet.
