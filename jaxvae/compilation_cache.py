"""A cache of compiled programs in the user's cache directory: what was compiled once is loaded at the next start.

JAX looks a program up by what it computes and by how it is compiled ("Persistent compilation cache" in its
documentation), not by the processor it was compiled for. So each kind of machine has its own folder: machines may
share a home directory. A problem with the cache is never an error: programs are compiled instead.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache

from jaxvae.machine import cores, processor
from jaxvae.versions import package_versions

MOST_BYTES = 2**30  # Of all folders together; above that, the least recently used files are deleted.
_DIGEST_BYTES = hashlib.sha256().digest_size


def use(wanted: bool = True) -> None:
    """Let this process load and keep compiled programs. Call this before anything is compiled.

    If the user has set a cache in JAX, or has turned it off, that holds.

    Args:
      wanted: if False, compile everything and use no cache.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    if jax.distributed.is_initialized() and jax.default_backend() != "cpu":
        # Processes tune the kernels of a GPU together: the others would wait for one that loads a program.
        return
    try:
        folder = directory(os.environ)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK) or not _is_ours(folder):
            return
    except (OSError, RuntimeError):  # There may be no home directory.
        return
    # JAX has no public way to choose how files are kept. Its own are written in place, and a damaged one stays.
    compilation_cache.get_file_cache = _file_cache
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry", UserWarning)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA's own caches are for GPUs, and a compilation fails if one cannot be written.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _file_cache(path: str) -> Any:
    return Entries(Path(path)), path


def directory(environment: Mapping[str, str]) -> Path:
    """The folder of programs compiled on a machine like this one by these versions; it need not exist."""
    # XLA divides the loops of a CPU program among the threads it has when it compiles.
    threads = [cores(), *(environment.get(name) for name in ("NPROC", "XLA_FLAGS"))]
    kind = json.dumps([processor(), threads, package_versions(), sys.platform])
    return root(environment) / hashlib.sha256(kind.encode()).hexdigest()[:16]


def root(environment: Mapping[str, str]) -> Path:
    """The directory of the folders of all machines: in XDG_CACHE_HOME, or in the system's directory for caches."""
    if Path(given := environment.get("XDG_CACHE_HOME", "")).is_absolute():
        return Path(given) / "jaxvae"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "jaxvae"


def _is_ours(folder: Path) -> bool:
    """Whether only this user can have put programs there: this process would run them."""
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


class Entries:
    """The files of a folder, one per compiled program, as JAX's cache calls for them.

    A file begins with the SHA-256 of the rest, and appears by one rename: processes may share it, and a damaged one is
    ignored.

    Args:
      folder: of the files.
      most: bytes of all machines' folders together, above which files are deleted.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES):
        self._folder, self._most, self._pruned = folder, most, False

    def get(self, key: str) -> bytes | None:
        """What was put under `key`; None if there is nothing, or it is damaged."""
        path = self._folder / key
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # Marks it as used.
        digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return value if hashlib.sha256(value).digest() == digest else None

    def put(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`, if there is room."""
        with contextlib.suppress(OSError):
            file, fresh = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(file, "wb") as opened:
                    opened.write(hashlib.sha256(value).digest() + value)
                os.replace(fresh, self._folder / key)
            except OSError:
                os.unlink(fresh)
        if not self._pruned:
            self._pruned = True
            prune(self._folder.parent, self._most)


def prune(root: Path, most: int) -> None:
    """Delete the least recently used files in the folders in `root`, until they take at most `most` bytes."""
    files = []
    for path in root.glob("*/*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
