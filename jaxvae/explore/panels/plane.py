"""The map of the test images: hovering shows an image, a click decodes the place, a lasso chooses images."""

from typing import Any

import numpy as np
from bokeh.events import Tap
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    LassoSelectTool,
    LayoutDOM,
    Legend,
    LegendItem,
    PanTool,
    ResetTool,
    WheelZoomTool,
)
from bokeh.palettes import Category10, Category20, Turbo256
from bokeh.plotting import figure
from numpy.typing import NDArray

from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.panels.latents import REST
from jaxvae.explore.view import Later, View
from jaxvae.plane import Plane

MOST_SHOWN = 64  # Of the chosen images.
_MOST_NAMED = 20  # Classes in a legend.
_NUMBERED = 8  # Chosen images whose numbers are listed.
_TOOLTIP = 96  # Side of the image in a tooltip, in pixels of the page.
_CUT = """
const within = (range, value) => range.start <= value && value <= range.end
const visible = within(x, place.data.x[0]) && within(y, place.data.y[0])
for (const ring of rings) if (ring.visible != visible) ring.visible = visible
"""


class MapPanel:
    """See the module.

    Args:
      view: what is looked at.
      images: the address of a test image, with ``@number`` for its number.
    """

    def __init__(self, view: View, images: str):
        self._view = view
        self._points = ColumnDataSource({"x": [], "y": [], "colour": [], "label": [], "number": []})
        self._place = ColumnDataSource({"x": [], "y": []})
        self._figure = self._drawn(images)
        self._words = text(f"map_words_{view.number}", style=controls.SMALL)
        self._chosen = text(f"chosen_{view.number}")
        self._points.selected.on_change("indices", lambda name, old, new: self._choose())
        self._figure.on_event(Tap, self._tap)
        later = Later(view.document, REST, lambda: [self._moved])
        view.on_move(later.begin)
        view.on_renewal(self._renewed)
        self._renewed()
        self._moved()

    @property
    def roots(self) -> list[LayoutDOM]:
        """Its models."""
        return [self._figure, self._words, self._chosen]

    def _drawn(self, images: str) -> Any:
        height, width, _ = self._view.model.run.image_shape
        scale = _TOOLTIP / max(height, width)
        hover = HoverTool(
            tooltips=f'<img src="{images}" width="{round(scale * width)}" height="{round(scale * height)}" alt="" '
            'style="display: block; image-rendering: pixelated"><div>#@number @label</div>',
            limit=1,
            point_policy="snap_to_data",
            attachment="right",
        )
        wheel, pan = WheelZoomTool(), PanTool()
        plot = figure(
            name=f"map_{self._view.number}",
            sizing_mode="stretch_width",
            height=560,
            margin=0,
            tools=[pan, wheel, BoxZoomTool(), LassoSelectTool(continuous=False), ResetTool(), hover],
            active_drag=pan,
            active_scroll=wheel,
            toolbar_location="above",
            html_attributes={"role": "group", "aria-label": "Map of the test images' latents"},
            lod_threshold=None,
        )
        looks = {"size": 5, "color": "colour", "alpha": 0.65, "nonselection_alpha": 0.08, "line_color": None}
        hover.renderers = [plot.scatter("x", "y", source=self._points, **looks)]
        # Drawn on a layer of its own: when the mark moves, the points are not drawn again. That layer is not cut at the
        # frame, so the mark goes when its place does.
        rings = []
        for colour, line in (("#fff", 5), ("#111", 2)):
            ring = {"size": 17, "fill_color": None, "line_color": colour, "line_width": line}
            rings.append(plot.scatter("x", "y", source=self._place, level="overlay", **ring))
        cut = CustomJS(args={"rings": rings, "place": self._place, "x": plot.x_range, "y": plot.y_range}, code=_CUT)
        for axis in (plot.x_range, plot.y_range):
            axis.js_on_change("start", cut)
            axis.js_on_change("end", cut)
        self._place.js_on_change("data", cut)
        self._add_legend(plot)
        return controls.styled(plot)

    def _add_legend(self, plot: Any) -> None:
        model = self._view.model
        colours = _colours(model.labels)
        if 0 < len(colours) <= _MOST_NAMED:
            items = [
                LegendItem(
                    label=model.name_of(label),
                    renderers=[plot.scatter([np.nan], [np.nan], size=9, color=colour, line_color=None)],
                )
                for label, colour in colours.items()
            ]
            looks = {"border_line_color": None, "padding": 2, "margin": 0, "label_standoff": 0, "glyph_width": 16}
            columns = min(5, len(items))  # More do not fit on a telephone.
            plot.add_layout(Legend(items=items, orientation="horizontal", ncols=columns, spacing=6, **looks), "below")

    def _renewed(self) -> None:
        model = self._view.model
        places, colours = model.plane.places(model.latents).astype(np.float32), _colours(model.labels)
        count, labels = len(places), [] if model.labels is None else model.labels.tolist()
        self._points.data = {
            "x": places[:, 0],
            "y": places[:, 1],
            "colour": [colours[label] for label in labels] or [controls.BLUE] * count,
            "label": [model.name_of(label) for label in labels] or [""] * count,
            "number": model.tested.mapped.astype(np.int32),
        }
        total = model.tested.total
        shown = "" if count == total else f"{count:,} of {total:,} test images, evenly spaced. "
        how = "Hover: the image. Drag: pan. Wheel: zoom. Lasso, in the toolbar: choose images."
        self._words.text = f"{shown}{_words(model.plane)} {how}"
        self._choose()

    def _moved(self) -> None:
        (place,) = self._view.model.plane.places(self._view.latent[None])
        self._place.data = {"x": [place[0]], "y": [place[1]]}

    def _tap(self, event: Any) -> None:
        if event.x is not None and event.y is not None:
            self._view.move(self._view.model.plane.latent(event.x, event.y))

    def _choose(self) -> None:
        model = self._view.model
        places = [place for place in self._points.selected.indices if 0 <= place < len(model.latents)]
        chosen = model.tested.mapped[places].tolist()
        if not chosen:
            self._chosen.text = (
                '<p class="quiet">None. Draw a line around points with the lasso of the map; Esc takes it away.</p>'
            )
            return
        shown = [chosen[place] for place in np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_SHOWN)).astype(int)]
        numbers = ", ".join(f"#{number}" for number in shown[:_NUMBERED]) + (", ..." if len(chosen) > _NUMBERED else "")
        more = f", of which {len(shown)} are shown" if len(shown) < len(chosen) else ""
        grid = pictures.grid(model.images(shown), f"{len(shown)} chosen test images", columns=16)
        self._chosen.text = f'<p class="quiet">{len(chosen):,} images{more}: {numbers}</p>{grid}'


def _words(plane: Plane) -> str:
    """What the axes are, as sentences."""
    size = plane.axes.shape[1]
    if plane.shares is None:
        return "The axes are the latents themselves." if size <= 2 else "The axes are the first two latents."
    return (
        f"The axes are the first two principal components (PCA) of the {size} latents; they hold "
        f"{sum(plane.shares):.0%} of the variance. A click decodes the latent that PCA's inverse gives: the other "
        "components are at their mean."
    )


def _colours(labels: NDArray[Any] | None) -> dict[int, str]:
    """A colour for each label that occurs."""
    present = [] if labels is None else np.unique(labels).tolist()
    if len(present) <= _MOST_NAMED:
        return dict(zip(present, (Category10[10] if len(present) <= 10 else Category20[20]), strict=False))
    return {label: Turbo256[round(255 * place / (len(present) - 1))] for place, label in enumerate(present)}
