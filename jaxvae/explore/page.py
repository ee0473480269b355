"""The page: its panels for each run, put into ``page.html``, and read again while a run trains."""

from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from typing import Any

from bokeh.core.templates import get_env
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import CustomJS

from jaxvae.config import describe
from jaxvae.errors import one_line
from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.panels.between import BetweenPanel
from jaxvae.explore.panels.latents import LatentsPanel
from jaxvae.explore.panels.own import OwnPanel
from jaxvae.explore.panels.plane import MapPanel
from jaxvae.explore.panels.samples import SamplesPanel
from jaxvae.explore.panels.training import TrainingPanel
from jaxvae.explore.view import View
from jaxvae.explore.watched import Watched

EVERY = 2000  # Milliseconds between two looks at a run directory.

# Screen readers need a role and a name of each control. Those of Bokeh that have none get them here. The layer that
# takes a plot's pointer is no stop of Tab.
_NAMES = """
const named = (element, label) => element.setAttribute("aria-label", label)
const name = (root) => {
  for (const element of root.querySelectorAll("*")) {
    if (element.shadowRoot) name(element.shadowRoot)
    const is = (kind) => element.classList.contains(kind)
    if (is("bk-spin-btn-up")) named(element, "Next")
    if (is("bk-spin-btn-down")) named(element, "Previous")
    if (element.getAttribute("role") === "slider") {
      root.querySelector(".bk-slider-title").id = "name"
      element.setAttribute("aria-labelledby", "name")
    }
    if (is("bk-OnOffButton") || is("bk-ClickButton") || is("bk-tool-overflow")) {
      element.setAttribute("role", "button")
      named(element, element.title || "More tools")
    }
    // The tools behind it come into the document with its menu.
    if (is("bk-tool-overflow")) element.onclick = element.onkeyup = () => name(document)
    if (is("bk-events")) element.tabIndex = -1
  }
}
name(document)
"""


def build(document: Document, runs: Sequence[Watched], images: Callable[[int], str]) -> None:
    """Put the page of some runs, side by side, into a document of Bokeh.

    Args:
      document: of one visitor.
      runs: one or two.
      images: the address of a run's test images, by the run's number; see `MapPanel`.
    """
    with document.models.freeze():  # Bokeh looks at all models once, not after each.
        looks = [_add(document, each, number, images(number)) for number, each in enumerate(runs)]
    document.title = "jaxvae: " + ", ".join(one_line(each.run_dir.name) for each in runs)
    html = (resources.files("jaxvae.explore") / "page.html").read_text(encoding="utf-8")
    document.template = get_env().from_string(html)
    document.template_variables["runs"] = [one_line(str(each.run_dir)) for each in runs]
    for look in looks:
        document.add_periodic_callback(look, EVERY)
    document.js_on_event(DocumentReady, CustomJS(code=_NAMES))


def _add(document: Document, run: Watched, number: int, images: str) -> Callable[[], None]:
    """Add the panels of a run. Returns what looks at the run again."""
    view = View(document, run.model, number)
    about = text(f"about_{number}", style=controls.SMALL)
    training = TrainingPanel(view, run.run_dir)
    panels: list[Any] = [
        LatentsPanel(view), MapPanel(view, images), SamplesPanel(view), OwnPanel(view), BetweenPanel(view), training,
    ]  # fmt: skip
    for root in [about, *(root for panel in panels for root in panel.roots)]:
        document.add_root(root)

    def describe_it() -> None:
        found = view.model.run
        height, width, channels = found.image_shape
        facts = [describe(found.config), found.dataset, f"{height} x {width} x {channels}", f"step {found.step:,}"]
        trouble = "" if run.trouble is None else pictures.complaint(f"The newest model cannot be loaded: {run.trouble}")
        about.text = escape(", ".join(facts)) + trouble

    def look() -> None:
        training.look()
        if run.model is not view.model:
            view.renew(run.model)
        describe_it()

    describe_it()
    return look
