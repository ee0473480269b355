"""Strict JAX for the whole suite, and what several test modules need."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Eight devices, so that what runs on several is tested on every machine. Must be set before JAX starts.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Many tests run the same small program, here or in other processes: what one has compiled, the next loads, also in the
# next run of the suite. The user's own caches stay as they are.
os.environ.setdefault("MPLCONFIGDIR", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")) + "/matplotlib")
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache" / "tests")
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
os.environ.pop("JAX_ENABLE_COMPILATION_CACHE", None)

import struct

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jax._src import compiler
from numpy.typing import NDArray

from jaxvae import compilation_cache

compilation_cache.use()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# No test is timed: a machine may be slow.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


# Compiling is most of the suite's time. Marks say how the programs of a test are compiled:
#   exact        the default: with `jax_disable_most_optimizations`, without LLVM's optimisations, in half the time. Two
#                programs that compute the same bits for a user still do
#   unoptimized  also without the option `QUICK` of XLA's CPU compiler, in a quarter of the time. What two programs
#                compute may differ in the last bit
#   optimized    as users compile: with `--optimized`, all tests
COMPILED = ("unoptimized", "exact", "optimized")
# XLA reads XLA_FLAGS once, so in this process the option is added where JAX makes those of a program.
QUICK = "xla_cpu_use_fusion_emitters"
XLA_FLAGS = os.environ["XLA_FLAGS"]
_whole_options = compiler.get_compile_options


def _options(*args: Any, **given: Any) -> Any:
    options = _whole_options(*args, **given)
    backend = given.get("backend")
    if QUICK in os.environ.get("XLA_FLAGS", "") and backend is not None and backend.platform == "cpu":
        options.env_option_overrides = [*options.env_option_overrides, (QUICK, False)]
    return options


compiler.get_compile_options = _options


def _has_quick() -> bool:
    """Whether this version of XLA has the option `QUICK`."""
    try:
        jax.jit(lambda: 0, compiler_options={QUICK: False}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


QUICK_FLAG = f" --{QUICK}=false" if _has_quick() else ""


def _optimizations(item: pytest.Item) -> int:
    """How its programs are compiled: a place in `COMPILED`. The closest mark holds; without one, `exact`."""
    if item.config.getoption("--optimized"):
        return COMPILED.index("optimized")
    marks = [mark.name for mark in item.iter_markers() if mark.name in COMPILED]
    return COMPILED.index(marks[0] if marks else "exact")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what comes too late. Sets how programs are compiled, in children too."""
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("not run: the time is up (--until)")
    optimizations = _optimizations(item)
    settings = str(int(optimizations < 2)), XLA_FLAGS + QUICK_FLAG * (optimizations == 0)
    if (os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"), os.environ["XLA_FLAGS"]) != settings:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"], os.environ["XLA_FLAGS"] = settings
        jax.config.update("jax_disable_most_optimizations", optimizations < 2)
        jax.clear_caches()  # JAX finds compiled programs without looking at these settings.


# These files take longest. They come last, the longest of them first: a fault in a quick test is seen early, and no
# worker is left alone with a long file in the end.
LONGEST = (
    *("survival", "docs", "processes", "members", "sweep", "compilation_cache", "train", "kinds", "evaluate"),
    *("parallel", "fitting", "extending", "benchmark", "torch_weights", "trained", "trainer"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    files = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}

    def place(item: pytest.Item) -> tuple[int, int, int]:
        # Within a file, what is compiled alike is together: what one test compiled is at hand for the next.
        return order.get(item.path.stem, -1), files[item.path], _optimizations(item)

    items.sort(key=place)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--optimized", action="store_true", help="compile the programs of all tests as users do")
    parser.addoption("--until", type=float, help="skip tests that would start after this time, in s since 1970")


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """[96, 6, 5, 1]: bright blobs at random places, so that there is something to learn."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:6, :5]
    centre = rng.uniform(0, 5, (96, 2, 1, 1))
    distance = (rows - centre[:, 0]) ** 2 + (cols - centre[:, 1]) ** 2
    return np.round(255 * np.exp(-distance / 3)).astype(np.uint8)[..., None]


@pytest.fixture
def image_file(images: NDArray[np.uint8], tmp_path: Path) -> Path:
    """An .npz file with 64 training and 32 test images of 6 x 5."""
    path = tmp_path / "images.npz"
    np.savez(path, train=images[:64], test=images[64:])
    return path


@pytest.fixture(scope="module")
def finished(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a finished run with these flags on the images of `image_file`, for tests that only read it.

    Tests of one file share it.
    """
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "images.npz", train=images[:64], test=images[64:])
    made: dict[tuple[str, ...], Path] = {}

    def run(*flags: str) -> Path:
        from runs import train

        if flags not in made:
            made[flags] = folder / str(len(made))
            assert train("--dataset", str(folder / "images.npz"), *flags, "--run-dir", str(made[flags])) == 0
        return made[flags]

    return run


@pytest.fixture
def mnist_dir(tmp_path: Path) -> Path:
    """IDX files of 40 training and 20 test images of 28 x 28, for where real MNIST would do as well."""
    rng = np.random.default_rng(1)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8).tobytes()
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + pixels)
    return tmp_path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser; tests that need it are skipped where there is none."""
    from browser import started

    with started() as browser:
        yield browser
