"""`jaxvae.data.download` against a server on the loopback; no test needs a network or the home folder."""

import dataclasses
import gzip
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import PATIENCE
from test_originals import WRITERS

from jaxvae import data
from jaxvae.config import Config
from jaxvae.data import download, originals
from jaxvae.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
REAL_MNIST = ROOT.parent / "shared" / "data" / "mnist"
TRAIN, TEST = download.FILES


@dataclasses.dataclass
class Server:
    """A web server with `files` (name -> content). It records all requests in `requests`."""

    url: str
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    requests: list[str] = dataclasses.field(default_factory=list)
    only_head: bool = False
    cut: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            state.requests.append(f"{self.command} {self.path}")
            content = state.files.get(self.path.lstrip("/"))
            if content is None or (body and state.only_head):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) - state.cut])

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        state = Server(f"http://127.0.0.1:{web.server_port}/")
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        web.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the cache in a temporary folder, and use no proxy for the loopback server."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")


def idx_gz(images: data.Images) -> bytes:
    return gzip.compress(struct.pack(">4I", 0x803, *images.shape) + images.tobytes())


def url_info(content: bytes, name: str) -> Any:
    from tensorflow_datasets.core.download.checksums import UrlInfo

    return UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=name)


@pytest.fixture
def small(server: Server) -> dict[str, Any]:
    """Two small files on the server, and the keyword arguments of `cached_files` that go with them."""
    rng = np.random.default_rng(0)
    server.files = {
        TRAIN: idx_gz(rng.integers(0, 256, (12, 5, 4), np.uint8)),
        TEST: idx_gz(rng.integers(0, 256, (3, 5, 4), np.uint8)),
    }
    infos = {name: url_info(content, name) for name, content in server.files.items()}
    return {"base_url": server.url, "url_infos": infos}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_downloads_what_the_server_has(server: Server, small: dict[str, Any], tmp_path: Path) -> None:
    paths = download.cached_files("mnist", **small)
    assert [path.read_bytes() for path in paths] == [server.files[TRAIN], server.files[TEST]]
    assert {path.parent for path in paths} == {tmp_path / "tfds" / "downloads" / "mnist"}
    assert server.requests == [f"HEAD /{TRAIN}", f"GET /{TRAIN}", f"GET /{TEST}"]
    # Two files and their two INFO files; no scratch folder stays behind.
    assert len(list(paths[0].parent.iterdir())) == 4


def test_cached_files_need_no_network(server: Server, small: dict[str, Any]) -> None:
    paths = download.cached_files("mnist", **small)
    server.requests.clear()
    server.files.clear()
    assert download.cached_files("mnist", **small) == paths
    assert server.requests == []


def test_only_what_is_missing_is_downloaded(server: Server, small: dict[str, Any]) -> None:
    _, test = download.cached_files("mnist", **small)
    test.unlink()
    server.requests.clear()
    download.cached_files("mnist", **small)
    assert server.requests == [f"HEAD /{TEST}", f"GET /{TEST}"]


@pytest.mark.parametrize("dataset_name", ["mnist", None], ids=["current layout", "layout of older versions"])
def test_shares_the_cache_of_tfds(
    server: Server, small: dict[str, Any], tmp_path: Path, dataset_name: str | None
) -> None:
    import tensorflow_datasets as tfds

    manager = tfds.download.DownloadManager(
        download_dir=tmp_path / "tfds" / "downloads",
        dataset_name=dataset_name,
        url_infos={server.url + name: info for name, info in small["url_infos"].items()},
    )
    theirs = manager.download([server.url + TRAIN, server.url + TEST])
    server.requests.clear()
    ours = download.cached_files("mnist", **small)
    assert [os.fspath(path) for path in theirs] == [os.fspath(path) for path in ours]
    assert server.requests == []


def test_tfds_finds_what_was_downloaded_here(server: Server, small: dict[str, Any], tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    ours = download.cached_files("mnist", **small)
    server.requests.clear()
    manager = tfds.download.DownloadManager(
        download_dir=tmp_path / "tfds" / "downloads",
        dataset_name="mnist",
        url_infos={server.url + name: info for name, info in small["url_infos"].items()},
        force_checksums_validation=True,
    )
    theirs = manager.download([server.url + TRAIN, server.url + TEST])
    assert [os.fspath(path) for path in theirs] == [os.fspath(path) for path in ours]
    assert server.requests == []


@pytest.mark.parametrize("name", data.FILE_DATASETS)
def test_the_checksums_of_every_dataset_are_known(name: str) -> None:
    family = name.partition("/")[0]
    known, original = download.known_urls(family), originals.ORIGINALS.get(name)
    files = original.files if original else (*download.FILES, *download.LABEL_FILES)
    if family in download.DIGESTS:
        assert download.DIGESTS[family].keys() == set(files)
        digests = download.DIGESTS[family].values()
        assert all(len(digest.value) == {"MD5": 32, "Git": 40}[digest.kind] for digest in digests)
        return
    assert all(len(known[download.BASE_URLS[family] + file].checksum) == 64 for file in files)


# Of b"hello\n", as `md5sum` and `git hash-object` print them.
HELLO = {"MD5": "b1946ac92492d2347c6235b4d2611184", "Git": "ce013625030ba8dba906f756967f9e9ca394464a"}


@pytest.mark.parametrize("kind", HELLO)
def test_files_that_tfds_does_not_know_are_verified_here(
    kind: Any, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = download.Digest(kind, HELLO[kind])
    given: dict[str, Any] = {"base_url": server.url, "url_infos": {"chardata.mat": digest}}
    server.files = {"chardata.mat": b"hullo\n"}
    with pytest.raises(InputError, match=f"omniglot: .* {kind} checksum .* thrown away; to use files") as caught:
        download.cached_files("omniglot", ["chardata.mat"], **given)
    assert "\n" not in str(caught.value) and files_below(tmp_path) == []
    server.files = {"chardata.mat": b"hello\n"}
    [path] = download.cached_files("omniglot", ["chardata.mat"], **given)
    assert path.read_bytes() == b"hello\n" and path.parent == tmp_path / "tfds" / "downloads" / "omniglot"
    server.files.clear()
    server.requests.clear()
    assert download.cached_files("omniglot", ["chardata.mat"], **given) == [path]
    assert server.requests == [] and capfd.readouterr() == ("", "")


def test_tfds_shares_files_whose_checksum_it_does_not_know(server: Server, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    server.files = {"chardata.mat": b"hello\n"}
    infos = {"chardata.mat": download.Digest("Git", HELLO["Git"])}
    ours = download.cached_files("omniglot", ["chardata.mat"], base_url=server.url, url_infos=infos)
    server.requests.clear()
    manager = tfds.download.DownloadManager(
        download_dir=tmp_path / "tfds" / "downloads", dataset_name="omniglot", url_infos={}
    )
    assert [os.fspath(manager.download(server.url + "chardata.mat"))] == [os.fspath(path) for path in ours]
    assert server.requests == []


def test_corrupted_content_is_thrown_away(server: Server, small: dict[str, Any], tmp_path: Path) -> None:
    good = server.files[TRAIN]
    server.files[TRAIN] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(InputError, match=rf"^mnist: {server.url}{TRAIN} .*SHA-256.*--data-dir DIR") as caught:
        download.cached_files("mnist", **small)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []

    server.files[TRAIN] = good
    train, _ = download.cached_files("mnist", **small)
    assert train.read_bytes() == good


def test_a_connection_cut_short(server: Server, small: dict[str, Any], tmp_path: Path) -> None:
    server.cut = 20
    with pytest.raises(InputError, match=f"^mnist: downloading {server.url}{TRAIN} failed") as caught:
        download.cached_files("mnist", **small)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("only_head", [False, True], ids=["missing", "missing once asked for"])
def test_file_not_found_on_the_server(server: Server, small: dict[str, Any], only_head: bool) -> None:
    server.only_head = only_head
    if not only_head:
        server.files.clear()
    with pytest.raises(InputError, match="404") as caught:
        download.cached_files("mnist", **small)
    assert not isinstance(caught.value, download.Unreachable)
    assert TRAIN in str(caught.value)
    assert server.requests == [f"HEAD /{TRAIN}", f"GET /{TRAIN}"][: 1 + only_head]


def test_a_closed_port_is_unreachable(small: dict[str, Any], tmp_path: Path) -> None:
    small["base_url"] = f"http://127.0.0.1:{closed_port()}/"
    with pytest.raises(download.Unreachable, match=r"^mnist: cannot reach 127\.0\.0\.1:\d+ \(.*refused\).*DIR"):
        download.cached_files("mnist", **small)
    assert not (tmp_path / "tfds").exists()


def test_a_silent_server_is_unreachable_within_the_deadline(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download.DEADLINE_S < 5
    monkeypatch.setattr(download, "DEADLINE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        small["base_url"] = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        start = time.monotonic()
        with pytest.raises(download.Unreachable, match=r"no answer within 0\.3 s"):
            download.cached_files("mnist", **small)
    assert time.monotonic() - start < 3


def test_a_name_lookup_that_hangs_is_bounded_too(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        released.wait(30)
        raise socket.gaierror("no name server")

    monkeypatch.setattr(download, "DEADLINE_S", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(download.Unreachable, match="no answer"):
            download.cached_files("mnist", **small)
    finally:
        released.set()


def test_a_cache_that_cannot_be_written(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tfds").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=f"cannot write to {tmp_path}.*TFDS_DATA_DIR"):
        download.cached_files("mnist", **small)


def test_a_remote_cache_is_refused(small: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="TFDS_DATA_DIR must be a local folder, not gs://bucket/x"):
        download.cached_files("mnist", data_dir="gs://bucket/x", **small)


def test_no_noise_without_a_terminal(small: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    from tensorflow_datasets.core.utils import tqdm_utils

    download.cached_files("mnist", **small)
    assert capfd.readouterr() == ("", "")
    assert tqdm_utils._active


def test_progress_on_a_terminal(
    small: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download.cached_files("mnist", **small)
    assert "Dl Completed" in capsys.readouterr().err


@pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="the real files are not here")
def test_real_mnist_passes_the_real_checksums(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow_datasets.core.download import checksums

    known, every = checksums.get_all_url_infos(), (*download.FILES, *download.LABEL_FILES)
    infos = {file: known[download.BASE_URLS["mnist"] + file] for file in every}
    server.files = {file: (REAL_MNIST / file).read_bytes() for file in every}
    paths = download.cached_files("mnist", base_url=server.url, url_infos=infos)
    assert len(download.cached_files("mnist", download.LABEL_FILES, base_url=server.url, url_infos=infos)) == 2
    directly = data.load("mnist", REAL_MNIST)
    assert directly.train.shape == (60000, 28, 28, 1)
    assert directly.test.shape == (10000, 28, 28, 1)
    for path, images in zip(paths, (directly.train, directly.test), strict=True):
        assert gzip.decompress(path.read_bytes())[16:] == images.tobytes()


class TestLoad:
    """`data.load` with downloads."""

    @pytest.fixture
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = download.cached_files
        base_url = f"http://127.0.0.1:{closed_port()}/"
        monkeypatch.setattr(download, "cached_files", lambda name, *files: real(name, *files, base_url=base_url))

    @pytest.mark.usefixtures("offline")
    def test_auto_falls_back_to_digits_with_one_warning(self) -> None:
        warnings: list[str] = []
        loaded = data.load("auto", warn=warnings.append)
        assert loaded.name == "digits"
        assert len(loaded.train) == 1500
        [warning] = warnings
        assert "\n" not in warning
        for fragment in ("MNIST", "DIGITS", "cannot reach"):
            assert fragment in warning

    @pytest.mark.usefixtures("offline")
    def test_the_default_warning_goes_to_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        data.load("auto")
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("warning: ")
        assert err.count("\n") == 1

    @pytest.mark.usefixtures("offline")
    @pytest.mark.parametrize("name", data.FILE_DATASETS)
    def test_a_dataset_asked_for_by_name_never_falls_back(self, name: str) -> None:
        with pytest.raises(download.Unreachable, match=f"^{name}: .*--dataset {name} --data-dir DIR"):
            data.load(name, warn=lambda message: pytest.fail(message))

    @pytest.mark.usefixtures("offline")
    def test_auto_with_a_data_dir_never_falls_back(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"--data-dir .* has no file train-images-idx3-ubyte"):
            data.load("auto", tmp_path, warn=lambda message: pytest.fail(message))

    @pytest.mark.parametrize("name", ["auto", *download.IDX_DATASETS])
    def test_downloads(self, name: str, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        real = download.cached_files
        monkeypatch.setattr(download, "cached_files", lambda name, *files: real(name, *files, **small))
        loaded = data.load(name, warn=lambda message: pytest.fail(message))
        assert loaded.name == ("mnist" if name == "auto" else name)
        assert loaded.train.shape == (12, 5, 4, 1)
        assert loaded.test.shape == (3, 5, 4, 1)
        assert "cache" in loaded.source

    @pytest.mark.parametrize("name", WRITERS)
    def test_downloads_the_files_of_the_authors(
        self, name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train, test = WRITERS[name](tmp_path)
        family, files = name.partition("/")[0], originals.ORIGINALS[name].files
        server.files = {file: (tmp_path / file).read_bytes() for file in files}
        monkeypatch.setitem(download.BASE_URLS, family, server.url)
        if family in download.DIGESTS:  # TFDS does not know these.
            digests = {
                f: download.Digest("MD5", hashlib.md5(content).hexdigest()) for f, content in server.files.items()
            }
            monkeypatch.setattr(download, "DIGESTS", {family: digests})
        else:
            infos = {server.url + file: url_info(content, file) for file, content in server.files.items()}
            monkeypatch.setattr(download, "known_urls", lambda _: infos)
        loaded = data.load(name, labels=name != "binarized_mnist")
        np.testing.assert_array_equal(loaded.train, train)
        np.testing.assert_array_equal(loaded.test, test)
        assert server.requests == [f"HEAD /{files[0]}", *(f"GET /{file}" for file in files)]
        assert "cache" in loaded.source

    def test_labels_are_downloaded_if_they_are_wanted(
        self, server: Server, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = {"train-labels-idx1-ubyte.gz": [*range(10), 1, 2], "t10k-labels-idx1-ubyte.gz": [3, 4, 5]}
        for name, labels in wanted.items():
            server.files[name] = gzip.compress(struct.pack(">2I", 0x801, len(labels)) + bytes(labels))
            small["url_infos"][name] = url_info(server.files[name], name)
        real = download.cached_files
        monkeypatch.setattr(download, "cached_files", lambda *args, **given: real(*args, **small, **given))
        config = Config("vae", dataset="mnist", validation=0.0)
        images = data.load("mnist")
        assert images.split("train").keys() == {"image"}
        assert data.labels_beside(config, images) is None
        assert not any("labels" in request for request in server.requests)
        loaded = data.load("mnist", labels=True)
        assert [loaded.split(name)["label"].tolist() for name in ("train", "test")] == list(wanted.values())
        # Files that are there already tell the labels of what a run evaluates.
        found = data.labels_beside(config, images)
        assert found is not None and found.tolist() == [3, 4, 5]
        config = Config("vae", dataset="mnist", validation=5.0)
        images, loaded = (data.prepared(each, config) for each in (images, loaded))
        found = data.labels_beside(config, images)
        assert found is not None and found.tolist() == loaded.split("validation")["label"].tolist()

    def test_auto_does_not_hide_a_damaged_file(self, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        train, _ = download.cached_files("mnist", **small)
        train.write_bytes(train.read_bytes()[:-9])
        real = download.cached_files
        monkeypatch.setattr(download, "cached_files", lambda name, *files: real(name, *files, **small))
        with pytest.raises(InputError, match="cannot be read"):
            data.load("auto", warn=lambda message: pytest.fail(message))


@pytest.mark.slow
def test_import_is_cheap() -> None:
    heavy = ("PIL", "sklearn", "tensorflow_datasets", "requests", "tensorflow")
    code = f"import sys, jaxvae.data.sources; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert result.stdout.strip() == "[]"
