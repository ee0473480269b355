"""The exported page in a browser, from a disk: each control with mouse and keyboard, against the model itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Opened, decoded
from numpy.typing import NDArray
from runs import train

import jaxvae
from jaxvae import cli
from jaxvae.export import __main__ as command
from jaxvae.export.page import page_of
from jaxvae.trained import TrainedRun

pytestmark = [pytest.mark.unoptimized, pytest.mark.long]

VAE = ["--preset", "vae", "--hidden", "8", "--latent-size", "3", "--batch-size", "16", "--learning-rate", "0.02",
       "--beta", "0.1"]  # fmt: skip
CLASSES = ["</script><b>", "b & c", "c"]


class Exported(Opened):
    """The page of a model, in a browser.

    Attributes:
      run: the model.
      image: the large canvas.
    """

    def __init__(self, browser: Any, file: Path, run: TrainedRun):
        super().__init__(browser, file.as_uri())
        self.run, self.image = run, self.page.get_by_role("img", name="The image that the model draws")
        self.sliders, self.samples = self.page.get_by_role("slider"), self.page.get_by_role("button", name="Sample ")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def slider(self, latent: int) -> Any:
        return self.page.get_by_role("slider", name=f"z{latent}")

    def latent(self) -> NDArray[np.float32]:
        """What the page decodes."""
        return np.array(self.page.evaluate("[...z]"), np.float32)

    def pixels(self, canvas: Any = None) -> NDArray[np.uint8]:
        """Those of a canvas, RGBA: [H, W, 4]."""
        found = decoded((canvas or self.image).evaluate("canvas => canvas.toDataURL()"))
        return np.asarray(found.convert("RGBA"))

    def drawn(self) -> list[int]:
        return self.pixels().ravel().tolist()

    def assert_draws(self, latent: NDArray[np.float32], **label: Any) -> None:
        """The canvas shows what the model decodes from this latent, and each slider has its number."""
        found = self.pixels()
        expected = np.round(255 * self.run.decode(latent[None], **label)[0])
        assert expected.std() > 3
        # Half a step from rounding, and 0.003 of weights in half precision.
        assert np.abs(found[..., :3] - expected).max() <= 1
        assert (found[..., 3] == 255).all()
        for which, value in enumerate(latent):
            said = self.page.locator(f"#z{which} + output").inner_text()
            assert float(said) == pytest.approx(value, abs=0.00501)
            # A slider ends at 3 and goes in steps.
            assert float(self.slider(which).input_value()) == pytest.approx(np.clip(value, -3, 3), abs=0.0251)


@pytest.fixture(scope="module")
def plain(chromium: Any, finished: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The page of a model of grey images, as the command writes it."""
    run, file = finished(*VAE, "--epochs", "20"), tmp_path_factory.mktemp("page") / "model.html"
    assert cli.run(lambda: command.main([str(run), "--out", str(file)])) == 0
    return Exported(chromium, file, jaxvae.load(run))


@pytest.fixture(scope="module")
def told(chromium: Any, images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The page of a model of images in colour that knows three classes, a colour each; two names hold markup."""
    folder = tmp_path_factory.mktemp("told")
    labels = np.arange(len(images)) % 3
    coloured = images * np.eye(3, dtype=np.uint8)[labels][:, None, None]
    data = {"x_train": coloured[:64], "x_test": coloured[64:], "y_train": labels[:64], "y_test": labels[64:]}
    np.savez(folder / "images.npz", **data)
    flags = [*VAE, "--dataset", str(folder / "images.npz"), "--condition", "label", "--epochs", "40"]
    assert train(*flags, "--run-dir", str(folder / "run")) == 0
    run = jaxvae.load(folder / "run")
    object.__setattr__(run, "record", {**run.record, "classes": CLASSES})
    (folder / "model.html").write_text(page_of(run))
    return Exported(chromium, folder / "model.html", run)


def test_sliders_move_the_image_with_mouse_and_keyboard(plain: Exported) -> None:
    p, page = plain, plain.page
    assert p.sliders.count() == 3
    p.assert_draws(p.latent())  # It begins with a draw.
    p.changes(p.drawn, p.button("Middle").click)
    p.assert_draws(np.zeros(3, np.float32))
    p.changes(p.drawn, p.press(p.slider(1), "ArrowRight"))
    p.assert_draws(np.float32([0, 0.05, 0]))
    page.keyboard.press("End")
    p.assert_draws(np.float32([0, 3, 0]))
    p.slider(2).focus()
    page.keyboard.press("Home")
    p.assert_draws(np.float32([0, 3, -3]))
    box = p.slider(0).bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    seen = [p.drawn()]
    for part in (0.6, 0.7, 0.8):  # The image follows while the mouse is down.
        page.mouse.move(box["x"] + part * box["width"], middle)
        seen.append(p.drawn())
    page.mouse.up()
    assert len({tuple(pixels) for pixels in seen}) == 4
    found = p.latent()
    assert 1.4 < found[0] < 2.1 and found[1:].tolist() == [3, -3]
    p.assert_draws(found)
    assert p.wrong == []


def test_buttons_with_mouse_and_keyboard(plain: Exported) -> None:
    p, page = plain, plain.page
    for act in (p.button("Random").click, p.press(p.button("Random"), "Enter")):
        before = p.latent()
        p.changes(p.drawn, act)
        assert (p.latent() != before).all()
        p.assert_draws(p.latent())
    p.press(p.button("Middle"), "Space")()
    p.assert_draws(np.zeros(3, np.float32))

    def shown() -> list[bytes]:
        return [p.pixels(canvas).tobytes() for canvas in p.samples.locator("canvas").all()]

    for act in (p.button("More samples").click, p.press(p.button("More samples"), "Enter")):
        p.changes(shown, act)
        assert len(set(shown())) == 24
    # The draws are of a standard normal.
    draws = page.evaluate("Array.from({ length: 20000 }, normal)")
    assert np.isfinite(draws).all() and abs(np.mean(draws)) < 0.05 and abs(np.std(draws) - 1) < 0.05
    assert p.wrong == []


def test_a_sample_is_gone_to_with_mouse_and_keyboard(plain: Exported) -> None:
    p = plain
    for number, act in ((5, lambda sample: sample.click()), (23, lambda sample: sample.press("Enter"))):
        p.button("Middle").click()
        sample = p.samples.nth(number)
        p.changes(p.drawn, lambda act=act, sample=sample: act(sample))
        np.testing.assert_array_equal(p.pixels(), p.pixels(sample.locator("canvas")))
        p.assert_draws(p.latent())
        # Moving on from there leaves the sample as it is.
        kept = p.pixels(sample.locator("canvas"))
        p.changes(p.drawn, p.press(p.sliders.first, "ArrowLeft"))
        np.testing.assert_array_equal(p.pixels(sample.locator("canvas")), kept)
    assert p.wrong == []


def test_tab_reaches_each_control_in_order_and_each_has_a_name(told: Exported) -> None:
    page = told.page
    page.locator("body").click(position={"x": 1, "y": 1})
    names = []
    for _ in range(1 + 3 + 3 + 24):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "() => { const e = document.activeElement; "
                "return e.ariaLabel || e.labels?.[0]?.firstChild.textContent.trim() || e.textContent }"
            )
        )
    order = [f"z{latent}" for latent in page.evaluate("model.order")]
    assert sorted(order) == ["z0", "z1", "z2"]
    samples = [f"Sample {number}" for number in range(1, 25)]
    assert names == ["Class", "Random", "Middle", "More samples", *order, *samples]


def test_the_class_changes_the_image_and_the_samples(told: Exported) -> None:
    p, page = told, told.page
    chosen = page.get_by_role("combobox", name="Class")
    assert chosen.locator("option").all_inner_texts() == CLASSES
    p.button("Middle").click()
    for label, act in (
        (2, lambda: chosen.select_option(label="c")),
        (1, p.press(chosen, "ArrowUp")),
        (0, lambda: chosen.select_option(index=0)),
    ):
        p.changes(p.drawn, act)
        p.assert_draws(np.zeros(3, np.float32), label=np.array([label]))
        own = [p.pixels(canvas)[..., :3].mean((0, 1)).argmax() for canvas in p.samples.locator("canvas").all()]
        assert np.mean(np.equal(own, label)) > 0.8  # A class is a colour.
    p.changes(p.drawn, p.press(p.slider(0), "End"))
    p.assert_draws(np.float32([3, 0, 0]), label=np.array([0]))
    assert p.wrong == []


def test_a_model_without_classes_shows_no_list(plain: Exported) -> None:
    assert plain.page.get_by_role("combobox").count() == 0


def test_the_page_asks_for_nothing_but_itself(plain: Exported, told: Exported) -> None:
    for each in (plain, told):
        assert each.url.startswith("file:///") and each.asked == [each.url] and each.wrong == []
