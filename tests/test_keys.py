from collections.abc import Callable

import jax
import numpy as np
import pytest

from jaxvae.keys import PURPOSES, example_keys, purpose_key, purpose_keys


def test_purposes_and_seeds_give_different_keys() -> None:
    purposes = ("init", "shuffle", "train-noise", "test-noise", "reconstructions", "samples", "generate")
    assert purposes == PURPOSES
    keys = [jax.random.key_data(purpose_key(seed, p)).tolist() for seed in (0, 1, 2**32 - 1) for p in purposes]
    assert len({tuple(k) for k in keys}) == len(keys)


def test_keys_that_are_made_at_once_are_those_of_one_purpose_each() -> None:
    for keys in (purpose_keys(7), jax.jit(lambda seed: purpose_keys(seed))(np.uint32(7))):
        assert set(keys) == set(PURPOSES)
        for purpose, key in keys.items():
            assert key == purpose_key(7, purpose)


def test_example_keys_depend_on_the_place_alone() -> None:
    key = purpose_key(0, "train-noise")
    whole = jax.random.key_data(example_keys(key, 0, 12))
    part = jax.random.key_data(jax.jit(example_keys, static_argnums=2)(key, 5, 4))
    np.testing.assert_array_equal(whole[5:9], part)
    assert len(np.unique(whole, axis=0)) == 12


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_noise_does_not_depend_on_the_default_generator(generator: str) -> None:
    def noise() -> jax.Array:
        keys = example_keys(purpose_key(3, "train-noise"), 4, 5)
        return jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)

    expected = noise()
    with jax.default_prng_impl(generator):
        np.testing.assert_array_equal(noise(), expected)


@pytest.mark.parametrize("make", [lambda: jax.random.key(0, impl="rbg"), lambda: jax.random.PRNGKey(0)])
def test_keys_of_another_generator_are_refused(make: Callable[[], jax.Array]) -> None:
    with pytest.raises(TypeError, match="threefry2x32"):
        example_keys(make(), 0, 3)


def test_a_setting_that_changes_all_random_numbers_is_refused() -> None:
    with jax.threefry_partitionable(False), pytest.raises(TypeError, match="jax_threefry_partitionable"):
        example_keys(purpose_key(0, "train-noise"), 0, 3)
