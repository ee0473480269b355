"""Images that the visitor brings: a file, or a drawing. They are encoded and decoded again."""

from typing import Any

import numpy as np
from bokeh.models import ColorPicker, ColumnDataSource, Div, FileInput, FreehandDrawTool, LayoutDOM, Range1d
from bokeh.plotting import figure

from jaxvae.errors import InputError
from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.view import Later, View

SIDE = 200  # Of the canvas, in pixels of the page.
_EMPTY = '<p class="quiet">Draw in the black square.</p>'
_DROP = """
.bk-input-group { gap: 4px; }
input[type=file] {
  padding: 18px 14px; height: auto; background: #f7f8fa; border: 2px dashed #9aa7b8; border-radius: 8px;
}
"""


class OwnPanel:
    """See the module."""

    def __init__(self, view: View):
        self._view, self._label, number = view, view.label, view.number
        self._file = FileInput(
            title=f"Picture file: drop it here, or choose it (up to {pictures.MOST_BYTES >> 20} MB)",
            accept="image/*",
            stylesheets=[_DROP],
            sizing_mode="stretch_width",
            margin=0,
            name=f"file_{number}",
        )
        self._file.on_change("value", lambda name, old, new: self._uploaded(new))
        self._from_file = text(f"from_file_{number}", '<p class="quiet">The middle of the picture is taken.</p>')
        self._later = Later(view.document, 30, lambda: [self._drawn])
        self._strokes = ColumnDataSource({"xs": [], "ys": [], "colour": []})
        self._strokes.on_change("data", lambda name, old, new: self._later.begin())
        canvas = self._canvas()
        buttons: list[LayoutDOM] = [controls.button("Clear", self._erase)]
        if view.model.run.image_shape[2] > 1:
            colour = ColorPicker(title="Colour", color="#ffffff", width=80, margin=0)
            colour.on_change("color", lambda name, old, new: setattr(self._pen, "default_overrides", {"colour": new}))
            buttons.append(colour)
        self._drawing = controls.below_each_other([canvas, controls.side_by_side(buttons)], f"drawing_{number}")
        self._from_drawing = text(f"from_drawing_{number}", _EMPTY)
        view.on_renewal(self._renewed)
        view.on_move(self._moved)

    @property
    def roots(self) -> list[LayoutDOM]:
        """Its models."""
        return [self._file, self._from_file, self._drawing, self._from_drawing]

    def _canvas(self) -> Any:
        height, width, _ = self._view.model.run.image_shape
        longest = max(height, width)
        plot = figure(
            width=SIDE * width // longest,
            height=SIDE * height // longest,
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 1),
            tools=[],
            toolbar_location=None,
            min_border=0,
            margin=0,
            background_fill_color="#000000",
            border_fill_color="#000000",
            outline_line_color=None,
            html_attributes={"role": "img", "aria-label": "Canvas to draw an image on"},
        )
        plot.axis.visible = plot.grid.visible = False
        ends = {"line_cap": "round", "line_join": "round", "nonselection_alpha": 1}
        pen = {"line_color": "colour", "line_width": pictures.PEN * min(plot.width, plot.height)}
        lines = plot.multi_line("xs", "ys", source=self._strokes, **pen, **ends)
        self._pen = FreehandDrawTool(renderers=[lines], default_overrides={"colour": "#ffffff"})
        plot.add_tools(self._pen)
        plot.toolbar.active_drag = self._pen
        return plot

    def _uploaded(self, content: str) -> None:
        if not content:
            return
        try:
            self._view.own["file"] = pictures.uploaded(content, self._view.model.run.image_shape)
        except InputError as error:
            self._view.own.pop("file", None)
            self._from_file.text = pictures.complaint(error)
        else:
            self._show("file", self._from_file)
        self._view.brought()

    def _drawn(self) -> None:
        found = self._strokes.data
        try:  # What a browser sends may be anything.
            strokes = list(zip(found["xs"], found["ys"], found["colour"], strict=True))
            image = pictures.drawn(strokes, self._view.model.run.image_shape)
        except (KeyError, ValueError, TypeError):
            return
        if strokes:
            self._view.own["drawing"] = image
            self._show("drawing", self._from_drawing)
            self._view.brought()

    def _erase(self) -> None:
        self._strokes.data = {"xs": [], "ys": [], "colour": []}
        self._view.own.pop("drawing", None)
        self._from_drawing.text = _EMPTY
        self._view.brought()

    def _show(self, which: str, where: Div) -> None:
        view, image = self._view, self._view.own[which]
        (decoded,) = view.model.decode(view.model.encode(image, view.label)[None], view.label)
        gap = np.full((len(image), max(1, image.shape[1] // 14), image.shape[2]), 255, np.uint8)
        pair = np.concatenate([image, gap, decoded], axis=1)
        told = f" as class {view.name_of_class()}" if view.model.conditional else ""
        where.text = (
            f"<figure>{pictures.element(pair, f'Your {which}, and what the model makes of it')}"
            f"<figcaption>Left: as the model gets it. Right: encoded and decoded{told}.</figcaption></figure>"
        )

    def _moved(self) -> None:
        if self._label != self._view.label:
            self._label = self._view.label
            self._renewed()

    def _renewed(self) -> None:
        for which, where in (("file", self._from_file), ("drawing", self._from_drawing)):
            if which in self._view.own:
                self._show(which, where)
