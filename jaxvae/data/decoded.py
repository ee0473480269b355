"""Pictures that are decoded once, into a file of the user's cache from which training streams them.

To decode a photograph and shrink it takes longer than to train on it, so it is done once and not in every epoch. The
file takes as many bytes as the pictures have values.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from jaxvae import compilation_cache, memory
from jaxvae.data.reading import Images, Reading
from jaxvae.data.rows import Rows, StoredArray
from jaxvae.errors import InputError

_SPARE = 2**28  # Bytes of the disk that stay free.
_RULES = 2  # Counts the ways in which pictures have been read.


def decoded_once(
    folder: Path,
    names: Sequence[str],
    reading: Reading,
    decode: Callable[[dict[str, str]], Iterator[Images]],
    most: int | None = None,
) -> tuple[Rows, dict[str, str]]:
    """The pictures of files, in one file that holds them one after the other.

    The file is found again as long as the folder holds the same files, with the same sizes and times, and they are to
    be read in the same way.

    Args:
      folder: of the pictures.
      names: of their files, as paths relative to `folder`.
      reading: how they are read; its channels are known.
      decode: gives the pictures, uint8 [H, W, C], in order, and notes which cannot be read, and why.
      most: how many pictures there are at most. Default: one in each file.

    Returns:
      The pictures, and which files could not be read, and why.

    Raises:
      InputError: there is not enough room, or the file cannot be written; and as `decode` does.
    """
    try:
        cache = compilation_cache.root(os.environ).with_name("jaxvae-pictures")
    except RuntimeError:
        raise InputError("--stream: there is no home directory for the decoded pictures: set XDG_CACHE_HOME") from None
    stem = cache / _key(folder, names, reading)
    file, facts = stem.with_suffix(".uint8"), stem.with_suffix(".json")
    with _told(cache):
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with stem.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Another process may be decoding the same pictures.
            found = _facts(facts, file)
            if found is None:
                bad: dict[str, str] = {}
                with _replacing(file) as opened:
                    shape = _written(opened, decode(bad), len(names) if most is None else most, cache)
                # The facts are written last: without them, the file is not whole.
                found = {"shape": shape, "bad": bad}
                with _replacing(facts) as opened:
                    opened.write(json.dumps(found).encode())
        rows = Rows([StoredArray(file, 0, tuple(found["shape"]))])
    return rows, found["bad"]


def _key(folder: Path, names: Sequence[str], reading: Reading) -> str:
    """A name for pictures and how they are read."""
    from PIL import __version__

    how = [
        _RULES,
        os.path.abspath(folder),
        reading.size,
        reading.resize,
        reading.channels,
        reading.skip_bad,
        __version__,
    ]
    digest = hashlib.sha256(json.dumps(how).encode("utf-8", "surrogateescape"))
    for name in names:
        with contextlib.suppress(OSError):  # Reading it says what is wrong.
            state = os.stat(os.path.join(folder, name))
            digest.update(os.fsencode(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0"))
    return digest.hexdigest()[:32]


def _facts(facts: Path, file: Path) -> dict[str, Any] | None:
    """What was noted of a file of decoded pictures; None: it is not there, or not whole."""
    try:
        found: dict[str, Any] = json.loads(facts.read_bytes())
        whole = file.stat().st_size == math.prod(found["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


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
    """A new file, which takes the place of `path` once it is whole. What a killed process left is overwritten."""
    fresh = path.with_name(f"{path.name}.incomplete")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _told(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--stream: {cache} cannot be written: {error.strerror or error}") from error
