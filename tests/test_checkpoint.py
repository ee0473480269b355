import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvae import checkpoint
from jaxvae import config as configs
from jaxvae.checkpoint import Checkpoints
from jaxvae.config import PRESETS
from jaxvae.errors import InputError
from jaxvae.train_step import TrainState

RECORD = {"image_shape": [2, 3, 1]}


def make_state(step: int, seed: int = 0, width: int = 4) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {"params": {"kernel": jnp.float32(rng.normal(size=(3, width))), "bias": jnp.zeros(width)}}
    return TrainState(jnp.int32(step), params, optax.adam(1e-3).init(params))


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(make_state(10, seed=1), RECORD)
        checkpoints.save(make_state(20, seed=2), RECORD)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_step() == 20
        assert checkpoints.read_record() == RECORD
        assert_same(checkpoints.restore(make_state(0)), make_state(20, seed=2))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(make_state(step), RECORD)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [30, 40]


def test_a_step_is_never_saved_over_or_before_another_in_silence(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(20, seed=1), RECORD)
        with pytest.raises(RuntimeError, match="step 10 was not saved"):
            checkpoints.save(make_state(10), RECORD)
        with pytest.raises(Exception, match="20"):
            checkpoints.save(make_state(20, seed=2), RECORD)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(20, seed=1))


def test_nothing_to_restore_is_said(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.restore(make_state(0))


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="checkpoint .*10 "):
        checkpoints.restore(make_state(0, width=5))


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(10), RECORD)
    for path in (tmp_path / "10" / "state").rglob("*"):
        if path.is_file() and damage == "delete":
            path.unlink()
        elif path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="checkpoint .*10") as refused:
        checkpoints.restore(make_state(0))
    assert "\n" not in str(refused.value)


def test_load_run_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run directory: it has no config.json"):
        checkpoint.load_run(tmp_path)
    config = dataclasses.replace(PRESETS["vae"])
    (tmp_path / "config.json").write_text(configs.to_json(config))
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        checkpoint.load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.load_run(tmp_path)
