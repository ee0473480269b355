"""The network part of `jaxvae.data.sources`: files of datasets through TensorFlow Datasets' cache.

TensorFlow Datasets (TFDS) knows sizes and SHA-256 sums of the files, and keeps them in
``<data dir>/downloads/<dataset>``, where the data dir is ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
The same folder and file names are used here, so TFDS and jaxvae share their downloads. TensorFlow
itself is not needed: nothing is extracted or prepared. `DIGESTS` are for files that TFDS does not know.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxvae.errors import InputError

BASE_URLS: dict[str, str] = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "svhn_cropped": "http://ufldl.stanford.edu/housenumbers/",
    "binarized_mnist": "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
    "emnist": "https://biometrics.nist.gov/cs_links/EMNIST/",
    "omniglot": "https://raw.githubusercontent.com/yburda/iwae/78a6075484bd7dd6f47a4bb9880d2295bc7a5220/datasets/OMNIGLOT/",
    "dsprites": "https://raw.githubusercontent.com/google-deepmind/dsprites-dataset/fa310c66517cfc1939d77fe17c725154efc97127/",
    "caltech101_silhouettes": "https://people.cs.umass.edu/~marlin/data/",
}
"""Dataset name -> where its files are downloaded from; where TFDS knows them, the same place."""


class Digest(NamedTuple):
    """A checksum of a file.

    Attributes:
      kind: MD5, or the SHA-1 by which Git names the file.
      value: in hexadecimal digits.
    """

    kind: Literal["MD5", "Git"]
    value: str

    def matches(self, path: Path) -> bool:
        """Whether a file has this checksum."""
        with path.open("rb") as file:
            if self.kind == "MD5":
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            else:
                header = f"blob {os.fstat(file.fileno()).st_size}\0".encode()
                found = hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False))
        return found.hexdigest() == self.value


DIGESTS: Mapping[str, Mapping[str, Digest]] = types.MappingProxyType(
    {
        # What the authors' repositories call these files.
        "omniglot": {"chardata.mat": Digest("Git", "016a3536ffe5e1d38e42563a18d7a78bfaf643ec")},
        "dsprites": {
            "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz": Digest("Git", "d98996d3f8ee1550e06b9d4ed78d0beb478910d5")
        },
        # The author gives none. This one is from the list of the NEVIS benchmark (google-deepmind/dm_nevis).
        "caltech101_silhouettes": {
            "caltech101_silhouettes_28_split1.mat": Digest("MD5", "4483e9c14b188fd09937f9ea6f9ea777")
        },
    }
)
"""Dataset name -> file name -> checksum, of files that TFDS does not know."""

IDX_DATASETS = ("mnist", "fashion_mnist", "kmnist")
"""Those that come in MNIST's four files."""

FILES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
"""The two files of `IDX_DATASETS` that hold images: training, test."""

LABEL_FILES = ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
"""The two files that hold their labels."""

DEADLINE_S = 4.0
"""Seconds within which the server must answer the first request, name lookup included."""


class Unreachable(InputError):
    """The server of a dataset does not answer: no network, a closed port, a proxy that refuses, a timeout."""


def cached_files(
    name: str,
    files: Sequence[str] = FILES,
    *,
    base_url: str | None = None,
    url_infos: Mapping[str, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    fetch: bool = True,
) -> list[Path]:
    """Return files of a dataset. Download those that the cache lacks.

    Files found in the cache need no network. A downloaded file enters the cache only after its size and
    SHA-256, or its checksum of `DIGESTS`, have been verified.

    Args:
      name: a key of `BASE_URLS`, or one with "/" and a part of that dataset.
      files: their names, such as `FILES` or `LABEL_FILES`.
      base_url: a mirror to use instead of that of `BASE_URLS`, with its trailing slash.
      url_infos: file name -> TFDS ``UrlInfo`` (size in bytes, SHA-256), or `Digest`; default: those of `DIGESTS`, or
        else those TFDS has for `name`.
      data_dir: TFDS data dir; default: ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
      fetch: False: download nothing, and raise `InputError` for a file that the cache lacks.

    Returns:
      The paths, in the order of `files`.

    Raises:
      Unreachable: the server did not answer within `DEADLINE_S` seconds.
      InputError: the download failed, had the wrong checksum, or could not be written.
    """
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.core.download import resource

    family = name.partition("/")[0]
    if url_infos is None and family in DIGESTS:
        url_infos = DIGESTS[family]
    elif url_infos is None:
        known = known_urls(family)
        url_infos = {file: known[BASE_URLS[family] + file] for file in files}
    base_url = BASE_URLS[family] if base_url is None else base_url
    data_dir = os.fspath(constants.get_default_data_dir() if data_dir is None else data_dir)
    if "://" in data_dir:
        raise InputError(f"{name}: TFDS_DATA_DIR must be a local folder, not {data_dir}; {_advice(name)}")
    downloads = Path(data_dir).expanduser() / "downloads"

    paths = []
    reached = False
    for file in files:
        url, info = base_url + file, url_infos[file]
        # TFDS names a file whose SHA-256 it does not know by its address alone.
        file_name = resource.get_dl_fname(url, None if isinstance(info, Digest) else info.checksum)
        # Older TFDS versions did not have a folder per dataset; newer ones still look there.
        candidates = (downloads / family / file_name, downloads / file_name)
        # TFDS's rule: a file counts once its INFO file exists. Without permission to look, os.path.exists is False.
        cached = (c for c in candidates if all(map(os.path.exists, (c, resource.get_info_path(c)))))
        path = next(cached, None)
        if path is None and not fetch:
            raise InputError(f"{name}: {file} is not in the cache")
        if path is None:
            if not reached:
                _require_reachable(name, url)
                reached = True
            path = candidates[0]
            _download(name, url, info, path)
        paths.append(path)
    return paths


def known_urls(family: str) -> Mapping[str, Any]:
    """TFDS's sizes and SHA-256 sums of a dataset's files, by URL."""
    import tensorflow_datasets
    from tensorflow_datasets.core.download import checksums

    # Some datasets have a folder of their own.
    own = Path(tensorflow_datasets.__file__).parent / "datasets" / family / "checksums.tsv"
    found: Mapping[str, Any] = checksums.load_url_infos(own) if own.exists() else checksums.get_all_url_infos()
    return found


def _advice(name: str) -> str:
    return f"to use files you have, pass --dataset {name} --data-dir DIR with the files in DIR"


def _require_reachable(name: str, url: str) -> None:
    """Raise unless the server answers a HEAD request with success within `DEADLINE_S`.

    TFDS retries ten times with growing pauses and without timeouts, so this must be checked before it
    starts. The thread also bounds what a socket timeout does not: name lookup, and the sum over several
    addresses or redirects.
    """
    import requests

    outcome: list[int | Exception] = []

    def head() -> None:
        try:
            outcome.append(requests.head(url, timeout=DEADLINE_S, allow_redirects=True).status_code)
        except Exception as error:  # an exception in a thread would otherwise be printed, and the cause lost
            outcome.append(error)

    thread = threading.Thread(target=head, name="jaxvae-reachable", daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    answer = outcome[0] if outcome else requests.Timeout()
    host = url.split("/")[2]
    if isinstance(answer, Exception):
        silent = isinstance(answer, requests.Timeout)
        reason = f"no answer within {DEADLINE_S:g} s" if silent else _root(answer)
        raise Unreachable(f"{name}: cannot reach {host} ({reason}); {_advice(name)}")
    if answer != 200:
        raise InputError(f"{name}: {url} answers with HTTP status {answer}; {_advice(name)}")


def _download(name: str, url: str, info: Any, path: Path) -> None:
    """Download `url` to `path` and write the INFO file by which TFDS recognises a complete download."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, resource, util

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # TFDS leaves unfinished and unverified files in its download folder, so give it a temporary one.
        scratch_dir = tempfile.TemporaryDirectory(prefix="incomplete.", dir=path.parent)
        with scratch_dir as scratch, _bars_on_terminal():
            verified_here = isinstance(info, Digest)
            manager = tfds.download.DownloadManager(
                download_dir=scratch,
                dataset_name=name,
                url_infos={} if verified_here else {url: info},
                force_checksums_validation=not verified_here,
            )
            downloaded = manager.download(url)
            if isinstance(info, Digest) and not info.matches(Path(downloaded)):
                what = f"{info.kind} checksum ({info.value[:12]}...)"
                raise InputError(
                    f"{name}: {url} does not have the expected {what}, so it was thrown away; {_advice(name)}"
                )
            # The INFO file first: the pair counts as cached once both are there.
            resource.get_info_path(downloaded).replace(resource.get_info_path(path))
            downloaded.replace(path)
    except download_manager.NonMatchingChecksumError as error:
        raise InputError(
            f"{name}: {url} does not have the expected size and SHA-256 ({info.checksum[:12]}...), "
            f"so it was thrown away; {_advice(name)}"
        ) from error
    except (requests.RequestException, util.DownloadError) as error:
        raise InputError(f"{name}: downloading {url} failed ({_root(error)}); {_advice(name)}") from error
    except OSError as error:
        where = f"cannot write to {path.parent} ({_root(error)})"
        raise InputError(f"{name}: {where}; set TFDS_DATA_DIR to a folder that can be written") from error


@contextlib.contextmanager
def _bars_on_terminal() -> Iterator[None]:
    """Show TFDS's progress bars on a terminal only. Its switch is global, so it is restored afterwards."""
    from tensorflow_datasets.core.utils import tqdm_utils

    before = tqdm_utils._active
    tqdm_utils.display_progress_bar(before and sys.stderr.isatty())
    try:
        yield
    finally:
        tqdm_utils.display_progress_bar(before)


def _root(error: BaseException) -> str:
    """The first cause of a chain of network errors, in a few words: the outer ones only quote it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:100]
