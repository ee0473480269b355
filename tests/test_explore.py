"""The page on a model's latents, against jaxvae's own metrics and NumPy; and who may ask for it."""

import asyncio
import base64
import io
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bokeh.document import Document
from explored_runs import SMALL, Runs, runs_in
from hypothesis import given
from hypothesis import strategies as st
from image_files import FUZZ, mutated
from numpy.typing import NDArray
from PIL import Image, ImageOps
from runs import train
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
from jaxvae.trained import TrainedRun

pytestmark = pytest.mark.unoptimized


@pytest.fixture(scope="module")
def runs(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_in(tmp_path_factory.mktemp("explored"), images)


@pytest.mark.long
def test_latents_are_ordered_by_the_kl_that_the_evaluation_measures(runs: Runs) -> None:
    model = explored(runs("vae"))
    measured = np.array(evaluate_run(runs("vae"))["kl_per_dimension"])
    assert model.unit == "KL" and model.tested.total == len(model.latents) == 32
    np.testing.assert_allclose(model.usage, measured, rtol=1e-4, atol=1e-6)
    assert model.order[0] == measured.argmax() and (np.diff(model.usage[model.order]) <= 0).all()


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.slow
def test_a_learned_prior_has_samples_and_no_temperature(runs: Runs) -> None:
    watched, document = Watched(runs("vamp")), Document()
    page.build(document, [watched], lambda run: "")
    controls = document.get_model_by_name("samples_controls_0").children
    assert [control.label for control in controls] == ["Draw again"]
    said = document.get_model_by_name("samples_0").text
    assert "This prior takes no temperature." in said and 'alt="24 samples"' in said
    expected = np.round(255 * jaxvae.load(runs("vamp")).sample(SAMPLES, seed=4))
    assert np.abs(watched.model.samples(4) - expected).max() <= 1
    assert (watched.model.samples(4, temperature=0.2) == watched.model.samples(4)).all()
    assert watched.model.unit == "variance"


def _image(html: str, says: str) -> NDArray[np.uint8]:
    """The image with this alternative text in a piece of HTML."""
    [source] = re.findall(rf'alt="{re.escape(says)}" src="data:image/png;base64,(.*?)"', html)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))


@pytest.mark.slow
def test_discrete_latents_are_a_picture_with_a_colour_for_each_code(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, document = Watched(runs("fsq")), Document()
    assert jaxvae.load(runs("fsq")).codes(watched.model.images([0])).shape == (1, 3, 3)
    # A model after three epochs has one code for all.
    codes = np.random.default_rng(0).integers(0, 12, (3, 3))
    monkeypatch.setattr(TrainedRun, "codes", lambda run, images: codes[None] + images[:, 0, 0] % 2)
    page.build(document, [watched], lambda run: "")
    for number in (0, 9):
        document.get_model_by_name("picture_controls_0").children[0].value = number
        for later in document.session_callbacks:
            later.callback()
        said = document.get_model_by_name("original_0").text
        assert "Its codes, a colour each" in said
        colours = _image(said, f"The codes of test image {number}")
        assert colours.shape == (3, 3, 3)
        same = (colours.reshape(9, 1, 3) == colours.reshape(1, 9, 3)).all(2)
        np.testing.assert_array_equal(same, codes.reshape(9, 1) == codes.reshape(1, 9))
    # The prior of the codes takes no temperature either.
    assert "This prior takes no temperature." in document.get_model_by_name("samples_0").text


@pytest.mark.slow
def test_points_have_the_colour_of_their_label_and_the_legend_names_it(runs: Runs) -> None:
    document = Document()
    page.build(document, [Watched(runs("vae"))], lambda run: "")
    plot = document.get_model_by_name("map_0")
    points = next(one.data_source for one in plot.renderers if "number" in one.data_source.data).data
    labels = [str(label) for label in np.arange(32) % 3]
    assert list(points["label"]) == labels
    [legend] = plot.legend
    named = {item.label.value: item.renderers[0].glyph.fill_color for item in legend.items}
    assert list(named) == ["0", "1", "2"] and len(set(named.values())) == 3
    assert list(points["colour"]) == [named[label] for label in labels]


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


@pytest.mark.long
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


@pytest.mark.long
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
