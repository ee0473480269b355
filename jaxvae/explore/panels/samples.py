"""Samples of the prior."""

from bokeh.models import LayoutDOM, Slider

from jaxvae.explore import controls, pictures
from jaxvae.explore.controls import text
from jaxvae.explore.panels.latents import class_select
from jaxvae.explore.view import Later, View


class SamplesPanel:
    """See the module. A model without a prior gets a sentence instead of controls."""

    def __init__(self, view: View):
        self._view, self._seed, self._label = view, 0, view.label
        self._grid = text(f"samples_{view.number}")
        self._later = Later(view.document, 1, lambda: [self._draw])
        self._temperature: Slider | None = None
        self._class = None
        shown: list[LayoutDOM] = []
        if view.model.without_samples is None:
            shown.append(controls.button("Draw again", self._again))
            if view.model.has_temperature:
                self._temperature = controls.slider(0, 1.5, 0.05, 1, "Temperature", width=180)
                self._temperature.on_change("value", lambda name, old, new: self._later.begin())
                shown.append(self._temperature)
            self._class = class_select(view)
            shown += [] if self._class is None else [self._class]
        self._controls = controls.side_by_side(shown, f"samples_controls_{view.number}")
        view.on_move(self._moved)
        view.on_renewal(self._draw)
        self._draw()

    @property
    def roots(self) -> list[LayoutDOM]:
        """Its models."""
        return [self._controls, self._grid]

    def _again(self) -> None:
        self._seed += 1
        self._draw()

    def _moved(self) -> None:
        if self._class is not None and self._label != self._view.label:
            self._label = self._view.label
            self._class.value = str(self._label)
            self._later.begin()

    def _draw(self) -> None:
        model = self._view.model
        if (why := model.without_samples) is not None:
            self._grid.text = f'<p class="quiet">{why}</p>'
            return
        note, temperature = '<p class="quiet">This prior takes no temperature.</p>', 1.0
        if self._temperature is not None:
            note, temperature = "", float(self._temperature.value)
        images = model.samples(self._seed, temperature, self._view.label)
        self._grid.text = note + pictures.grid(images, f"{len(images)} samples")
