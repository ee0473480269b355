import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvae import config
from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError

configs = st.builds(
    Config,
    hidden=st.lists(st.integers(1, 4096), max_size=4).map(tuple),
    latent_size=st.integers(1, 512),
    learning_rate=st.floats(min_value=1e-12, max_value=1e3, exclude_min=True),
    batch_size=st.integers(1, 10**6),
    seed=st.integers(0, 2**32 - 1),
    data_dir=st.none() | st.text(),
    dataset=st.text(min_size=1),
    compute_dtype=st.sampled_from(["float32", "bfloat16"]),
)


@given(configs)
def test_json_round_trip_is_exact(original: Config) -> None:
    assert config.from_json(config.to_json(original)) == original


def test_notes_presets_are_the_notes() -> None:
    for name, latent, objective in (("notes-ae", 20, "mse"), ("notes-vae", 10, "notes-elbo")):
        preset = PRESETS[name]
        assert (preset.hidden, preset.latent_size, preset.head) == ((256, 64), latent, "relu")
        assert (preset.objective, preset.learning_rate, preset.batch_size) == (objective, 1e-3, 32)
        assert preset.compute_dtype == "float32"
    assert [PRESETS[p].is_vae for p in ("notes-ae", "notes-vae", "vae")] == [False, True, True]


def test_presets_are_named_after_themselves() -> None:
    assert {name: preset.preset for name, preset in PRESETS.items()} == {name: name for name in PRESETS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_size": 0}, "--latent-size must be at least 1, not 0"),
        ({"batch_size": -3}, "--batch-size must be at least 1, not -3"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints must be at least 1"),
        ({"log_every": -1}, "--log-every must not be negative, not -1"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"seed": 2**32}, r"--seed must be below 2\^32"),
        ({"hidden": (256, 0)}, r"--hidden takes widths from 1 to 65536, not \[256, 0\]"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive and finite, not nan"),
        ({"learning_rate": float("inf")}, "--learning-rate must be positive and finite, not inf"),
        ({"objective": "elbo"}, "--objective elbo needs --head linear"),
        ({"hidden": (10**20,)}, "--hidden takes widths from 1 to 65536"),
        ({"latent_size": 10**12}, "--latent-size must be at most 65536, not 1000000000000"),
        ({"dataset": ""}, "--dataset must not be empty"),
    ],
)
def test_values_out_of_range_name_their_flag(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Config(), **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "c.json is not JSON"),
        ("[" * 100_000, "c.json is not JSON"),
        ("[]", "c.json must hold a JSON object"),
        ('{"batchsize": 32}', "a field this version does not know: batchsize"),
        ('{"batch_size": "32"}', 'batch_size must be a whole number, not "32"'),
        ('{"batch_size": true}', "batch_size must be a whole number, not true"),
        ('{"batch_size": 32.0}', "batch_size must be a whole number, not 32.0"),
        ('{"learning_rate": null}', "learning_rate must be a number, not null"),
        ('{"hidden": [256, "64"]}', "hidden must be a list of whole numbers"),
        ('{"head": "tanh"}', 'head must be one of relu, linear, logvar, exp, not "tanh"'),
        ('{"head": ["relu"]}', "head must be one of relu, linear"),
        ('{"data_dir": 3}', "data_dir must be a text or null, not 3"),
        ('{"epochs": 0}', "c.json: --epochs must be at least 1"),
        ('{"preset": "nope"}', "--preset nope: unknown; choose from notes-ae, notes-vae, vae"),
    ],
)
def test_bad_json_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.from_json(text, "c.json")


field_names = st.sampled_from([field.name for field in dataclasses.fields(Config)])
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(field_names, inner),
)


@given(any_json)
def test_any_json_is_a_config_or_an_input_error(value: Any) -> None:
    try:
        loaded = config.from_json(json.dumps(value))
    except InputError:
        return
    assert isinstance(loaded, Config)


def test_a_field_an_older_version_lacked_takes_its_presets_value() -> None:
    loaded = config.from_json('{"preset": "vae", "epochs": 7}')
    assert loaded == dataclasses.replace(PRESETS["vae"], epochs=7)


def test_load_names_a_file_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json cannot be read: No such file"):
        config.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="config.json cannot be read"):
        config.load(tmp_path / "config.json")


def test_differences_leave_out_what_may_change_on_resume() -> None:
    old = Config()
    allowed = dataclasses.replace(
        old, epochs=99, dataset="/y", data_dir="/x", log_every=1, image_every=9, checkpoint_every=9, keep_checkpoints=9
    )
    assert config.differences(old, allowed) == []
    assert config.differences(old, dataclasses.replace(old, seed=1, latent_size=3)) == [
        "latent_size: 10 -> 3",
        "seed: 0 -> 1",
    ]
