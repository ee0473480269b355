"""Pictures that are decoded once, into a file of the user's cache from which training streams them.

To decode a picture takes longer than to train on it, so it is done once and not in every epoch. The file takes as many
bytes as the pictures have values.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jaxvae import compilation_cache, memory
from jaxvae.data.reading import Images, Reading
from jaxvae.data.rows import Rows
from jaxvae.errors import InputError

_SPARE = 2**28  # Bytes of the disk that stay free.


def decoded_once(
    folder: Path, paths: Sequence[Path], reading: Reading, decode: Callable[[dict[Path, str]], Iterator[Images]]
) -> tuple[Rows, dict[Path, str]]:
    """The pictures of a folder, in a file that holds them one after the other.

    The file is found again as long as the folder holds the same files, with the same sizes and times, and they are to
    be read in the same way.

    Args:
      folder: of the pictures.
      paths: of all of them.
      reading: how they are read; its channels are known.
      decode: gives the pictures, uint8 [H, W, C], in order, and notes which cannot be read, and why.

    Returns:
      The pictures, and which could not be read, and why.

    Raises:
      InputError: there is not enough room, or the file cannot be written; and as `decode` does.
    """
    cache = compilation_cache.root(os.environ).with_name("jaxvae-pictures")
    stem = cache / _key(folder, paths, reading)
    file, facts = stem.with_suffix(".uint8"), stem.with_suffix(".json")
    # The facts are written last: without them, the file is not whole.
    if not (facts.is_file() and file.is_file()):
        with _told(cache):
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _replacing(file) as opened:
                bad: dict[Path, str] = {}
                shape = _written(opened, decode(bad), len(paths), cache)
            with _replacing(facts) as opened:
                faults = {os.fspath(path): fault for path, fault in bad.items()}
                opened.write(json.dumps({"shape": shape, "bad": faults}).encode())
    with _told(cache):
        found: dict[str, Any] = json.loads(facts.read_text())
        return Rows(file, 0, tuple(found["shape"])), {Path(path): fault for path, fault in found["bad"].items()}


def _key(folder: Path, paths: Sequence[Path], reading: Reading) -> str:
    """A name for pictures and how they are read."""
    from PIL import __version__

    how = [os.path.abspath(folder), reading.size, reading.resize, reading.channels, reading.skip_bad, __version__]
    digest = hashlib.sha256(json.dumps(how).encode("utf-8", "surrogateescape"))
    for path in paths:
        with contextlib.suppress(OSError):  # Reading it says what is wrong.
            state = os.stat(path)
            digest.update(os.fsencode(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0"))
    return digest.hexdigest()[:32]


def _written(file: IO[bytes], pictures: Iterator[Images], most: int, cache: Path) -> list[int]:
    """Write pictures, `most` of them at most; the shape of what was written."""
    count, shape = 0, tuple[int, ...]()
    for picture in pictures:
        if not count:
            shape, needed, free = picture.shape, most * picture.nbytes, shutil.disk_usage(cache).free
            if needed > free - _SPARE:
                raise InputError(
                    f"--stream: the decoded pictures take {memory.in_words(needed)}, and {cache} has "
                    f"{memory.in_words(free)} free: set XDG_CACHE_HOME to a directory with more room"
                )
        count += 1
        file.write(picture.tobytes())
    return [count, *shape]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, which takes the place of `path` once it is whole; several processes may write it at a time."""
    number, fresh = tempfile.mkstemp(dir=path.parent, prefix="incomplete.")
    try:
        with os.fdopen(number, "wb") as file:
            yield file
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


@contextlib.contextmanager
def _told(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--stream: {cache} cannot be written: {error.strerror or error}") from error
