import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxvae import config_file
from jaxvae.config import PRESETS
from jaxvae.errors import InputError, SaveError
from jaxvae.run import checkpoint, step_files
from jaxvae.run.checkpoint import Checkpoints
from jaxvae.train.step import TrainState
from jaxvae.trained import load_run

RECORD = {"image_shape": [2, 3, 1]}


def make_state(step: int, seed: int = 0, width: int = 4) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {"params": {"kernel": jnp.float32(rng.normal(size=(3, width))), "bias": jnp.zeros(width)}}
    return TrainState(jnp.int32(step), params, optax.adam(1e-3).init(params))


LIKE = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), make_state(0))


def saved_steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def restored(directory: Path, **options: Any) -> checkpoint.Saved:
    with Checkpoints(directory, **options) as checkpoints:
        saved = checkpoints.restore(LIKE)
    assert saved is not None
    return saved


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    odd = make_state(20, seed=2)
    kernel = odd.params["params"]["kernel"].at[0].set(jnp.float32([-0.0, 1e-42, np.inf, np.nan]))
    odd = odd._replace(params={"params": {"kernel": kernel, "bias": jnp.zeros(4)}})
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore(LIKE) is None
        checkpoints.save(make_state(10, seed=1), RECORD)
        checkpoints.save(odd, RECORD)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() == 20
        assert checkpoints.read_record() == {**RECORD, "validation_cost": None}
    saved = restored(tmp_path / "c")
    assert (saved.step, saved.record["image_shape"]) == (20, [2, 3, 1])
    assert jax.tree.structure(saved.state) == jax.tree.structure(odd)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.tobytes(), np.asarray(b).tobytes()), saved.state, odd)


def test_saving_copies_what_is_saved(tmp_path: Path) -> None:
    """The state may be donated, and its memory reused, as soon as `save` returns."""
    state = make_state(10, seed=3)
    expected = jax.device_get(jax.tree.map(jnp.copy, state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, RECORD)
        jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)(state)
    assert_same(restored(tmp_path).state, expected)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(make_state(step), RECORD)
    assert saved_steps(tmp_path) == [30, 40]


def test_the_best_are_kept_besides_and_nan_is_never_best(tmp_path: Path) -> None:
    losses = {10: 3.0, 20: 1.0, 30: float("nan"), 40: 2.0, 50: None, 60: float("inf"), 70: 4.0}
    with Checkpoints(tmp_path, keep=1, keep_best=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(make_state(step), RECORD, loss)
            checkpoints.wait()
            assert step in saved_steps(tmp_path)  # The latest is never lost.
    assert saved_steps(tmp_path) == [20, 40, 70]
    with Checkpoints(tmp_path) as checkpoints:
        best = checkpoints.restore(LIKE, best=True)
    assert best is not None
    assert best.step == 20


@pytest.mark.parametrize("record", [RECORD, {**RECORD, "test_loss": 0.5}], ids=["none", "as it was ranked once"])
def test_there_is_no_best_without_a_validation_cost(record: dict[str, Any], tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        for step in (10, 20):
            checkpoints.save(make_state(step), record)
            checkpoints.wait()
        assert saved_steps(tmp_path) == [20]
        with pytest.raises(InputError, match="--validation"):
            checkpoints.restore(LIKE, best=True)
        newest = checkpoints.restore(LIKE)
    assert newest is not None
    assert newest.step == 20


def test_a_step_that_was_saved_before_it_was_evaluated_is_ranked(tmp_path: Path) -> None:
    state = make_state(20, seed=1)
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        checkpoints.save(make_state(10), RECORD, validation_cost=0.5)
        checkpoints.save(state, RECORD)
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        checkpoints.rank(20, math.nan)
        checkpoints.wait()
        assert saved_steps(tmp_path) == [10, 20]
        checkpoints.rank(20, 0.25)
        checkpoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["20"]
        best = checkpoints.restore(LIKE, best=True)
    assert best is not None
    assert best.record == {**RECORD, "validation_cost": 0.25}
    assert_same(best.state, state)


def test_a_damaged_step_is_not_ranked(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
        checkpoints.wait()
        truncate(tmp_path / "10" / "record.json")
        before = (tmp_path / "10" / "record.json").read_bytes()
        checkpoints.rank(10, 0.5)
        with pytest.raises(SaveError, match=str(tmp_path / "10")):
            checkpoints.wait()
    assert (tmp_path / "10" / "record.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_of_equal_checkpoints_the_earliest_is_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(make_state(step), RECORD, validation_cost=0.5)
            checkpoints.wait()
        assert saved_steps(tmp_path) == [10, 30]
        best = checkpoints.restore(LIKE, best=True)
    assert best is not None
    assert best.step == 10


def test_a_step_is_never_saved_over_or_before_another_in_silence(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(20, seed=1), RECORD)
        for step in (10, 20):
            with pytest.raises(SaveError, match=f"{tmp_path}: step {step} "):
                checkpoints.save(make_state(step), RECORD)
    assert_same(restored(tmp_path).state, make_state(20, seed=1))


def test_a_state_of_another_shape_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
        checkpoints.wait()
        with pytest.raises(InputError, match=r"opt_state/0/mu/params/bias .*\[4\].*\[5\]"):
            checkpoints.restore(make_state(0, width=5))
        more = make_state(0)._replace(params={"params": {**make_state(0).params["params"], "extra": jnp.zeros(2)}})
        with pytest.raises(InputError, match=r"params/params/extra .*\[2\]"):
            checkpoints.restore(more)
    assert saved_steps(tmp_path) == [10]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_each_damaged_file_is_noticed_and_the_step_before_is_used(damage: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with Checkpoints(whole) as checkpoints:
        checkpoints.save(make_state(10, seed=1), RECORD)
        checkpoints.save(make_state(20, seed=2), RECORD)
    names = [path.relative_to(whole / "20") for path in (whole / "20").rglob("*") if path.is_file()]
    assert len(names) > 4
    for number, name in enumerate(names):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        damage(directory / "20" / name)
        warnings: list[str] = []
        with Checkpoints(directory, warn=warnings.append) as checkpoints:
            saved = checkpoints.restore(LIKE)
            assert saved is not None
            assert saved.step == 10
            assert_same(saved.state, make_state(10, seed=1))
            assert str(directory / "20") in warnings[0] and name.as_posix() in warnings[0], warnings
            assert "damaged-20" in warnings[1]
            checkpoints.save(make_state(20, seed=3), RECORD)  # Later saves still work.
        assert saved_steps(directory) == [10, 20]
        assert (directory / "damaged-20").is_dir()
        assert_same(restored(directory).state, make_state(20, seed=3))


def test_an_extra_file_is_noticed(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    (tmp_path / "10" / "state" / "more").write_text("")
    with Checkpoints(tmp_path, warn=str) as checkpoints, pytest.raises(InputError, match=str(tmp_path)):
        checkpoints.restore(LIKE)


@pytest.mark.parametrize("kind", ["pipe", "link", "linked directory"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    """To read a pipe would hang."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    path = tmp_path / "10" / ("record.json" if kind != "linked directory" else "state")
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    warnings: list[str] = []
    with Checkpoints(tmp_path, warn=warnings.append) as checkpoints, pytest.raises(InputError, match=str(tmp_path)):
        checkpoints.restore(LIKE)
    assert str(tmp_path / "10") in warnings[0]


def test_arrays_are_compared_by_digest_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any difference between the saved and the restored arrays is noticed."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    whole = ocp.Checkpointer.restore

    def wrong(*args: Any, **options: Any) -> Any:
        state = whole(*args, **options)
        params = state["params"]["params"]
        params["kernel"] = -params["kernel"]
        return state

    monkeypatch.setattr(ocp.Checkpointer, "restore", wrong)
    warnings: list[str] = []
    with Checkpoints(tmp_path, warn=warnings.append) as checkpoints, pytest.raises(InputError, match=str(tmp_path)):
        checkpoints.restore(LIKE)
    assert "params/params/kernel" in warnings[0]


def test_with_only_damaged_checkpoints_nothing_is_restored(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(make_state(step), RECORD)
    for step in (10, 20):
        truncate(tmp_path / str(step) / "record.json")
    for _ in range(2):  # Not at the second try, either.
        warnings: list[str] = []
        refused = pytest.raises(InputError, match=str(tmp_path))
        with Checkpoints(tmp_path, warn=warnings.append) as checkpoints, refused:
            checkpoints.restore(LIKE)
        assert len(warnings) == 2
    shutil.rmtree(tmp_path / "10")
    (tmp_path / "20").rename(tmp_path / "damaged-20")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=str(tmp_path)):
        checkpoints.restore(LIKE)


def test_reading_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(make_state(step), RECORD)
    flip(tmp_path / "20" / "record.json")
    (tmp_path / "30.tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert restored(tmp_path, read_only=True).step == 10
    assert f"{tmp_path / '20'}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_save_left_is_ignored_then_cleaned(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    shutil.copytree(tmp_path / "10", tmp_path / "20.tmp")
    (tmp_path / "20.tmp" / "record.json").unlink()
    assert restored(tmp_path, read_only=True).step == 10
    assert (tmp_path / "20.tmp").exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert not (tmp_path / "20.tmp").exists()
        checkpoints.save(make_state(20), RECORD)
    assert saved_steps(tmp_path) == [10, 20]


@pytest.mark.parametrize("where", ["the next check", "the next save", "wait", "leaving"])
def test_a_save_that_fails_in_the_background_is_reported(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    told = f"{tmp_path / '20'} .*{os.strerror(28)}"
    with pytest.raises(SaveError, match=told), Checkpoints(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save(make_state(20), RECORD)
        if where == "the next save":
            checkpoints.save(make_state(30), RECORD)
        elif where == "wait":
            checkpoints.wait()
        elif where == "the next check":
            assert checkpoints._saving is not None
            futures.wait([checkpoints._saving])
            checkpoints.check()
            pytest.fail("the check found nothing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10"]
    assert restored(tmp_path).step == 10


def test_a_failed_save_does_not_hide_another_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_files, "_sync", lambda _: 1 / 0)
    with pytest.raises(KeyError) as told, Checkpoints(tmp_path) as checkpoints:  # noqa: PT012
        checkpoints.save(make_state(10), RECORD)
        raise KeyError("x")
    assert str(tmp_path / "10") in told.value.__notes__[0]


def test_saving_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = threading.Event()
    monkeypatch.setattr(step_files, "_sync", lambda _: disk.wait())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
        checkpoints.check()
        assert saved_steps(tmp_path) == []
        disk.set()
        checkpoints.wait()
        assert saved_steps(tmp_path) == [10]


FILL = """
import sys
from pathlib import Path
from test_checkpoint import RECORD, SaveError, Checkpoints, make_state
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(make_state(10), RECORD)
    try:
        checkpoints.save(make_state(20, width=100_000), RECORD)
        checkpoints.wait()
    except SaveError as error:
        print(error)
        checkpoints.save(make_state(30), RECORD)
"""


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 1 MiB, mounted for one child process alone, which must report what it met."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path} && {sys.executable} -c '{FILL}' {tmp_path} && ls {tmp_path}"
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, f"mount -t tmpfs none {tmp_path}"]).returncode:
        pytest.skip("no file system can be mounted here")
    here = Path(__file__).parent
    done = subprocess.run([*unshare, mount], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, *left = done.stdout.splitlines()
    assert f"{tmp_path / '20'} " in message and "space" in message.lower()
    assert left == ["10", "30"]


def test_older_checkpoints_that_cannot_be_deleted_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
        checkpoints.wait()

        def refuse(path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
        checkpoints.save(make_state(20, seed=1), RECORD)
        with pytest.raises(SaveError, match=f"{tmp_path / '20'} .*Permission denied"):
            checkpoints.wait()
    monkeypatch.undo()
    assert_same(restored(tmp_path).state, make_state(20, seed=1))


def forge(path: Path, **changes: Any) -> None:
    """Change a step's record.json, and its digest with it."""
    content = {**json.loads((path / "record.json").read_text()), **changes}
    del content["digest"]
    (path / "record.json").write_text(json.dumps({**content, "digest": step_files.digest_of(content)}))


@pytest.mark.parametrize(
    "shape", [None, "abc", [6, 5], [-6, -5, 1], [6.0, 5, 1], [True, 5, 1], {"6": 1, "5": 1, "1": 1}]
)
def test_a_forged_image_shape_is_refused_in_a_line(shape: Any, tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), {"image_shape": [6, 5, 1]})
        checkpoints.wait()
        assert checkpoints.image_shape() == (6, 5, 1)
        forge(tmp_path / "10", record={} if shape is None else {"image_shape": shape})
        with pytest.raises(InputError, match=rf"{tmp_path}.* record\.json"):
            checkpoints.image_shape()


@pytest.mark.parametrize("loss", [10**400, -math.inf, math.nan, True, "0", -5])
def test_a_forged_loss_is_never_best(loss: Any, tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        checkpoints.save(make_state(10), RECORD, validation_cost=0.5)
        checkpoints.wait()
        checkpoints.save(make_state(20), RECORD, validation_cost=0.7)
        checkpoints.wait()
        forge(tmp_path / "20", record={**RECORD, "validation_cost": loss})
        checkpoints.save(make_state(30), RECORD, validation_cost=0.6)
        checkpoints.wait()
    assert saved_steps(tmp_path) == [10, 30]


def test_an_unknown_format_is_named_and_left_alone(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    forge(tmp_path / "10", format=2)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=f"{tmp_path / '10'} .*format 2"),
    ):
        checkpoints.restore(LIKE)
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "_CHECKPOINT_METADATA").write_text("{}")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=str(tmp_path / "20")):
        checkpoints.restore(LIKE)
    assert saved_steps(tmp_path) == [10, 20]


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=str(tmp_path / "file" / "c")):
        Checkpoints(tmp_path / "file" / "c")


def test_load_run_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} .*config.json"):
        load_run(tmp_path)
    config = dataclasses.replace(PRESETS["vae"])
    (tmp_path / "config.json").write_text(config_file.to_json(config))
    with pytest.raises(InputError, match=str(tmp_path)):
        load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=str(tmp_path / "checkpoints")):
        load_run(tmp_path)


@pytest.mark.parametrize("hook", ["read_record", "file_digest", "make_checkpointer"])
def test_a_step_that_is_pruned_while_it_is_read_is_not_damaged(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its record is read, between the record and the files, and before the arrays."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    real = getattr(step_files, hook)
    pruned = []

    def prune_first(*arguments: Any) -> Any:
        """What the run does meanwhile: it saves a later step, and deletes this one."""
        if not pruned:
            pruned.append(10)
            with monkeypatch.context() as undone:
                undone.setattr(step_files, hook, real)
                with Checkpoints(tmp_path, keep=1) as others:
                    others.save(make_state(20, seed=1), RECORD)
        return real(*arguments)

    monkeypatch.setattr(step_files, hook, prune_first)
    warnings: list[str] = []
    with Checkpoints(tmp_path, read_only=True, warn=warnings.append) as checkpoints:
        saved = checkpoints.restore(LIKE)
        assert checkpoints.read_record()["image_shape"] == RECORD["image_shape"]
    assert saved is not None and saved.step == 20 and pruned == [10] and warnings == []
    assert_same(saved.state, make_state(20, seed=1))


def test_a_run_that_prunes_too_fast_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)

    def prune(path: Path) -> Any:
        path.rename(path.with_name(str(int(path.name) + 1)))
        raise step_files.DamagedError("gone")

    for module in (checkpoint, step_files):
        monkeypatch.setattr(module, "read_record", prune)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for read in (lambda: checkpoints.restore(LIKE), checkpoints.read_record):
            with pytest.raises(InputError, match=f"{tmp_path}.*--keep-checkpoints"):
                read()


WRITER = """
import sys
from pathlib import Path
from test_checkpoint import RECORD, make_state
from jaxvae.run.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1]), keep=1) as checkpoints:
    step = 0
    while True:
        step += 1
        checkpoints.save(make_state(step), RECORD)
        if step == 1:
            checkpoints.wait()
            print("saved", flush=True)
"""


# Orbax leaves coroutines behind where a file that it reads is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.long
def test_a_run_is_read_while_it_saves_as_fast_as_it_can(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    warnings: list[str] = []
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "saved\n"
        steps = []
        for _ in range(50):
            with Checkpoints(tmp_path, read_only=True, warn=warnings.append) as checkpoints:
                checkpoints.image_shape()
                saved = checkpoints.restore(LIKE)
            assert saved is not None
            assert_same(saved.state, make_state(saved.step))
            steps.append(saved.step)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate()
    assert steps == sorted(steps) and len(set(steps)) > 1 and warnings == []
