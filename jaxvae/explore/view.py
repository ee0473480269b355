"""What one visitor looks at: a place in the latent space of a model. The panels of the page show it and move it."""

from collections.abc import Callable
from html import escape

import numpy as np
from bokeh.document import Document
from numpy.typing import ArrayLike, NDArray

from jaxvae.explore.model import Explored, Floats


class View:
    """The place that a visitor looks at.

    Attributes:
      document: of the page.
      model: what is looked at; a run that trains replaces it.
      number: of the run on the page, from 0.
      latent: [L].
      label: the class that a conditional model decodes.
      chosen: the number of the test image at this place; None if it is another place.
      own: images [H, W, C] that the visitor brought, by "file" and "drawing".
    """

    def __init__(self, document: Document, model: Explored, number: int):
        self.document, self.model, self.number = document, model, number
        self.label = 0
        self.chosen: int | None = 0
        self.own: dict[str, NDArray[np.uint8]] = {}
        self.latent: Floats = model.latent(0)
        self._moved: list[Callable[[], None]] = []
        self._renewed: list[Callable[[], None]] = []
        self._brought: list[Callable[[], None]] = []
        self.choose(0)

    def on_move(self, call: Callable[[], None]) -> None:
        """Call this after each change of `latent` or `label`."""
        self._moved.append(call)

    def on_renewal(self, call: Callable[[], None]) -> None:
        """Call this after each change of `model`; those of `on_move` follow."""
        self._renewed.append(call)

    def on_own(self, call: Callable[[], None]) -> None:
        """Call this after each change of `own`."""
        self._brought.append(call)

    def brought(self) -> None:
        """Tell that `own` has changed."""
        self._tell(self._brought)

    def move(self, latent: ArrayLike) -> None:
        """Look at another place."""
        self.latent, self.chosen = np.array(latent, np.float32), None
        self._tell(self._moved)

    def choose(self, number: int) -> None:
        """Look at the place of a test image, and at its class."""
        self.chosen, self.latent = number, self.model.latent(number)
        label = self.model.label(number)
        if self.model.conditional and label is not None:
            self.label = label
        self._tell(self._moved)

    def take(self, label: int) -> None:
        """Decode another class."""
        self.label = label
        self._tell(self._moved)

    def renew(self, model: Explored) -> None:
        """Look at a newer state of the model: at the same test image, or at the same latent."""
        self.model = model
        if self.chosen is not None:
            self.latent = model.latent(self.chosen)
        self._tell(self._renewed)
        self._tell(self._moved)

    def name_of_class(self) -> str:
        """The name of `label`, as HTML."""
        return escape(self.model.name_of(self.label))

    def _tell(self, calls: list[Callable[[], None]]) -> None:
        for call in calls:
            call()


class Later:
    """Work that waits until nothing has changed for a moment, and then is done in parts, each for its own turn.

    Between the parts the page answers. What was left undone is dropped when it begins anew.
    """

    def __init__(self, document: Document, milliseconds: int, parts: Callable[[], list[Callable[[], None]]]):
        self._document, self._wait, self._parts = document, milliseconds, parts
        self._turn = 0

    def begin(self) -> None:
        """Do the work after a moment."""
        self._turn += 1
        turn = self._turn
        self._document.add_timeout_callback(lambda: self._do(turn, None), self._wait)

    def _do(self, turn: int, left: list[Callable[[], None]] | None) -> None:
        if turn != self._turn:
            return
        left = self._parts() if left is None else left
        if left:
            left[0]()
            rest = left[1:]
            # Not in the next turn of the loop: what came in the meantime goes first.
            self._document.add_timeout_callback(lambda: self._do(turn, rest), 1)
