"""The page on a model's latents, against jaxvae's own metrics and NumPy; who may ask for it; and in a browser."""

import asyncio
import base64
import contextlib
import io
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bokeh.document import Document
from hypothesis import given
from hypothesis import strategies as st
from image_files import FUZZ, mutated
from numpy.typing import NDArray
from PIL import Image, ImageOps
from runs import environment, train
from tornado.ioloop import IOLoop

import jaxvae
from jaxvae import cli
from jaxvae.errors import InputError
from jaxvae.evaluate import evaluate_run
from jaxvae.explore import __main__ as command
from jaxvae.explore import model as explorer
from jaxvae.explore import page, pictures
from jaxvae.explore.model import SAMPLES, explored
from jaxvae.explore.server import Server
from jaxvae.explore.view import View
from jaxvae.explore.watched import Watched

pytestmark = pytest.mark.unoptimized

CHROMIUM = shutil.which("chromium")
SMALL = ["--batch-size", "16", "--learning-rate", "0.01"]
RUNS = {
    "vae": ["--preset", "vae", "--hidden", "8", "--latent-size", "8"],
    "label": ["--preset", "vae", "--hidden", "8", "--latent-size", "2", "--condition", "label"],
    "prior": ["--preset", "vae", "--hidden", "8", "--latent-size", "3", "--prior", "label"],
    "ae": ["--preset", "notes-ae"],
    "two-layer": ["--preset", "iwae", "--architecture", "two-layer", "--samples", "2", "--hidden", "8", "4",
                  "--latent-size", "2", "--inputs", "grey"],
    "conv": ["--preset", "vae", "--architecture", "conv", "--hidden", "4", "--inputs", "static"],
    "colour": ["--preset", "vae", "--hidden", "8", "--latent-size", "3", "--channels", "3"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of `RUNS` with a name, of 64 training and 32 test images of 6 x 5 in three classes."""
    folder = tmp_path_factory.mktemp("explored")
    data = {"x_train": images[:64], "x_test": images[64:], "y_train": np.arange(64) % 3, "y_test": np.arange(32) % 3}
    np.savez(folder / "images.npz", **data)

    def run(name: str) -> Path:
        if not (folder / name).exists():
            flags = [*RUNS[name], *SMALL, "--dataset", str(folder / "images.npz"), "--epochs", "3"]
            assert train(*flags, "--run-dir", str(folder / name)) == 0
        return folder / name

    return run


Runs = Callable[[str], Path]


@pytest.mark.slow
def test_latents_are_ordered_by_the_kl_that_the_evaluation_measures(runs: Runs) -> None:
    model = explored(runs("vae"))
    measured = np.array(evaluate_run(runs("vae"))["kl_per_dimension"])
    assert model.unit == "KL" and model.tested.total == len(model.latents) == 32
    np.testing.assert_allclose(model.usage, measured, rtol=1e-4, atol=1e-6)
    assert model.order[0] == measured.argmax() and (np.diff(model.usage[model.order]) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ae", "label"])
def test_a_test_image_has_its_number_on_a_map_of_fewer_images(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explored(runs(name))
    monkeypatch.setattr(explorer, "MOST_IMAGES", 5)
    monkeypatch.setattr(explorer, "LEAST_IMAGES", 5)
    few = explored(runs(name))
    assert few.tested.mapped.tolist() == [0, 7, 15, 23, 31] and len(few.latents) == 5
    if name == "label":
        assert few.labels is not None and whole.labels is not None
        np.testing.assert_array_equal(few.labels, whole.labels[few.tested.mapped])
    for number in (7, 8, 31):
        np.testing.assert_array_equal(few.images([number]), whole.images([number]))
        assert few.label(number) == whole.label(number)
        np.testing.assert_allclose(few.latent(number), whole.latents[number], rtol=1e-4, atol=1e-5)
    document = Document()
    page.build(document, [Watched(runs(name))], lambda run: "@number.png")
    plot = document.get_model_by_name("map_0")
    points = next(one.data_source for one in plot.renderers if "number" in one.data_source.data)
    assert list(points.data["number"]) == few.tested.mapped.tolist()
    points.selected.indices = [1, 3]
    assert "2 images: #7, #23" in document.get_model_by_name("chosen_0").text
    document.get_model_by_name("picture_controls_0").children[0].value = 8
    for later in document.session_callbacks:
        later.callback()
    assert "Test image 8 itself" in document.get_model_by_name("original_0").text
    assert "5 of 32 test images, evenly spaced." in document.get_model_by_name("map_words_0").text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ae", "two-layer", "conv"])
def test_latents_are_those_of_the_model(name: str, runs: Runs) -> None:
    model, run = explored(runs(name)), jaxvae.load(runs(name))
    latents = run.encode(model.images(range(32)))
    np.testing.assert_allclose(model.latents, latents, rtol=1e-4, atol=1e-5)
    if model.unit == "variance":
        np.testing.assert_allclose(model.usage, latents.var(axis=0), rtol=1e-3, atol=1e-6)
    assert model.unit == ("KL" if name == "conv" else "variance")
    low, high = model.ranges.T
    assert (low <= latents.min(0)).all() and (latents.max(0) <= high).all() and (low < high).all()
    if name == "ae":  # Its codes end in a ReLU.
        assert (low >= 0).all()
    if name == "conv":  # Trained on binary images, so a grey one is made binary.
        grey = np.full((6, 5, 1), 200, np.uint8)
        np.testing.assert_allclose(model.encode(grey), run.encode(np.full((1, 6, 5, 1), 255, np.uint8))[0], rtol=1e-4)


@pytest.mark.slow
def test_decoding_is_that_of_the_model_for_any_number_of_latents(runs: Runs) -> None:
    model, run = explored(runs("label")), jaxvae.load(runs("label"))
    latents = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    for count in (1, 8, 11):
        expected = run.decode(latents[:count], label=np.full(count, 2))
        assert np.abs(model.decode(latents[:count], 2) - np.round(255 * expected)).max() <= 1
    low, high = model.ranges[1]
    middles = np.stack([np.full(8, 0.3), low + (np.arange(8) + 0.5) / 8 * (high - low)], axis=1)
    np.testing.assert_array_equal(model.traversal([0.3, 9.0], 1, 2), model.decode(middles, 2))
    way = model.between(latents[0], latents[1], 2)
    np.testing.assert_array_equal(way[[0, -1]], model.decode(np.repeat(latents[:2], 4, axis=0), 2)[[0, -1]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "label", "prior", "two-layer"])
def test_samples_at_temperature_1_are_the_models_and_at_0_the_priors_mean(name: str, runs: Runs) -> None:
    model, run = explored(runs(name)), jaxvae.load(runs(name))
    told = {"label": np.full(SAMPLES, 1)} if model.conditional else {}
    expected = np.round(255 * run.sample(SAMPLES, seed=5, **told))
    assert np.abs(model.samples(5, 1.0, 1) - expected).max() <= 1
    still = model.samples(5, 0.0, 1)
    assert (still == still[0]).all() and (model.samples(6, 0.0, 1) == still).all()
    if name == "prior":
        mean = run.variables["params"]["p_z"]["mean"]["table"][1]
        np.testing.assert_array_equal(still[0], model.decode(np.repeat(np.asarray(mean)[None], 8, 0), 1)[0])
    if name == "vae":
        np.testing.assert_array_equal(still[0], model.decode(np.zeros((8, 8)))[0])


@pytest.mark.slow
def test_an_autoencoder_says_that_it_cannot_be_sampled(runs: Runs) -> None:
    document = Document()
    page.build(document, [Watched(runs("ae"))], lambda run: "")
    assert "no prior" in document.get_model_by_name("samples_0").text
    assert document.get_model_by_name("samples_controls_0").children == []


def _png(image: Any, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def test_an_uploaded_picture_is_cropped_and_scaled_to_the_models_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    picture = Image.fromarray(pixels)
    found = pictures.uploaded(_png(picture), (8, 6, 3))
    np.testing.assert_array_equal(found, ImageOps.fit(picture, (6, 8), Image.Resampling.BICUBIC))
    assert pictures.uploaded(_png(picture), (8, 6, 1)).shape == (8, 6, 1)
    assert (pictures.uploaded(_png(picture), (8, 6, 4))[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("%%%", "base64"),
        ("", "empty"),
        (base64.b64encode(b"GIF89a or so").decode(), "your file"),
        (_png(Image.new("L", (64, 64)))[:60], "your file"),
        (_png(Image.new("1", (8000, 8000))), "50 million pixels"),
        (_png(Image.new("I;16", (8, 8))), "8 bits"),
        ("A" * (pictures.MOST_BYTES * 4 // 3 + 8), "more than 20 MB"),
    ],
    ids=lambda value: value[:12],
)
def test_hostile_uploads(content: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        pictures.uploaded(content, (6, 5, 1))
    assert "\n" not in str(caught.value)


@FUZZ
@given(st.data())
def test_damaged_uploads_are_read_or_refused(edit: st.DataObject) -> None:
    whole = base64.b64decode(
        _png(Image.linear_gradient("L").resize((20, 20)), edit.draw(st.sampled_from(["PNG", "GIF"])))
    )
    try:
        assert pictures.uploaded(base64.b64encode(mutated(whole, edit)).decode(), (6, 5, 1)).shape == (6, 5, 1)
    except InputError as error:
        message = str(error)
        assert "\n" not in message


def test_strokes_are_white_on_black_with_y_upwards() -> None:
    image = pictures.drawn([([0.1, 0.9], [0.75, 0.75], "#ffffff")], (16, 16, 1))
    assert image.shape == (16, 16, 1) and image[4, 3:13].min() > 100 and image[8:].max() == 0
    assert pictures.drawn([([0.5, 0.5], [0.1, 0.9], "#ff0000")], (16, 16, 3))[8, 8].tolist() == [191, 0, 0]  # 3/4
    wild = [([np.nan, 1e30, -5.0], [0.5, 0.5, 0.5], "#ffffff"), ([], [], "#ffffff")]
    assert pictures.drawn(wild, (16, 16, 1)).shape == (16, 16, 1)
    for wrong in ([([0.1], [0.1, 0.2], "#ffffff")], [([0.1], [0.1], "url(x)")]):
        with pytest.raises(ValueError, match=r"same shape|color"):
            pictures.drawn(wrong, (16, 16, 1))


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files} | {
        str(path): (path.stat().st_mtime_ns, b"") for path in (folder, *folder.rglob("*")) if path.is_dir()
    }


@pytest.mark.slow
def test_a_run_directory_is_only_read(runs: Runs) -> None:
    before = _state(runs("vae"))
    watched = Watched(runs("vae"))
    document = Document()
    page.build(document, [watched], lambda run: "")
    asyncio.run(watched.look())
    assert "reads its directory" in document.get_model_by_name("training_words_0").text
    assert document.get_model_by_name("training_pictures_0").text.count("<img") == 2
    assert _state(runs("vae")) == before


@pytest.mark.slow
def test_a_newer_checkpoint_is_taken_and_the_same_test_image_stays(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("vae"), run)
    watched = Watched(run)
    view = View(Document(), watched.model, 0)
    view.choose(7)
    old = watched.model
    asyncio.run(watched.look())
    assert watched.model is old
    assert train("--resume", "--run-dir", str(run), "--epochs", "5") == 0
    asyncio.run(watched.look())
    assert watched.trouble is None and watched.model.run.step > old.run.step
    view.renew(watched.model)
    np.testing.assert_allclose(view.latent, jaxvae.load(run).encode(old.images([7]))[0], rtol=1e-4, atol=1e-6)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints" / "99").mkdir(parents=True)
    asyncio.run(watched.look())
    assert watched.trouble is not None and view.model is watched.model


OWN = """
import jax.numpy as jnp
from flax import linen as nn


class Net(nn.Module):
    def setup(self):
        self.inner, self.outer = nn.Dense(3), nn.Dense(30)

    def encode(self, x):
        return self.inner(x.reshape(x.shape[0], -1))

    def __call__(self, x):
        return {"x_hat": nn.sigmoid(self.outer(self.encode(x))).reshape(x.shape)}


class Whole(Net):
    def decode(self, latent):
        return nn.sigmoid(self.outer(latent)).reshape(-1, 6, 5, 1)


class Broken(Whole):
    def decode(self, latent):
        raise KeyError("gone")


def loss(output, batch):
    return {"loss": jnp.square(output["x_hat"] - batch["image"]).sum((1, 2, 3))}
"""


@pytest.mark.slow
def test_models_of_the_users_own(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "explored_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = str(runs("ae").parent / "images.npz")
    for name in ("Net", "Whole", "Broken"):
        own = ["--model", f"explored_net:{name}", "--objective", "explored_net:loss"]
        assert train("--preset", "vae", *own, *SMALL, "--dataset", data, "--epochs", "1", "--run-dir", name) == 0
    for name, why in (
        ("Net", "the model Net has no method decode"),
        ("Broken", "of the model Broken failed: KeyError"),
    ):
        capsys.readouterr()
        assert cli.run(lambda name=name: command.main([name])) == cli.EXIT_BAD_INPUT
        assert why in (said := capsys.readouterr().err) and said.count("\n") == 1
    model = explored(Path("Whole"))
    assert model.latents.shape == (32, 3) and model.unit == "variance" and model.without_samples is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Tornado leaves an unbound socket.
def test_errors_before_anything_is_served(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert cli.run(lambda: command.main(words)) == cli.EXIT_BAD_INPUT
        return capsys.readouterr().err

    assert "no config.json" in refused(str(tmp_path))
    assert "--port must be from 0 to 65535" in refused(str(tmp_path), "--port", "70000")
    assert "--host 192.0.2.1 --port 0: cannot listen there" in refused(str(runs("ae")), "--host", "192.0.2.1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'jaxvae[explore]'" in refused(str(runs("ae")))


@pytest.fixture
def served(runs: Runs) -> Iterator[Callable[[str], str]]:
    """Serves a page on an address, in a thread; returns its URL."""
    stops: list[Callable[[], None]] = []

    def serve(host: str) -> str:
        ready, found = threading.Event(), list[str]()

        def run() -> None:
            loop = IOLoop()
            server = Server([watched], host, 0)
            found.append(server.url)
            stops.append(lambda: loop.add_callback(loop.stop))
            ready.set()
            server.serve()
            loop.close(all_fds=True)

        watched = Watched(runs("vae"))
        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(60)
        stops.append(thread.join)
        return found[0]

    yield serve
    for stop in stops:
        stop()


def _answer(url: str, **headers: str) -> int:
    """The status of a page."""
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def _websocket(url: str, origin: str) -> int:
    """The status of a handshake of the page's websocket."""
    return _answer(
        url.replace("/?", "/ws?") if "?" in url else f"{url}ws",
        Upgrade="websocket", Connection="Upgrade", Origin=origin,
        **{"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    )  # fmt: skip


@pytest.mark.slow
def test_another_address_needs_the_token_for_page_images_and_websocket(served: Any) -> None:
    url = served("0.0.0.0").replace("0.0.0.0", "127.0.0.1")
    address, _, token = url.partition("?token=")
    assert len(token) >= 32
    image = f"{address}image/0/3.png"
    for asked in (
        address,
        f"{address}?token=",
        f"{address}?token={token[:-1]}",
        f"{url}x",
        image,
        f"{address}autoload.js",
    ):
        assert _answer(asked) == 403, asked
    assert _answer(url) == _answer(f"{image}?token={token}") == 200
    assert _answer(f"{address}image/0/32.png?token={token}") == _answer(f"{address}image/1/0.png?token={token}") == 404
    assert _websocket(address, address[:-1]) == _websocket(f"{address}?token=x", address[:-1]) == 403
    assert _websocket(url, address[:-1]) != 403


def test_this_machine_needs_no_token_but_its_own_name(served: Any) -> None:
    url = served("127.0.0.1")
    assert "token" not in url and _answer(url) == 200
    assert _answer(url, Host="localhost:1234") == 200  # Through a tunnel.
    assert _answer(url, Host="example.org") == _answer(url, Host="127.0.0.1.example.org:80") == 403
    assert _websocket(url, "http://example.org") == 403
    assert _websocket(url, url[:-1]) != 403


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    player = pytest.importorskip("playwright.sync_api")
    with player.sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def _served(*run_dirs: Path) -> Iterator[str]:
    """The address of the page of runs, in a process of its own."""
    words = [sys.executable, "-m", "jaxvae.explore", *map(str, run_dirs)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment())
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    assert found is not None
    try:
        yield found[0]
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def browsed(chromium: Any, runs: Runs) -> Iterator[Any]:
    """The page of two runs, in a browser, and what was wrong in it."""
    with _served(runs("vae"), runs("label")) as url:
        yield _Browsed(chromium, url)


class _Browsed:
    """A page in a browser.

    Attributes:
      page: of Playwright, which looks into the shadows of Bokeh's elements.
      wrong: errors of the console and of the page.
      asked: the addresses of all requests.
    """

    def __init__(self, browser: Any, url: str, width: int = 1500, height: int = 1100):
        self.wrong, self.asked = list[str](), list[str]()
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.url = url
        self.page.goto(url)
        self.page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
        self.run, self.other = (self.page.locator("section.run").nth(number) for number in (0, 1))

    def picture(self, says: str, where: Any = None) -> Any:
        """The content of an image, by its alternative text; None if there is none."""
        found = (where or self.run).get_by_alt_text(says)
        # At once: an image may go between two questions.
        return found.evaluate_all("images => images.length ? images[0].getAttribute('src') : null")

    def changes(self, look: Callable[[], Any], act: Callable[[], Any]) -> None:
        """Assert that `act` changes what `look` sees, and wait for it."""
        before = look()
        act()
        for _ in range(3000):
            if look() != before:
                return
            self.page.wait_for_timeout(10)
        raise AssertionError(f"nothing changed after {act}")

    def press(self, control: Any, key: str) -> Callable[[], None]:
        """Focus a control and press a key."""
        return lambda: (control.focus(), self.page.keyboard.press(key))[1]


@pytest.mark.slow
def test_every_control_has_a_name_and_nothing_else_is_loaded(browsed: Any) -> None:
    said = browsed.page.locator("body").aria_snapshot()
    unnamed = re.findall(r"^ *- (?:slider|button|textbox|combobox|img)(?: \[.*\])?:?$", said, re.MULTILINE)
    assert unnamed == []
    assert len(re.findall(r"^ *- '?slider ", said, re.MULTILINE)) == 6 + 2 + 2
    assert {re.sub(r"^(http|ws)://([^/]+)/.*", r"\2", url) for url in browsed.asked if url[:5] != "data:"} == {
        browsed.url.split("/")[2]
    }


@pytest.mark.slow
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
    axis = lambda: run.get_by_role("img", name="Curves").screenshot()  # noqa: E731
    b.changes(axis, lambda: metric.select_option(label="kl"))
    assert b.wrong == []


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_telephone_shows_all_of_it_draws_in_colour_and_takes_a_dropped_file(
    chromium: Any, runs: Runs, tmp_path: Path
) -> None:
    with _served(runs("colour")) as url:
        b = _Browsed(chromium, url, 390, 844)
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
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))
