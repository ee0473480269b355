"""Random numbers that are drawn jointly, against the same function as it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from runs import SHALLOW

from jaxvae.config import PRESETS, Config
from jaxvae.keys import key_of
from jaxvae.models import joint_draws
from jaxvae.models.build import build_model, init_variables
from jaxvae.models.joint_draws import with_joint_draws

pytestmark = pytest.mark.unoptimized


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def of_many_kinds(key: Any, scale: Any) -> dict[str, Any]:
    one, two, three = jax.random.split(key, 3)
    deeper = jax.random.fold_in(jax.random.fold_in(one, 7), jnp.uint32(3))
    mask = jax.random.bernoulli(jax.random.fold_in(two, 1), 0.3, (5,))
    return {
        "normal": scale * jax.random.normal(one, (3, 4)),
        "deeper": jax.random.uniform(deeper, (6,), minval=-1.0),
        # Its key depends on numbers that were drawn.
        "after": jax.random.normal(jax.random.fold_in(three, mask.sum().astype(jnp.uint32)), ()),
        "integers": jax.random.randint(two, (2, 2), 0, 1000),
        "bytes": jax.random.bits(two, (7,), jnp.uint8),
        "shuffled": jax.random.permutation(jax.random.fold_in(three, 9), 12),
        "gamma": jax.random.gamma(jax.random.fold_in(three, 2), 2.0, (3,)),
        "silu": nn.silu(jax.random.normal(two, (4,))),
        "empty": jax.random.normal(jax.random.fold_in(one, 2), (0, 3)),
        "key": jax.random.fold_in(two, 5),
        "constant": np.float32(3),
        "input": scale,
    }


@pytest.mark.long
def test_the_bits_stay_the_same() -> None:
    args = key_of(5), np.float32([[2.0], [0.5], [1.0]])
    assert_same_bits(jax.jit(with_joint_draws(of_many_kinds))(*args), jax.jit(of_many_kinds)(*args))


@pytest.mark.long
def test_random_numbers_stay_the_same_for_many_keys_at_once() -> None:
    keys = jax.random.split(key_of(1), 4)

    def one(key: Any) -> Any:
        return of_many_kinds(key, np.float32(2))

    expected = jax.jit(jax.vmap(one))(keys)
    for jointly in (jax.jit(jax.vmap(with_joint_draws(one)))(keys), jax.lax.map(with_joint_draws(one), keys)):
        for name in ("bytes", "integers", "shuffled", "deeper", "key"):
            assert_same_bits(jointly[name], expected[name])
        # XLA rounds what it computes from the bits in other ways in other programs.
        for name in ("normal", "after", "gamma", "silu"):
            np.testing.assert_allclose(jointly[name], expected[name], rtol=1e-5)


@pytest.mark.slow
def test_a_joint_draw_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(key: Any) -> list[Any]:
        return [jax.random.bits(jax.random.fold_in(key, n), (size,)) for n, size in enumerate((10, 11, 12, 13))]

    expected = jax.jit(some)(key_of(0))
    for most, of_one, joint, alone in ((46, 13, 1, 0), (33, 13, 2, 0), (21, 13, 3, 0), (46, 11, 1, 2), (46, 9, 0, 4)):
        monkeypatch.setattr(joint_draws, "MOST_NUMBERS", most)
        monkeypatch.setattr(joint_draws, "MOST_OF_A_DRAW", of_one)
        assert_same_bits(jax.jit(with_joint_draws(some))(key_of(0)), expected)
        jaxpr = jax.make_jaxpr(with_joint_draws(some))(key_of(0)).jaxpr
        drawn = [str(equation.primitive) for equation in jaxpr.eqns]
        assert (drawn.count("threefry2x32"), drawn.count("random_bits")) == (joint, alone)


def test_keys_of_other_generators_are_left_alone() -> None:
    def some(key: Any) -> list[Any]:
        return [jax.random.normal(jax.random.fold_in(key, n), (n,)) for n in range(3)]

    key = jax.random.key(0, impl="rbg")
    assert_same_bits(jax.jit(with_joint_draws(some))(key), jax.jit(some)(key))


def test_draws_of_a_part_with_another_setting_stay_as_they_are() -> None:
    def some(key: Any) -> list[Any]:
        with jax.threefry_partitionable(False):
            old = [jax.random.bits(jax.random.fold_in(key, n), (4,)) for n in range(2)]
        return [*old, jax.random.bits(key, (4,))]

    assert_same_bits(jax.jit(with_joint_draws(some))(key_of(2)), jax.jit(some)(key_of(2)))


@pytest.mark.parametrize("checked", [False, True])
def test_each_device_may_have_its_own_key(checked: bool) -> None:
    def some(keys: Any) -> list[Any]:
        return [jax.random.bits(jax.random.fold_in(keys[0], n), (1, n + 1)) for n in range(3)]

    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    keys = jax.random.split(key_of(4), 2)
    jointly, alone = (
        jax.shard_map(function, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"), check_vma=checked)(keys)
        for function in (with_joint_draws(some), some)
    )
    assert_same_bits(jointly, alone)


def test_without_jit_the_results_are_arrays() -> None:
    found = with_joint_draws(lambda key: {"one": 1.0, "two": np.float32(2), "key": key})(key_of(0))
    assert all(isinstance(value, jax.Array) for value in found.values())
    assert (float(found["one"]), float(found["two"])) == (1, 2)


def test_a_function_with_side_effects_stays_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    def telling(key: Any) -> Any:
        jax.debug.print("drawn {}", jax.random.bits(key, ()))
        return jax.random.normal(key, (2,))

    assert_same_bits(jax.jit(with_joint_draws(telling))(key_of(3)), jax.jit(telling)(key_of(3)))
    jax.effects_barrier()
    assert capfd.readouterr().out.count("drawn") == 2


@pytest.mark.long
@pytest.mark.optimized
@pytest.mark.parametrize("preset", ["vae", "ladder"])
def test_models_start_with_the_weights_that_flax_gives_them(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Config = dataclasses.replace(PRESETS[preset], **SHALLOW.get(preset, {}))
    model, example = build_model(config, (12, 12, 1)), {"image": np.zeros((1, 12, 12, 1), np.float32)}
    jointly = jax.jit(lambda key: init_variables(model, key, example))(key_of(2))
    monkeypatch.setattr("jaxvae.models.build.with_joint_draws", lambda function: function)
    assert_same_bits(jointly, jax.jit(lambda key: init_variables(model, key, example))(key_of(2)))


@pytest.mark.slow
def test_an_init_compiles_to_few_draws() -> None:
    model, example = build_model(PRESETS["vae"], (12, 12, 1)), {"image": np.zeros((1, 12, 12, 1), np.float32)}

    def loops_of(compiled: Any) -> int:
        return int(compiled.as_text().count(" while("))

    jointly = jax.jit(lambda key: init_variables(model, key, example)).lower(key_of(0)).compile()
    alone = jax.jit(lambda key: model.init(key, example["image"], jax.random.split(key, 1))).lower(key_of(0)).compile()
    assert loops_of(jointly) == 2 < loops_of(alone)
