"""The controls of the page and their looks: models of Bokeh, each with the title that a screen reader says."""

from collections.abc import Callable, Sequence
from typing import Any

from bokeh.models import Button, Div, LayoutDOM, Row, Select, Slider, Spinner
from bokeh.models import Column as Stack

BLUE, LINE = "#4667b5", "#d5dae1"
SMALL = ".bk-clearfix { color: #5b6675; font-size: 13px; }"

_STYLE = """
:host { color: #1f2733; font-size: 14px; line-height: 1.45; }
.bk-clearfix { display: block !important; width: 100%; }
img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
figure { margin: 0; }
figcaption, .quiet { color: #5b6675; font-size: 13px; }
.error { color: #a3261b; }
"""


def text(name: str, says: str = "", style: str = "") -> Div:
    """A piece of HTML. Formulas are not looked for: that would load a library."""
    return Div(
        text=says, name=name, disable_math=True, sizing_mode="stretch_width", margin=0, stylesheets=[_STYLE + style]
    )


def slider(low: float, high: float, step: float, value: float, title: str = "", width: int | None = None) -> Slider:
    """A slider, of all the width there is if `width` is None."""
    size: dict[str, Any] = {"sizing_mode": "stretch_width"} if width is None else {"width": width}
    return Slider(
        start=low, end=high, step=step, value=value, title=title, bar_color=BLUE, margin=0, format="0.00", **size
    )


def button(label: str, call: Callable[[], None]) -> Button:
    """A button that calls `call`."""
    found = Button(label=label, width=110, margin=0, align="end")
    found.on_click(call)
    return found


def number(title: str, last: int, value: int | None) -> Spinner:
    """A whole number from 0 to `last`."""
    return Spinner(title=title, low=0, high=last, step=1, mode="int", value=value, width=110, margin=0)


def choice(title: str, options: Sequence[Any], value: str | None, name: str = "") -> Select:
    """A list to choose from: of strings, or of pairs of a value and what is shown."""
    return Select(title=title, options=list(options), value=value, width=130, margin=0, name=name)


def side_by_side(children: Sequence[LayoutDOM], name: str = "") -> Row:
    """Controls beside each other; those that find no room go below."""
    wrap = ":host { flex-wrap: wrap; gap: 8px 16px; }"
    return Row(children=list(children), name=name, margin=0, sizing_mode="stretch_width", stylesheets=[wrap])


def below_each_other(children: Sequence[LayoutDOM], name: str = "", spacing: int = 10) -> Stack:
    """Controls below each other."""
    return Stack(children=list(children), name=name, margin=0, spacing=spacing, sizing_mode="stretch_width")


def styled(plot: Any) -> Any:
    """A figure, with the looks of the page."""
    plot.toolbar.logo = None
    plot.outline_line_color = LINE
    plot.grid.grid_line_color = "#eef0f3"
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = "#b9c0ca"
    plot.axis.minor_tick_line_color = None
    return plot
