"""The page on a model's latents in a browser: every control, and what changes on the page."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Opened, decoded
from explored_runs import Runs, runs_in, served
from numpy.typing import NDArray
from PIL import Image
from runs import free_address, train

import jaxvae
from jaxvae.trained import TrainedRun

pytestmark = [pytest.mark.unoptimized, pytest.mark.long]


@pytest.fixture(scope="module")
def runs(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_in(tmp_path_factory.mktemp("explored"), images)


class Browsed(Opened):
    """The page of one or two runs, in a browser.

    Attributes:
      run, other: the parts of the page about the first and the second.
    """

    def __init__(self, browser: Any, url: str, width: int = 1500, height: int = 1100):
        super().__init__(browser, url, width, height)
        self.page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
        self.run, self.other = (self.page.locator("section.run").nth(number) for number in (0, 1))

    def picture(self, says: str, where: Any = None) -> Any:
        """The content of an image, by its alternative text; None if there is none."""
        found = (where or self.run).get_by_alt_text(says)
        # At once: an image may go between two questions.
        return found.evaluate_all("images => images.length ? images[0].getAttribute('src') : null")


@pytest.fixture(scope="module")
def browsed(chromium: Any, runs: Runs) -> Iterator[Any]:
    """The page of two runs, in a browser, and what was wrong in it."""
    with served(runs("vae"), runs("label")) as url:
        yield Browsed(chromium, url)


def test_nothing_else_is_loaded(browsed: Any) -> None:
    hosts = {re.sub(r"^(http|ws)://([^/]+)/.*", r"\2", url) for url in browsed.asked if url[:5] != "data:"}
    assert hosts == {browsed.url.split("/")[2]}


def test_every_control_has_a_role_and_a_name(browsed: Any) -> None:
    """As Chromium tells them to a screen reader."""
    assert browsed.page.locator("body").aria_snapshot().count("slider ") == 6 + 2 + 2
    browsed.run.locator(".bk-tool-overflow").first.click()  # The tool behind it, too.
    teller = browsed.page.context.new_cdp_session(browsed.page)
    nodes = teller.send("Accessibility.getFullAXTree")["nodes"]
    browsed.page.keyboard.press("Escape")
    stops, images = [], []
    for node in nodes:
        told = {entry["name"]: entry["value"].get("value") for entry in node.get("properties", [])}
        role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
        if role == "image":
            images.append(name)
        elif told.get("focusable") and role not in ("RootWebArea", "option"):
            element = teller.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
            if element["attributes"][-2:] != ["tabindex", "-1"]:
                stops.append((role, name))
    assert all(name.strip() for name in images)
    assert {role for role, _ in stops} <= {"button", "slider", "textbox", "spinbutton", "combobox"}
    assert all(name.strip() for _, name in stops)
    named = [name for role, name in stops if role == "button"]
    for tool, count in {"Pan": 4, "Lasso Select": 2, "Wheel Zoom": 2, "Reset": 4, "More tools": 4, "Hover": 1}.items():
        assert named.count(tool) == count, tool
    assert sum(name.startswith("Box Zoom") for name in named) == 4


def test_map_sliders_samples_and_interpolation_with_mouse_and_keyboard(browsed: Any) -> None:
    b, page, run = browsed, browsed.page, browsed.run
    decoded = lambda: b.picture("The image decoded")  # noqa: E731
    box = run.get_by_role("group", name="Map").bounding_box()
    b.changes(decoded, lambda: page.mouse.click(box["x"] + 200, box["y"] + 200))
    run.get_by_text("not that of a test image").wait_for()
    b.changes(decoded, b.press(run.get_by_role("slider").first, "ArrowRight"))
    b.changes(lambda: b.picture("Images for z"), b.press(run.get_by_role("slider").nth(1), "ArrowLeft"))
    handle = run.get_by_role("slider").nth(2).bounding_box()
    page.mouse.move(handle["x"] + 5, handle["y"] + 5)
    page.mouse.down()
    b.changes(decoded, lambda: page.mouse.move(handle["x"] + 60, handle["y"] + 5))
    page.mouse.up()
    title = run.locator(".bk-slider-title").first
    b.changes(title.inner_text, b.press(run.get_by_role("button", name="Less used"), "Enter"))
    assert run.get_by_role("button", name="Less used").is_disabled()
    b.changes(title.inner_text, lambda: run.get_by_role("button", name="More used").click())
    b.changes(decoded, b.press(run.get_by_role("textbox", name="Test image"), "ArrowUp"))
    b.changes(lambda: b.picture("24 samples"), b.press(run.get_by_role("button", name="Draw again"), "Enter"))
    b.changes(lambda: b.picture("24 samples"), b.press(run.get_by_role("slider", name="Temperature"), "ArrowLeft"))
    b.changes(lambda: b.picture("8 images"), b.press(run.get_by_role("textbox", name="Second number"), "ArrowUp"))
    label = b.other.get_by_role("combobox", name="Class").first
    b.changes(lambda: b.picture("24 samples", b.other), lambda: label.select_option(index=2))
    assert b.other.get_by_role("combobox", name="Class").nth(1).input_value() == label.input_value()
    metric = run.get_by_role("combobox", name="Metric")
    axis = lambda: run.get_by_role("group", name="Curves").screenshot()  # noqa: E731
    b.changes(axis, lambda: metric.select_option(label="kl"))
    assert b.wrong == []


def test_hover_lasso_and_zoom(browsed: Any) -> None:
    b, page, run = browsed, browsed.page, browsed.run
    chart = run.get_by_role("group", name="Map")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    with page.expect_response(re.compile(r"/image/0/\d+\.png")) as answer:
        for x in range(60, int(box["width"]) - 20, 4):
            for y in (150, 250, 350):
                page.mouse.move(box["x"] + x, box["y"] + y)
            if any("/image/0/" in url for url in b.asked):
                break
    assert answer.value.status == 200 and answer.value.body()[:4] == b"\x89PNG"
    ranges = "Bokeh.documents[0].get_model_by_name('map_0').x_range.start"
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    b.changes(lambda: page.evaluate(ranges), lambda: page.mouse.wheel(0, -300))
    zoomed = page.evaluate(ranges)
    page.mouse.down()
    page.mouse.move(box["x"] + 240, box["y"] + 220, steps=4)
    page.mouse.up()
    assert page.evaluate(ranges) != zoomed
    run.locator(".bk-tool-icon-reset").first.click()
    run.locator(".bk-tool-icon-lasso-select").first.click()
    left, top, right, bottom = box["x"] + 50, box["y"] + 60, box["x"] + box["width"] - 20, box["y"] + 480
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 5)):
        page.mouse.move(x, y, steps=4)
    b.changes(lambda: b.picture("chosen test images"), page.mouse.up)
    assert b.wrong == []


def _ends(page: Any, plot: str) -> list[float]:
    """What a plot shows: the ends of its axes."""
    ends: list[float] = page.evaluate(
        f"(() => {{ const plot = Bokeh.documents[0].get_model_by_name('{plot}');"
        " return [plot.x_range.start, plot.x_range.end, plot.y_range.start, plot.y_range.end] })()"
    )
    return ends


@pytest.mark.parametrize(("plot", "label"), [("map_0", "Map of the test images' latents"), ("curves_0", "Curves")])
def test_pan_box_zoom_and_reset_of_a_plot(browsed: Any, plot: str, label: str) -> None:
    b, page = browsed, browsed.page
    chart = b.run.get_by_label(label).first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tool = {
        name: chart.get_by_role("button", name=name, exact=name == "Pan").first for name in ("Pan", "Box Zoom", "Reset")
    }

    def drag(x: float, y: float, to_x: float, to_y: float) -> None:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + to_x * box["width"], box["y"] + to_y * box["height"], steps=6)
        page.mouse.up()

    tool["Reset"].click()
    whole = _ends(page, plot)
    for pressed in (False, True):  # By mouse, then by keyboard.
        act = {name: b.press(each, "Enter") if pressed else each.click for name, each in tool.items()}
        act["Box Zoom"]()
        b.changes(lambda: _ends(page, plot), lambda: drag(0.4, 0.3, 0.7, 0.6))
        left, right, low, high = _ends(page, plot)
        assert whole[0] < left < right < whole[1] and whole[2] < low < high < whole[3]
        # The chart is wider than the frame of its axes, so the box is a larger part of that.
        assert 0.3 < (right - left) / (whole[1] - whole[0]) < 0.45
        act["Pan"]()
        b.changes(lambda: _ends(page, plot), lambda: drag(0.7, 0.5, 0.6, 0.5))
        moved = _ends(page, plot)
        assert moved[0] > left and moved[1] - moved[0] == pytest.approx(right - left)
        b.changes(lambda: _ends(page, plot), act["Reset"])
        assert _ends(page, plot) == pytest.approx(whole)
    assert b.wrong == []


def test_both_ends_of_an_interpolation(browsed: Any) -> None:
    b, run = browsed, browsed.run
    number = {side: run.get_by_role("textbox", name=f"{side} number") for side in ("First", "Second")}

    def choose(side: str, place: str) -> None:
        if number[side].input_value() != place:  # One change after the other: each must be seen.
            b.changes(lambda: b.picture("8 images"), lambda: (number[side].fill(place), number[side].press("Enter")))

    choose("First", "4")
    choose("Second", "9")
    forwards = _pixels(b.picture("8 images"))
    choose("First", "9")
    choose("Second", "4")
    backwards = _pixels(b.picture("8 images"))
    width = forwards.shape[1] // 8
    parts = [forwards[:, place * width : (place + 1) * width] for place in range(8)]
    assert np.abs(np.concatenate(parts[::-1], axis=1).astype(int) - backwards).max() <= 1
    b.changes(lambda: b.picture("8 images"), b.press(number["First"], "ArrowDown"))
    assert number["First"].input_value() == "8"
    up = run.get_by_role("region", name="Between two images").get_by_role("button", name="Next")
    b.changes(lambda: b.picture("8 images"), up.first.click)
    b.changes(lambda: b.picture("8 images"), up.last.click)
    assert [number[side].input_value() for side in ("First", "Second")] == ["9", "5"]
    source = run.get_by_role("combobox", name="Second image")
    b.changes(lambda: b.picture("8 images"), lambda: source.select_option(label="my drawing"))
    run.get_by_text("Draw something above first.").wait_for()
    number["Second"].wait_for(state="hidden")
    assert number["First"].is_visible()
    b.changes(lambda: b.picture("8 images"), b.press(source, "ArrowUp"))
    number["Second"].wait_for()
    assert b.wrong == []


_FOCUSED = """() => {
  let root = document, element = null
  while (root?.activeElement) [element, root] = [root.activeElement, root.activeElement.shadowRoot]
  const named = element.getRootNode().getElementById(element.getAttribute("aria-labelledby"))
  return element.ariaLabel ?? (named ?? element.labels?.[0] ?? element).textContent
}"""


def test_tab_moves_from_control_to_control(chromium: Any, runs: Runs) -> None:
    with served(runs("vae")) as url:
        b = Browsed(chromium, url)
        b.page.locator("h1").click()

        def walk(key: str) -> list[str]:
            names = []
            for _ in range(len(expected)):
                b.page.keyboard.press(key)
                names.append(re.sub(r"z\d.*", "z", b.page.evaluate(_FOCUSED)).strip())
            return names

        spinner = ["Next", "Previous"]
        zoom = "Box Zoom (either x, y or both dimensions)"
        expected = [
            "Pan", "Lasso Select", zoom, "Wheel Zoom", "Reset", "More tools",
            "Test image", *spinner, *["z"] * 6, "Less used",
            "Draw again", "Temperature: 1.00", "Picture file: drop it here, or choose it (up to 20 MB)", "Clear",
            "First image", "First number", *spinner, "Second image", "Second number", *spinner,
            "Metric", "Pan", "Box Zoom", "Reset", "More tools",
        ]  # fmt: skip
        assert walk("Tab") == expected
        b.page.keyboard.press("Tab")  # Out of the page,
        assert walk("Shift+Tab") == expected[::-1]  # and back into it.
        b.page.close()


def test_two_runs_lie_side_by_side_or_below_each_other(browsed: Any) -> None:
    def boxes(name: str) -> list[Any]:
        return [each.get_by_role("region", name=name).bounding_box() for each in (browsed.run, browsed.other)]

    names = ("Map of the test images", "Samples", "Training")
    for name in names:
        one, other = boxes(name)
        assert one["y"] == other["y"] and one["x"] + one["width"] < other["x"]
        assert one["width"] == pytest.approx(other["width"], abs=1)
    try:
        browsed.page.set_viewport_size({"width": 900, "height": 1100})
        for name in names:
            one, other = boxes(name)
            assert one["x"] == other["x"] and one["y"] + one["height"] < other["y"]
    finally:
        browsed.page.set_viewport_size({"width": 1500, "height": 1100})


def test_a_run_that_trains_is_followed(chromium: Any, runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("vae"), run)

    def decoded_first(at: TrainedRun) -> NDArray[np.float64]:
        found = at.decode(at.encode(np.load(runs("vae").parent / "images.npz")["x_test"][:1]))[0]
        return np.asarray(np.round(255 * found), np.float64)

    with served(run) as url:
        b = Browsed(chromium, url)
        before = jaxvae.load(run)
        b.run.get_by_text(f"step {before.step}").first.wait_for()
        assert np.abs(_pixels(b.picture("The image decoded"))[..., :1] - decoded_first(before)).max() <= 1
        steps = (
            "Bokeh.documents[0].get_model_by_name('curves_0').renderers"
            ".filter(one => one.name == 'validation').map(one => Array.from(one.data_source.data.step))[0]"
        )
        points = b.page.evaluate(steps)
        assert len(points) == 3
        samples = b.picture("Samples, epoch 3")
        assert train("--resume", "--run-dir", str(run), "--epochs", "9") == 0
        after = jaxvae.load(run)
        assert after.step == 3 * before.step
        b.run.get_by_text(f"step {after.step}").first.wait_for(timeout=120_000)
        expected = decoded_first(after)
        assert np.abs(expected - decoded_first(before)).max() > 3
        for _ in range(3000):
            if np.abs(_pixels(b.picture("The image decoded"))[..., :1] - expected).max() <= 1:
                break
            b.page.wait_for_timeout(10)
        else:
            raise AssertionError("the picture is not that of the newer model")
        assert b.picture("Samples, epoch 9") not in (None, samples)
        found = b.page.evaluate(steps)
        assert len(found) == 9 and found[:3] == points and found[-1] == after.step
        b.run.get_by_text(re.compile(f"Epoch 9 of 9, step {after.step}")).wait_for()
        assert b.wrong == []
        b.page.close()


def test_the_flags_of_the_command(chromium: Any, images: NDArray[np.uint8], tmp_path: Path, mnist_dir: Path) -> None:
    """`--best`, `--dataset`, `--data-dir` and `--port`: the images are no more where they were in training."""
    np.savez(tmp_path / "images.npz", train=images[:64], test=images[64:])
    small = ["--preset", "vae", "--hidden", "8", "--latent-size", "2", "--batch-size", "16", "--checkpoint-every", "1"]
    file = ["--dataset", str(tmp_path / "images.npz"), "--learning-rate", "2", "--epochs", "3"]  # It gets worse.
    assert train(*small, *file, "--run-dir", str(tmp_path / "moved")) == 0
    moved = (tmp_path / "images.npz").rename(tmp_path / "elsewhere.npz")
    best = jaxvae.load(tmp_path / "moved", best=True).step
    assert best < jaxvae.load(tmp_path / "moved").step
    port = free_address().partition(":")[2]
    with served(tmp_path / "moved", "--best", "--dataset", moved, "--port", port) as url:
        assert url == f"http://127.0.0.1:{port}/"
        b = Browsed(chromium, url)
        b.run.get_by_text(f"step {best}").first.wait_for()
        np.testing.assert_array_equal(_pixels(b.picture("Test image 0 itself"))[..., :1], images[64])
        assert b.wrong == []
        b.page.close()

    data = ["--dataset", "mnist", "--data-dir", str(mnist_dir / "there"), "--epochs", "1"]
    shutil.copytree(mnist_dir, mnist_dir / "there", ignore=shutil.ignore_patterns("*.npz", "moved", "there"))
    assert train(*small, *data, "--run-dir", str(tmp_path / "mnist")) == 0
    there = (mnist_dir / "there").rename(mnist_dir / "here")
    first = (there / "t10k-images-idx3-ubyte").read_bytes()[16 : 16 + 28 * 28]
    with served(tmp_path / "mnist", "--data-dir", there) as url:
        b = Browsed(chromium, url)
        shown = _pixels(b.picture("Test image 0 itself"))[..., 0]
        assert shown.tobytes() == first
        b.page.close()


def test_a_file_and_a_drawing_are_reconstructed_and_interpolated(browsed: Any, tmp_path: Path) -> None:
    b, page, run = browsed, browsed.page, browsed.run
    Image.linear_gradient("L").save(tmp_path / "ramp.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    given = run.get_by_label("Picture file")
    b.changes(lambda: b.picture("Your file"), lambda: given.set_input_files(tmp_path / "ramp.png"))
    b.changes(
        lambda: b.picture("8 images"),
        lambda: run.get_by_role("combobox", name="First image").select_option(label="my file"),
    )
    b.changes(run.get_by_role("alert").count, lambda: given.set_input_files(tmp_path / "bad.png"))
    assert "not a PNG" in run.get_by_role("alert").inner_text()
    run.get_by_text("Choose a picture file above first").wait_for()
    canvas = run.get_by_role("img", name="Canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 100, steps=5)
    b.changes(lambda: b.picture("Your drawing"), page.mouse.up)
    lit = (_pixels(b.picture("Your drawing"))[:, :5] > 0).sum()
    page.mouse.move(box["x"] + 30, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 30, steps=5)
    b.changes(lambda: b.picture("Your drawing"), page.mouse.up)
    assert (_pixels(b.picture("Your drawing"))[:, :5] > 0).sum() > lit  # A second stroke joins the first.
    drawing = run.get_by_role("combobox", name="First image")
    b.changes(lambda: b.picture("8 images"), lambda: drawing.select_option(label="my drawing"))
    b.changes(lambda: b.picture("Your drawing"), b.press(run.get_by_role("button", name="Clear"), "Enter"))
    assert b.wrong == []


def test_a_telephone_shows_all_of_it_draws_in_colour_and_takes_a_dropped_file(
    chromium: Any, runs: Runs, tmp_path: Path
) -> None:
    with served(runs("colour")) as url:
        b = Browsed(chromium, url, 390, 844)
        page, run = b.page, b.run
        assert page.evaluate("document.documentElement.scrollWidth") == 390  # Nothing is cut off.
        assert run.get_by_role("group", name="Map").bounding_box()["width"] <= 390

        run.get_by_label("Colour").fill("#ff0000")
        canvas = run.get_by_role("img", name="Canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 10, box["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 10, box["y"] + box["height"] - 10, steps=5)
        b.changes(lambda: b.picture("Your drawing"), page.mouse.up)
        left = _pixels(b.picture("Your drawing"))[:, :5]
        assert left[..., 0].max() > 100 and left[..., 1:].max() == 0

        Image.new("RGB", (12, 10), (0, 0, 255)).save(tmp_path / "blue.png")
        given = run.get_by_label("Picture file")
        given.scroll_into_view_if_needed()
        box = given.bounding_box()
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        files = {"items": [], "files": [str(tmp_path / "blue.png")], "dragOperationsMask": 1}
        mouse = page.context.new_cdp_session(page)

        def drop() -> None:
            for kind in ("dragEnter", "dragOver", "drop"):
                mouse.send("Input.dispatchDragEvent", {"type": kind, **where, "data": files})

        b.changes(lambda: b.picture("Your file"), drop)
        assert (_pixels(b.picture("Your file"))[:, :5] == [0, 0, 255]).all()
        assert b.wrong == []


def _pixels(source: str) -> NDArray[np.uint8]:
    """The pixels of an image in the page, RGB."""
    return np.asarray(decoded(source).convert("RGB"))
