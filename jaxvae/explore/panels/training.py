"""The metrics and the pictures of a run, while it trains."""

import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, LayoutDOM
from bokeh.plotting import figure

from jaxvae.errors import InputError
from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.view import View
from jaxvae.run import records

SPLITS = {"train": "#4667b5", "validation": "#d9822b", "test": "#2a8a57"}
MOST_POINTS = 2000  # Of a line.
_SIDE_BY_SIDE = """
.bk-clearfix { display: flex !important; flex-wrap: wrap; gap: 14px; }
figure { flex: 1 1 200px; max-width: 420px; }
"""
_MOST_BYTES = 4 * 2**20  # Of a picture.


class TrainingPanel:
    """See the module.

    Args:
      view: what is looked at.
      run_dir: of the run; it is only read.
    """

    def __init__(self, view: View, run_dir: Path):
        self._view, self._run_dir, self._seen = view, run_dir, object()
        self._lines: list[Any] = []
        self._term = controls.choice("Metric", [], None, f"metric_{view.number}")
        self._term.on_change("value", lambda name, old, new: self._draw())
        self._sources = {split: ColumnDataSource({"step": [], "value": []}) for split in SPLITS}
        self._figure = self._plot()
        self._words = text(f"training_words_{view.number}")
        self._pictures = text(f"training_pictures_{view.number}", style=_SIDE_BY_SIDE)
        view.on_renewal(self._draw)
        self.look()

    @property
    def roots(self) -> list[LayoutDOM]:
        """Its models."""
        return [self._term, self._figure, self._words, self._pictures]

    def _plot(self) -> Any:
        plot = figure(
            name=f"curves_{self._view.number}", sizing_mode="stretch_width", height=300, margin=0, x_axis_label="step",
            tools="pan,box_zoom,reset", toolbar_location="above",
            html_attributes={"role": "group", "aria-label": "Curves of the chosen metric"},
        )  # fmt: skip
        plot.add_tools(HoverTool(tooltips=[("step", "@step{0,0}"), ("$name", "@value{0.0000}")]))
        plot.xaxis.formatter.use_scientific = False
        for split, colour in SPLITS.items():
            source = self._sources[split]
            plot.line("step", "value", source=source, color=colour, line_width=2, legend_label=split)
            plot.scatter("step", "value", source=source, color=colour, size=5, legend_label=split, name=split)
        [legend] = plot.legend
        legend.update(orientation="horizontal", border_line_color=None, label_text_font_size="12px", margin=0)
        plot.add_layout(legend, "below")
        return controls.styled(plot)

    def look(self) -> None:
        """Read the run directory again, if something in it changed."""
        state = [_stamp(self._run_dir / "metrics.jsonl"), *(_stamp(path) for path in self._newest())]
        if state == self._seen:
            return
        self._seen = state
        try:
            self._lines = records.read_records(self._run_dir / "metrics.jsonl")
        except InputError as error:
            self._words.text = pictures.complaint(error)
            return
        terms = records.terms_of(self._lines)
        if list(self._term.options) != terms:
            self._term.options = terms
        if terms and self._term.value not in terms:
            self._term.value = terms[0]
        self._draw()
        self._pictures.text = "".join(map(_figure, self._newest()))

    def _draw(self) -> None:
        term = self._term.value
        for split, source in self._sources.items():
            lines = [line for line in self._lines if line["split"] == split and term in line]
            kept = np.linspace(0, len(lines) - 1, min(len(lines), MOST_POINTS)).astype(int)
            source.data = {
                "step": [lines[place]["step"] for place in kept], "value": [lines[place][term] for place in kept]
            }  # fmt: skip
        if not self._lines:
            self._words.text = '<p class="quiet">The run has no metrics yet.</p>'
            return
        last = self._lines[-1]
        self._figure.yaxis.axis_label = last["unit"]
        epochs = self._view.model.run.config.epochs
        self._words.text = (
            f'<p class="quiet">Epoch {last["epoch"]} of {epochs}, step {last["step"]:,}. While the run trains, this '
            "page reads its directory every two seconds, and takes each new checkpoint.</p>"
        )

    def _newest(self) -> list[Path]:
        """The newest picture of each kind."""
        found: dict[str, Path] = {}
        folder = self._run_dir / "images"
        for path in sorted(folder.glob("*_epoch_*.png")) if folder.is_dir() else ():
            found[path.name.partition("_epoch_")[0]] = path
        return list(found.values())


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_mtime_ns, found.st_size


def _figure(path: Path) -> str:
    kind, _, epoch = path.stem.partition("_epoch_")
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return ""
        content = path.read_bytes()
    except OSError:  # A run may replace it.
        return ""
    # The size is in the first chunk of a PNG file.
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return ""
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    name = f"{kind.capitalize()}, epoch {int(epoch) if re.fullmatch(r'[0-9]+', epoch) else '?'}"
    shown = pictures.html_of(content, width, height, name)
    return f"<figure><figcaption>{escape(name)}</figcaption>{shown}</figure>"
