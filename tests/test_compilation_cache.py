"""The cache of compiled programs: what it saves, what becomes of damage, and that it changes no result."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
from runs import PATIENCE, SMALL, Job, assert_same_run, caching, environment

from jaxvae import cli, compilation_cache, machine, versions
from jaxvae.compilation_cache import Entries

pytestmark = pytest.mark.unoptimized

# Trains as the command line does, and prints how often JAX reported each event of its cache.
COUNTING = """
import json, sys
import jax
from jaxvae import cli
from jaxvae.train.__main__ import main
said = {}
def count(name, **more):
    said[name] = said.get(name, 0) + 1
jax.monitoring.register_event_listener(count)
code = cli.run(lambda: main(sys.argv[1:]))
print(json.dumps(said))
cli.leave(code)
"""
HITS, MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class Training:
    """A run in a process of its own."""

    def __init__(self, args: Sequence[str], run_dir: Path, env: dict[str, str]):
        self.run_dir = run_dir
        self._process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, *args, "--run-dir", str(run_dir)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def counts(self) -> dict[str, int]:
        """The counts, once it has ended without an error; it must have printed no warning."""
        out, err = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, err
        assert not re.search("Warning|warning:|error:|Error|cpu_aot_loader|compilation cache", err), err
        counts: dict[str, int] = json.loads(out)
        return counts


@pytest.fixture
def start(image_file: Path, tmp_path: Path) -> Callable[..., Training]:
    args = ["--preset", "vae", *SMALL, "--dataset", str(image_file), "--epochs", "1", "--log-every", "1"]

    def start(name: str, caches: Path | None = None, *more: str, **env: str) -> Training:
        return Training([*args, *more], tmp_path / name, {**caching(caches or tmp_path / "caches"), **env})

    return start


def entries(caches: Path) -> list[Path]:
    return sorted((caches / "jaxvae").glob("*/*"))


@pytest.mark.long
def test_what_was_compiled_once_is_loaded_and_computes_the_same(start: Callable[..., Training], tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    together = [start("one"), start("two")]  # At once, both with nothing to load.
    for run in together:
        assert run.counts()[MISSES] > 0
    again = start("again")
    counts = again.counts()
    assert counts[HITS] > 0 and MISSES not in counts
    for run in together:
        assert_same_run(run.run_dir, again.run_dir)
    (folder,) = (caches / "jaxvae").iterdir()
    assert folder == compilation_cache.directory(caching(caches)) and folder.stat().st_mode & 0o077 == 0
    assert all(Entries(folder).get(path.name) is not None for path in entries(caches))

    for number, path in enumerate(entries(caches)):
        content = bytearray(path.read_bytes())
        content[len(content) * (number % 3) // 3] ^= 1
        path.write_bytes(content[: len(content) // 2] if number % 2 else content)
    damaged = start("damaged")
    assert damaged.counts()[MISSES] == counts[HITS]
    assert_same_run(damaged.run_dir, again.run_dir)
    assert MISSES not in start("mended").counts()


@pytest.mark.long
def test_the_cache_can_be_turned_off_and_the_users_choice_holds(start: Callable[..., Training], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(theirs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    runs = [start("off", None, "--no-compilation-cache"), start("disabled", JAX_ENABLE_COMPILATION_CACHE="0")]
    for run in runs:
        assert not {HITS, MISSES} & run.counts().keys()
    assert start("chosen", **chosen).counts()[MISSES] > 0
    assert any(theirs.iterdir()) and not entries(tmp_path / "caches")
    files = len(list(theirs.iterdir()))
    assert not {HITS, MISSES} & start("off, of two", None, "--no-compilation-cache", **chosen).counts().keys()
    assert len(list(theirs.iterdir())) == files


@pytest.mark.long
def test_an_unusable_cache_directory_is_not_used(start: Callable[..., Training], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert MISSES not in start("no folder", tmp_path / "file").counts()
    folder = compilation_cache.directory(caching(tmp_path / "open"))
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # Anybody could have put a program there.
    assert MISSES not in start("open to all", tmp_path / "open").counts()
    assert not any(folder.iterdir())


@pytest.mark.long
def test_the_processes_of_a_job_share_a_cache(image_file: Path, tmp_path: Path) -> None:
    args = ["--preset", "vae", *SMALL, "--dataset", str(image_file), "--epochs", "1"]
    for name in ("first", "again"):
        job = Job([*args, "--run-dir", str(tmp_path / name)], env=caching(tmp_path / "caches"))
        codes, said = job.wait()
        assert codes == [0, 0] and not any("arning" in text or "cpu_aot_loader" in text for text in said)
    assert_same_run(tmp_path / "first", tmp_path / "again")
    assert entries(tmp_path / "caches")


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("train.__main__", ["--dataset", "digits"]),
        ("sweep.__main__", ["--dataset", "digits"]),
        ("evaluate", ["run"]),
        ("generate", ["run", "--out", "new.png"]),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--no-compilation-cache"]])
def test_every_command_that_computes_asks_for_the_cache(
    command: str, args: list[str], flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Asked(Exception):
        pass

    def use(wanted: bool) -> None:
        raise Asked(wanted)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compilation_cache, "use", use)
    monkeypatch.setattr("jaxvae.sweep.__main__.use_every_core", lambda: None)
    with pytest.raises(Asked) as asked:
        cli.run(lambda: importlib.import_module(f"jaxvae.{command}").main([*args, *flags]))
    assert asked.value.args == (not flags,)


def test_another_machine_and_other_versions_have_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = "model name\t: A\nflags\t\t: avx2 avx512f\ncpu MHz\t\t: 1\n\nflags: "

    def folder(cpuinfo: str = cpu, **env: str) -> Path:
        monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
        machine.CPUINFO.write_text(cpuinfo)
        return compilation_cache.directory({"XDG_CACHE_HOME": "/caches", **env})

    here = folder()
    assert here.parent == Path("/caches/jaxvae")
    assert folder(cpu.replace("MHz\t\t: 1", "MHz\t\t: 2")) == here
    others = [
        folder("model name\t: A\nflags\t\t: avx2\n"),
        folder("model name\t: B\nflags\t\t: avx2 avx512f\n"),
        folder("CPU part\t: 0xd40\nFeatures\t: sve\n"),
        folder(NPROC="1"),
        folder(XLA_FLAGS="--xla_force_host_platform_device_count=8"),
    ]
    with monkeypatch.context() as changed:
        changed.setattr(compilation_cache, "cores", lambda: 1000)
        others.append(folder())
    for name in ("jaxvae", "jax", "jaxlib"):
        found = {**versions.package_versions(), name: "0"}
        with monkeypatch.context() as changed:
            changed.setattr(compilation_cache, "package_versions", lambda found=found: found)
            others.append(folder())
    assert len({here, *others}) == 1 + len(others) and folder() == here


def test_the_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for relative in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "here"}):
        assert compilation_cache.root(relative) == Path("/home/ada/.cache/jaxvae")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert compilation_cache.root({}) == Path("/home/ada/Library/Caches/jaxvae")


@pytest.mark.optimized  # The other way of compiling has a folder of its own.
def test_the_suite_leaves_the_users_cache_alone() -> None:
    own = compilation_cache.directory(os.environ)
    assert own.is_relative_to(Path(__file__).parents[1] / ".cache")
    assert own == compilation_cache.directory(environment(8))
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir == str(own)  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone", "folder"])
def test_a_damaged_entry_is_ignored_and_replaced(damage: str, tmp_path: Path) -> None:
    kept = Entries(tmp_path)
    kept.put("program", b"of machine code")
    assert kept.get("program") == b"of machine code" and kept.get("other") is None
    path = tmp_path / "program"
    content = path.read_bytes()
    if damage in ("gone", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        flipped = bytes([*content[:-1], content[-1] ^ 1])
        path.write_bytes({"cut": content[:-1], "empty": b"", "flipped": flipped}[damage])
    assert kept.get("program") is None
    kept.put("program", b"of machine code")
    assert kept.get("program") == (None if damage == "folder" else b"of machine code")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    kept = Entries(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        kept.put("program", b"x")
    assert not any(tmp_path.iterdir())
    tmp_path.rmdir()
    kept.put("program", b"x")
    assert kept.get("program") is None


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "used", "new")):
        folder = tmp_path / name
        folder.mkdir()
        Entries(folder, most=10**6).put("program", bytes(1000))
        os.utime(folder / "program", (number, number))
    assert Entries(tmp_path / "used").get("program") is not None
    Entries(tmp_path / "new", most=2500).put("another", bytes(100))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert left == {"used/program", "new/program", "new/another"}
    compilation_cache.prune(tmp_path, 0)
    assert not list(tmp_path.glob("*/*"))
