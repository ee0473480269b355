"""Pictures from host arrays: grids of images as PNG, curves of metrics with matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxvae.run.records import ordered, terms_of

COLUMNS = 8  # Images to a row, as in the notes.
_MOST_POINTS = 10_000  # Of a map.
_GAP = 2  # Pixels between images.
_SHOWN = 64  # Images of an overview,
_MOST_PIXELS = 2**24  # within this many pixels.
_SMALL_SIDE = 56  # Up to this size, they are drawn twice as large.
_LEGEND = "upper right"  # To find the best place, Matplotlib looks at every point, and warns if that takes long.
_BACKGROUND = 96  # A dark grey that neither black nor white images vanish into.


def as_uint8(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Images as they are, if they are uint8; else intensities in [0, 1], clipped, times 255 and rounded."""
    scaled = images if images.dtype == np.uint8 else np.round(np.clip(images, 0, 1) * 255)
    return scaled.astype(np.uint8, copy=False)


def image_grid(images: NDArray[Any], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Images side by side, `columns` to a row, row by row.

    Args:
      images: [N, H, W, C], uint8 or intensities in [0, 1].
      columns: images in a row.

    Returns:
      One uint8 picture [rows, cols, C], with a gap around each image.
    """
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tall, wide = height + _GAP, width + _GAP
    grid = np.full((rows * tall + _GAP, columns * wide + _GAP, channels), _BACKGROUND, np.uint8)
    for i, image in enumerate(as_uint8(images)):
        top, left = _GAP + i // columns * tall, _GAP + i % columns * wide
        grid[top : top + height, left : left + width] = image
    return grid


def reconstruction_grid(x: NDArray[Any], x_hat: NDArray[Any], columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Rows of images `x` [N, H, W, C], each over the row of their reconstructions `x_hat` [N, H, W, C]."""
    rows = [as_uint8(a[i : i + columns]) for i in range(0, len(x), columns) for a in (x, x_hat)]
    # An incomplete last row is padded, or its reconstructions would move up beside it.
    missing = columns - len(rows[-1])
    blank = np.full((missing, *x.shape[1:]), _BACKGROUND, np.uint8)
    return image_grid(np.concatenate([*rows[:-2], rows[-2], blank, rows[-1], blank]), columns)


def overview(images: Any) -> NDArray[np.uint8]:
    """Images from all over a set, uint8 [N, H, W, C], side by side, small ones twice as large."""
    side = max(images.shape[1:3])
    count = min(_SHOWN, len(images), max(1, _MOST_PIXELS // side**2))
    grid = image_grid(images[np.linspace(0, len(images) - 1, count).astype(int)])
    return grid.repeat(2, 0).repeat(2, 1) if side <= _SMALL_SIDE else grid


def save_png(path: Path, picture: NDArray[np.uint8], scale: int = 1) -> None:
    """Write a picture [rows, cols, C] (C = 1, 3 or 4) as PNG, each pixel drawn `scale` x `scale`."""
    from PIL import Image

    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(path)


def save_outliers(path: Path, groups: Sequence[tuple[str, NDArray[Any], NDArray[Any], Any, Any]], title: str) -> None:
    """Draw the images of some groups as PNG, each above its reconstruction, with its place and its value.

    Args:
      path: the file to write.
      groups: of each its heading, places [N], values [N], images and reconstructions [N, H, W, C] in [0, 1].
      title: what they are outliers of.
    """
    rows = [-(-len(places) // COLUMNS) for _, places, _, _, _ in groups]
    figure = _figure(1.1 * COLUMNS, 2.4 * sum(rows) + 0.4 * len(rows) + 0.3, title)
    parts = figure.subfigures(len(groups), 1, height_ratios=[2.4 * count + 0.4 for count in rows], squeeze=False)
    for part, count, (heading, places, values, x, x_hat) in zip(parts[:, 0], rows, groups, strict=True):
        part.suptitle(heading, fontsize="small", fontweight="bold")
        panels = part.subplots(count, COLUMNS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, place, value, image, reconstruction in zip(panels, places, values, x, x_hat, strict=False):
            gap = np.full((max(1, len(image) // 14), *image.shape[1:]), _BACKGROUND, np.uint8)
            pair = np.concatenate([as_uint8(image), gap, as_uint8(reconstruction)])
            axes.imshow(pair[..., 0] if pair.shape[2] == 1 else pair, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"#{place}\n{value:.4g}", fontsize=7)
    figure.savefig(path, dpi=120)


def save_map(
    path: Path, points: NDArray[Any], labels: Any, classes: Sequence[str], axes_names: Sequence[str], title: str
) -> None:
    """Draw points of a plane as PNG, coloured by label.

    Args:
      path: the file to write.
      points: [N, 2]. Of very many, some from all over the set are drawn.
      labels: [N]; None: one colour.
      classes: the names of the labels; empty: they are their numbers.
      axes_names: of both axes.
      title: of the picture.
    """
    from matplotlib import colormaps

    shown = np.unique(np.linspace(0, len(points) - 1, _MOST_POINTS).astype(int))
    points, size = points[shown], float(np.clip(40_000 / len(shown), 4, 25))
    figure, (axes,) = _panels(title, 1, width=7, height=5.6)
    if labels is None:
        axes.scatter(*points.T, s=size, linewidths=0)
    else:
        labels = np.asarray(labels)[shown]
        values = np.unique(labels)
        if len(values) <= 20:
            colours = colormaps["tab10" if len(values) <= 10 else "tab20"](np.arange(len(values)))
            for value, colour in zip(values, colours, strict=True):
                name = str(classes[value]) if value < len(classes) else str(value)
                axes.scatter(*points[labels == value].T, s=size, linewidths=0, color=colour, label=name)
            figure.legend(loc="outside right center", markerscale=(30 / size) ** 0.5, fontsize="small")
        else:
            drawn = axes.scatter(*points.T, s=size, linewidths=0, c=labels, cmap="viridis")
            figure.colorbar(drawn, ax=axes, label="label")
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
    axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def save_curves(path: Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the loss and its terms against the step as PNG: a panel per term, a line per split.

    Args:
      path: the file to write.
      records: lines of ``metrics.jsonl``.
      title: what was trained, as `jaxvae.config.describe` says it.
    """
    terms = terms_of(records)
    figure, panels = _panels(title, len(terms))
    for axes, term in zip(panels, terms, strict=True):
        for split, style, colour in (("train", "-", "C0"), ("validation", "o--", "C1"), ("test", "s--", "C2")):
            lines = [r for r in records if r["split"] == split and term in r]
            steps = [r["step"] for r in lines]
            if lines:
                axes.plot(steps, [r[term] for r in lines], style, color=colour, markersize=3, label=split)
        axes.set(title=term, xlabel="step", ylabel=records[0]["unit"])
        axes.grid(alpha=0.3)
    # Beside the panels: inside one it would cover points. The loss has all splits.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=120)


def save_comparison(
    path: Path, term: str, unit: str, curves: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]]
) -> None:
    """Draw a term of several runs against the epoch, and against the seconds of training, as PNG.

    Args:
      path: the file to write.
      term: what is drawn.
      unit: of it.
      curves: of each run its name, epochs, seconds and values.
    """
    figure, panels = _panels(term, 2)
    for name, epochs, seconds, values in curves:
        for axes, where in zip(panels, (epochs, seconds), strict=True):
            axes.plot(where, values, "o-", markersize=3, label=name)
    for axes, label in zip(panels, ("epoch", "seconds of training"), strict=True):
        axes.set(xlabel=label, ylabel=unit)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


def save_axis(
    path: Path, rows: Sequence[Mapping[str, Any]], title: str, axis: str, split: str, others: Sequence[str] = ()
) -> None:
    """Draw the metrics of a split against one axis of a sweep as PNG: mean, least and greatest value over the seeds.

    Args:
      path: the file to write.
      rows: of ``members.csv``, with their metrics as numbers; each must have the split's loss.
      title: what was trained.
      axis: the column to draw against. Numbers are drawn to scale, on a logarithmic axis if all are positive.
      split: "validation" or "test".
      others: columns that distinguish the lines.
    """
    names = ordered(name.removeprefix(f"{split}_") for row in rows for name in row if name.startswith(f"{split}_"))
    terms = [term for term in names if all(row.get(f"{split}_{term}") is not None for row in rows)]
    values = sorted({row[axis] for row in rows})
    numeric = all(isinstance(value, int | float) for value in values)
    place = {value: value if numeric else number for number, value in enumerate(values)}
    figure, panels = _panels(title, len(terms))
    for axes, term in zip(panels, terms, strict=True):
        for label, same in _by(rows, others).items():
            points = {
                place[value]: [row[f"{split}_{term}"] for row in found] for (value,), found in _by(same, [axis]).items()
            }
            where = sorted(points)
            means = [np.mean(points[x]) for x in where]
            (line,) = axes.plot(where, means, "o-", markersize=3, label=_label(others, label))
            least, greatest = ([pick(points[x]) for x in where] for pick in (min, max))
            axes.fill_between(where, least, greatest, color=line.get_color(), alpha=0.2, linewidth=0)
        if numeric and min(values) > 0:
            axes.set_xscale("log")
        if len(values) <= 8:
            axes.set_xticks([place[value] for value in values], [f"{v:g}" if numeric else str(v) for v in values])
            axes.minorticks_off()
        axes.set(title=f"{split} {term}", xlabel=axis, ylabel=rows[0]["unit"])
        axes.grid(alpha=0.3)
        if 1 < len(_by(rows, others)) <= 12:
            axes.legend(loc=_LEGEND, fontsize=7)
    figure.savefig(path, dpi=120)


def save_rate_distortion(
    path: Path, rows: Sequence[Mapping[str, Any]], title: str, split: str, settings: Sequence[str]
) -> None:
    """Draw distortion (reconstruction) against rate (KL) on the images of a split as PNG: a point per member.

    The dashed line marks the lowest sum of the two: where beta is 1, that is the best bound. (Alemi et al.,
    "Fixing a Broken ELBO", arXiv 1711.00464.)

    Args:
      path: the file to write.
      rows: of ``members.csv``, with their metrics as numbers; those without the split's kl are left out.
      title: what was trained.
      split: "validation" or "test".
      settings: columns that distinguish the points; seeds of one setting have one colour.
    """
    rows = [row for row in rows if row.get(f"{split}_kl") is not None]
    figure, (axes,) = _panels(title, 1, width=6.4, height=4.6)
    groups = _by(rows, settings)
    colours = _colours(len(groups))
    middles = []
    for (label, same), colour in zip(groups.items(), colours, strict=True):
        rate, distortion = [row[f"{split}_kl"] for row in same], [row[f"{split}_recon"] for row in same]
        axes.plot(rate, distortion, "o", markersize=4, color=colour, label=_label(settings, label))
        middles.append((float(np.mean(rate)), float(np.mean(distortion))))
    if len(settings) == 1:
        axes.plot(*zip(*sorted(middles), strict=True), "-", color="grey", linewidth=0.8, zorder=0)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    best = min(rate + distortion for rate, distortion in middles)
    axes.plot([left, right], [best - left, best - right], "k--", linewidth=0.8, label=f"sum {best:.4g}")
    unit = rows[0]["unit"]
    axes.set(xlabel=f"rate: {split} kl ({unit})", ylabel=f"distortion: {split} recon ({unit})")
    axes.set(xlim=(left, right), ylim=(low, high))
    axes.grid(alpha=0.3)
    if len(groups) <= 16:
        figure.legend(loc="outside right upper", fontsize=7)  # Points may lie in each corner.
    figure.savefig(path, dpi=120)


def _panels(title: str, count: int, width: float = 4.5, height: float = 3.4) -> tuple[Any, Any]:
    """A figure of `count` panels side by side below a title, and its axes."""
    figure = _figure(width * count, height, title)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _figure(width: float, height: float, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="small", wrap=True)
    return figure


def _colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, count))


def _by(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows grouped by their values in some columns, in the order of the rows."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _label(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in zip(names, values, strict=True)
    )
