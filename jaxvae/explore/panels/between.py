"""Images between two images, each of the test split or of the visitor."""

from typing import Any

from bokeh.models import LayoutDOM

from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.view import Later, View

SOURCES = {"test": "test image", "drawing": "my drawing", "file": "my file"}
_MISSING = {
    "test": "There is no test image of this number.",
    "drawing": "Draw something above first.",
    "file": "Choose a picture file above first.",
}


class BetweenPanel:
    """See the module."""

    def __init__(self, view: View):
        self._view, self._label = view, view.label
        last = view.model.tested.total - 1
        self._later = Later(view.document, 1, lambda: [self._draw])
        self._ends = [_End(side, number, last) for side, number in (("First", 0), ("Second", min(1, last)))]
        for end in self._ends:
            end.source.on_change("value", lambda name, old, new: self._later.begin())
            end.number.on_change("value", lambda name, old, new: self._later.begin())
        shown = [control for end in self._ends for control in (end.source, end.number)]
        self._controls = controls.side_by_side(shown, f"between_controls_{view.number}")
        self._way = text(f"between_{view.number}")
        view.on_renewal(self._later.begin)
        view.on_own(self._later.begin)
        view.on_move(self._moved)
        self._draw()

    @property
    def roots(self) -> list[LayoutDOM]:
        """Its models."""
        return [self._controls, self._way]

    def _moved(self) -> None:
        if self._label != self._view.label:
            self._label = self._view.label
            self._later.begin()

    def _draw(self) -> None:
        view = self._view
        latents = []
        for end in self._ends:
            end.number.visible = end.source.value == "test"
            latents.append(end.latent(view))
            if latents[-1] is None:
                self._way.text = f'<p class="quiet">{_MISSING[end.source.value]}</p>'
                return
        start, stop = latents
        images = view.model.between(start, stop, view.label)
        way = pictures.element(pictures.row(images), f"{len(images)} images from the first to the second")
        told = f" as class {view.name_of_class()}" if view.model.conditional else ""
        self._way.text = (
            f"<figure>{way}<figcaption>The straight line between the two latents, decoded{told}.</figcaption></figure>"
        )


class _End:
    """One of the two images: where it comes from."""

    def __init__(self, side: str, number: int, last: int):
        self.source = controls.choice(f"{side} image", list(SOURCES.items()), "test")
        self.number = controls.number(f"{side} number", last, number)

    def latent(self, view: View) -> Any:
        """Its latent [L]; None if there is no such image."""
        if self.source.value == "test":
            number, last = self.number.value, view.model.tested.total - 1
            return None if number is None else view.model.latent(min(max(int(number), 0), last))
        image = view.own.get(self.source.value)
        return None if image is None else view.model.encode(image, view.label)
