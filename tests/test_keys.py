import jax
import numpy as np

from jaxvae.keys import example_keys, purpose_key


def test_purposes_and_seeds_give_different_keys() -> None:
    purposes = ("init", "shuffle", "train-noise", "test-noise", "reconstructions", "samples", "generate")
    keys = [jax.random.key_data(purpose_key(seed, p)).tolist() for seed in (0, 1, 2**32 - 1) for p in purposes]
    assert len({tuple(k) for k in keys}) == len(keys)


def test_example_keys_depend_on_the_place_alone() -> None:
    key = purpose_key(0, "train-noise")
    whole = jax.random.key_data(example_keys(key, 0, 12))
    part = jax.random.key_data(jax.jit(example_keys, static_argnums=2)(key, 5, 4))
    np.testing.assert_array_equal(whole[5:9], part)
    assert len(np.unique(whole, axis=0)) == 12
