"""The decoded image, and a slider for each latent with the images along it."""

from collections.abc import Callable
from html import escape
from typing import Any

from bokeh.models import LayoutDOM, Select

from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.view import Later, View

SHOWN = 6  # Sliders at a time.
REST = 10  # Milliseconds after the image until the controls follow it.
PAUSE = 120  # Milliseconds without a change until the traversals are drawn.


class LatentsPanel:
    """See the module."""

    def __init__(self, view: View):
        self._view, self._first, self._setting = view, 0, False
        model, number = view.model, view.number
        self._picture = text(f"picture_{number}", style=f"img {{ border: 1px solid {controls.LINE}; }}")
        self._original = text(f"original_{number}", style="img { width: 96px; }")
        self._image = controls.number("Test image", model.tested.total - 1, 0)
        self._image.on_change("value", lambda name, old, new: self._choose(new))
        self._class = class_select(view)
        chosen = [self._image] if self._class is None else [self._image, self._class]
        self._chosen = controls.side_by_side(chosen, f"picture_controls_{number}")
        self._words = text(f"latents_words_{number}", style=controls.SMALL)
        count = min(SHOWN, len(model.order))
        self.sliders = [controls.slider(0, 1, 0.01, 0) for _ in range(count)]
        for place, slider in enumerate(self.sliders):
            slider.on_change("value", self._slid(place))
        self._strips = [text("") for _ in self.sliders]
        self._pairs = [
            controls.below_each_other([slider, strip], spacing=4)
            for slider, strip in zip(self.sliders, self._strips, strict=True)
        ]
        self._back = controls.button("More used", lambda: self._page(-count))
        self._next = controls.button("Less used", lambda: self._page(count))
        turns = [controls.side_by_side([self._back, self._next])] if len(model.order) > count else []
        self._stack = controls.below_each_other([*self._pairs, *turns], f"sliders_{number}")
        self._later = Later(view.document, PAUSE, self._traversals)
        self._rest = Later(view.document, REST, lambda: [self._settle])
        view.on_move(self._moved)
        view.on_renewal(lambda: self._page(0))
        self._page(0)
        self._moved()

    @property
    def roots(self) -> list[LayoutDOM]:
        """Its models."""
        return [self._picture, self._chosen, self._original, self._words, self._stack]

    def _shown(self) -> list[int]:
        order = self._view.model.order
        return [int(which) for which in order[self._first : self._first + len(self.sliders)]]

    def _page(self, by: int) -> None:
        """Show the sliders of other latents: so many further down the order."""
        model, count = self._view.model, len(self.sliders)
        last = (len(model.order) - 1) // count * count
        self._first = min(max(self._first + by, 0), last)
        shown = self._shown()
        self._setting = True
        for place, pair in enumerate(self._pairs):
            pair.visible = place < len(shown)
        for slider, which in zip(self.sliders, shown, strict=False):
            low, high = (float(end) for end in model.ranges[which])
            slider.update(
                start=low,
                end=high,
                step=max(round((high - low) / 100, 2), 0.01),
                title=f"z{which} ({model.usage[which]:.2g})",
                value=float(self._view.latent[which]),
            )
        self._setting = False
        self._back.disabled, self._next.disabled = self._first == 0, self._first == last
        measure = "KL term (nats, mean over the images)" if model.unit == "KL" else "variance over the images"
        self._words.text = (
            f"Latents {self._first + 1} to {self._first + len(shown)} of {len(model.order)}. The order, and the number "
            f"in brackets, is their {measure}. Below each slider: what it makes of this image."
        )
        self._later.begin()

    def _slid(self, place: int) -> Callable[[str, Any, Any], None]:
        def changed(name: str, old: float, new: float) -> None:
            if not self._setting:
                latent = self._view.latent.copy()
                latent[self._shown()[place]] = new
                self._view.move(latent)

        return changed

    def _choose(self, number: Any) -> None:
        if not self._setting and number is not None and 0 <= number < self._view.model.tested.total:
            self._view.choose(int(number))

    def _moved(self) -> None:
        view = self._view
        (image,) = view.model.decode(view.latent[None], view.label)
        self._picture.text = pictures.element(image, "The image decoded from the latents")
        self._rest.begin()
        self._later.begin()

    def _settle(self) -> None:
        """Show what can wait until the image is on its way."""
        view = self._view
        self._original.text = self._told()
        self._setting = True
        for slider, which in zip(self.sliders, self._shown(), strict=False):
            value = round(float(view.latent[which]), 4)
            if abs(slider.value - value) > 1e-3:  # Else it is the one that is being moved: do not stop it.
                slider.value = value
        self._image.value = view.chosen
        if self._class is not None:
            self._class.value = str(view.label)
        self._setting = False

    def _told(self) -> str:
        """The test image at this place, as HTML."""
        model, number = self._view.model, self._view.chosen
        if number is None:
            return '<p class="quiet">This place is not that of a test image.</p>'
        label = model.label(number)
        known = "" if label is None else f", class {escape(model.name_of(label))}"
        image = pictures.element(model.images([number])[0], f"Test image {number} itself")
        told = f"<figure><figcaption>Test image {number} itself{known}</figcaption>{image}</figure>"
        codes = model.code_map(number)
        if codes is None:
            return told
        image = pictures.element(codes, f"The codes of test image {number}")
        return f"{told}<figure><figcaption>Its codes, a colour each</figcaption>{image}</figure>"

    def _traversals(self) -> list[Callable[[], None]]:
        return [self._traversal(place, which) for place, which in enumerate(self._shown())]

    def _traversal(self, place: int, which: int) -> Callable[[], None]:
        def draw() -> None:
            view = self._view
            images = view.model.traversal(view.latent, which, view.label)
            low, high = view.model.ranges[which]
            says = f"Images for z{which} from {low:.1f} to {high:.1f}"
            self._strips[place].text = pictures.element(pictures.row(images), says)

        return draw


def class_select(view: View) -> Select | None:
    """A list of the classes of a conditional model, which the page's decoder takes; None for other models."""
    if not view.model.conditional:
        return None
    options = [(str(label), view.model.name_of(label)) for label in range(view.model.run.config.classes)]
    chosen = controls.choice("Class", options, str(view.label))
    chosen.on_change("value", lambda name, old, new: view.take(int(new)) if int(new) != view.label else None)
    return chosen
