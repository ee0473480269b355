import contextlib
import copy
import dataclasses
import functools
import json
import pickle
import re
import typing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvae import config, config_file, own, presets
from jaxvae.config import PRESETS, Config
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.models.build import build_model, init_variables
from jaxvae.models.networks import Conv, Mlp
from jaxvae.models.priors import StandardNormalModule, log_normal
from jaxvae.models.vae import VAE
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import Prior
from jaxvae.sweep import grid
from jaxvae.train.__main__ import parse
from jaxvae.train.step import TrainState, make_train_step

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


@pytest.mark.long
@given(configs)
def test_json_round_trip_is_exact(original: Config) -> None:
    assert config_file.from_json(config_file.to_json(original)) == original


def test_networks_of_convolutions_do_not_take_widths_of_dense_layers_for_channels() -> None:
    for name in ("conv", "resnet"):
        assert Config("vae", architecture=name).hidden == (32, 64)
        assert Config("vae", architecture=name, hidden=(512, 256)).hidden == (512, 256)
        assert parse(["--preset", "vae", "--architecture", name]).config == Config("vae", architecture=name)
        wide = parse(["--preset", "vae", "--architecture", name, "--hidden", "8"]).config
        assert wide == Config("vae", architecture=name, hidden=(8,))
    assert Config("vae").hidden == Config("vae", architecture="mlp").hidden == (512, 256)
    # A network that was given as an object has its own widths.
    own.give(Conv((8,)), "given:Conv")
    assert Config("vae", architecture="given:Conv").hidden == (512, 256)


def test_notes_presets_have_the_values_of_the_notes() -> None:
    for name, latent, objective in (("notes-ae", 20, "mse"), ("notes-vae", 10, "notes-elbo")):
        preset = PRESETS[name]
        assert (preset.hidden, preset.latent_size, preset.head) == ((256, 64), latent, "relu")
        assert (preset.objective, preset.learning_rate, preset.batch_size) == (objective, 1e-3, 32)
        assert preset.compute_dtype == "float32"
    assert [PRESETS[p].is_vae for p in ("notes-ae", "notes-vae", "vae")] == [False, True, True]


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_name_stands_for_its_values(name: str) -> None:
    named = Config(preset=name)
    assert named == PRESETS[name] == config.preset(name) and hash(named) == hash(PRESETS[name])
    assert Config(preset=name, epochs=3) == dataclasses.replace(PRESETS[name], epochs=3)
    assert Config(**dataclasses.asdict(named)) == pickle.loads(pickle.dumps(named)) == copy.copy(named) == named


def test_a_square_has_one_form() -> None:
    assert Config(image_size=(8, 8)) == Config(image_size=(8,)) != Config(image_size=(8, 9))
    assert Config(image_size=[8, 9]) == Config(image_size=(8, 9))


def test_given_values_override_the_preset() -> None:
    back = {name: getattr(PRESETS["notes-vae"], name) for name in presets.OVERRIDES["vae"]}
    assert Config(preset="vae", **back) == dataclasses.replace(PRESETS["notes-vae"], preset="vae")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Config(), "notes-vae"),
        (Config(preset="vae"), "vae"),
        (Config(preset="notes-ae", objective="elbo", head="linear"), "notes-ae, changed: objective elbo, head linear"),
        (Config(hidden=(16, 8), learning_rate=3e-4), "notes-vae, changed: hidden 16,8, learning_rate 0.0003"),
        (Config(seed=3, epochs=5, dataset="digits", data_dir="/x", image_every=0, keep_checkpoints=9), "notes-vae"),
        (Config(preset="iwae", epochs=5), "iwae, changed: epochs 5"),  # The rate's schedule depends on it.
        (Config(preset="vae", epochs=5), "vae"),
    ],
)
def test_the_description_of_a_changed_preset_says_so(changed: Config, said: str) -> None:
    assert config.describe(changed) == said


def test_a_description_leaves_out_the_given_fields() -> None:
    assert config.describe(Config(preset="vae", beta=2.0, latent_size=3), ["beta"]) == "vae, changed: latent_size 3"


def test_presets_are_named_after_themselves() -> None:
    assert {name: preset.preset for name, preset in PRESETS.items()} == {name: name for name in PRESETS}


TWO_LAYERS = {"head": "linear", "architecture": "two-layer"}


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"latent_size": 0}, "--latent-size"),
        ({"batch_size": -3}, "--batch-size"),
        ({"epochs": 0}, "--epochs"),
        ({"validation": 1.5}, "--validation"),
        ({"validation_seed": -1}, "--validation-seed"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints"),
        ({"log_every": -1}, "--log-every"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
        ({"hidden": (256, 0)}, "--hidden"),
        ({"hidden": (10**20,)}, "--hidden"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"latent_size": 10**12}, "--latent-size"),
        ({"dataset": ""}, "--dataset"),
        ({"objective": "elbo"}, "--objective elbo"),
        ({"preset": "notes-ae", "head": "exp"}, "--objective mse"),
        ({"preset": "vae", "objective": "info"}, "--objective info"),
        *(
            ({**TWO_LAYERS, "objective": objective}, "--architecture two-layer")
            for objective in ("mse", "notes-elbo", "dreg", "beta-tc")
        ),
        ({**TWO_LAYERS, "objective": "info", "mmd_weight": 1.0}, "--architecture two-layer"),
        ({"preset": "vea"}, "--preset vea"),
    ],
)
def test_a_refusal_names_the_flag(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError) as refused:
        Config(**changes)
    assert str(refused.value).startswith(flag + " ") or str(refused.value).startswith(flag + ":")


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"static_seed": 1}, ["--static-seed 1", "--inputs static"]),
        ({"beta": 2.0}, ["--beta 2", "--objective elbo"]),
        ({"preset": "notes-ae", "likelihood": "logistic"}, ["--likelihood logistic", "--objective elbo"]),
        ({"preset": "vae", "likelihood_std": 0.2}, ["--likelihood-std 0.2", "--likelihood gaussian"]),
        ({"preset": "notes-ae", "likelihood": "gaussian", "likelihood_std": 0.2}, ["--likelihood", "--objective"]),
        ({"preset": "vae", "corruption": 0.5}, ["--corruption 0.5", "--objective mse"]),
        ({"preset": "vae", "mmd_weight": 3.0}, ["--mmd-weight 3", "--objective info"]),
        ({"preset": "vae", "kl_cycles": 4}, ["--kl-cycles 4", "--kl-warmup-epochs"]),
        ({"preset": "iwae", "free_bits": 0.5}, ["--free-bits 0.5", "--objective elbo or info"]),
        ({"preset": "iwae", "architecture": "conv", "init": "pytorch"}, ["--init pytorch", "--architecture"]),
        ({"validation_seed": 3}, ["--validation-seed 3", "--validation"]),
        ({"keep_best_checkpoints": 3}, ["--keep-best-checkpoints 3", "--validation"]),
        ({"hidden": (), "activation": "tanh"}, ["--activation tanh", "--hidden"]),
    ],
)
def test_a_flag_without_effect_is_refused_with_the_flag_it_needs(changes: dict[str, Any], flags: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        Config(**changes)
    assert all(flag in str(refused.value) for flag in flags) and str(refused.value).startswith(flags[0])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{", "c.json"),
        ("[" * 100_000, "c.json"),
        ("[]", "c.json"),
        ('{"batchsize": 32}', "batchsize"),
        ('{"batch_size": "32"}', "batch_size"),
        ('{"batch_size": true}', "batch_size"),
        ('{"batch_size": 32.0}', "batch_size"),
        ('{"learning_rate": null}', "learning_rate"),
        ('{"hidden": [256, "64"]}', "hidden"),
        ('{"head": "tanh"}', "head"),
        ('{"head": ["relu"]}', "head"),
        ('{"data_dir": 3}', "data_dir"),
        ('{"epochs": 0}', "--epochs"),
        ('{"preset": "nope"}', "--preset nope"),
        ('{"format": 10}', "format 10"),
        ('{"format": 0}', "format"),
        ('{"format": true}', "format"),
        ('{"format": "2"}', "format"),
        ('{"steps_per_call": 0}', "steps"),
        ('{"steps_per_call": "2000"}', "steps_per_call"),
        ('{"format": 9, "static_seed": 1}', "--static-seed 1"),
    ],
)
def test_bad_json_is_refused_by_name(text: str, name: str) -> None:
    with pytest.raises(InputError, match=f"^c.json.*{name}" if name != "c.json" else "^c.json"):
        config_file.from_json(text, "c.json")


field_names = st.sampled_from([field.name for field in dataclasses.fields(Config)])
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(field_names, inner),
)


@pytest.mark.slow
@given(any_json)
def test_any_json_is_a_config_or_an_input_error(value: Any) -> None:
    try:
        loaded = config_file.from_json(json.dumps(value))
    except InputError:
        return
    assert isinstance(loaded, Config)


# What the version before formats wrote for "notes-vae", and the differences of its other presets.
FORMAT_1 = """{
  "preset": "notes-vae", "dataset": "auto", "data_dir": null, "hidden": [256, 64], "latent_size": 10, "head": "relu",
  "architecture": "mlp", "activation": "relu", "init": "pytorch", "objective": "notes-elbo", "likelihood": "bernoulli",
  "likelihood_std": 0.1, "inputs": "grey", "static_seed": 0, "corruption": 0.0, "compute_dtype": "float32",
  "samples": 1, "beta": 1.0, "kl_warmup_epochs": 0.0, "kl_cycles": 1, "free_bits": 0.0, "mmd_weight": 0.0,
  "learning_rate": 0.001, "schedule": "constant", "warmup_epochs": 0.0, "weight_decay": 0.0, "clip_norm": 0.0,
  "adam_b1": 0.9, "adam_b2": 0.999, "adam_eps": 1e-08, "batch_size": 32, "epochs": 20, "seed": 0,
  "steps_per_call": 2000, "log_every": 0, "image_every": 1, "checkpoint_every": 5, "keep_checkpoints": 3,
  "keep_best_checkpoints": 1
}"""
FORMAT_1_PRESETS: dict[str, dict[str, Any]] = {
    "notes-ae": {"objective": "mse", "latent_size": 20},
    "notes-vae": {},
    "vae": {"objective": "elbo", "head": "linear", "hidden": [512, 256], "latent_size": 20, "batch_size": 128},
    "iwae": {
        "objective": "iwae", "samples": 5, "head": "exp", "hidden": [200, 200], "latent_size": 50, "activation": "tanh",
        "init": "glorot", "inputs": "dynamic", "batch_size": 20, "epochs": 3280, "schedule": "stages", "adam_b1": 0.99,
        "adam_eps": 5e-06, "image_every": 50, "checkpoint_every": 50,
    },
}  # fmt: skip
ADDED_SINCE = {
    "validation": 0, "validation_seed": 0, "dequantize": False, "matmul_precision": "default",
    "model": None, "prior": "normal", "optimizer": "adam", "ema": 0.0,
    "blocks": 2, "latents": "dense",
    "image_size": [], "resize": "crop", "channels": None, "skip_bad": False,
    "step_kernels": "plain", "flip": False,
    "condition": "none", "classes": 0,
    "stream": "auto",
    "code_prior_layers": 2, "code_prior_width": 64, "codes": 512, "code_size": 64, "codebook": "average",
    "commitment": 0.25, "levels": [8, 8, 8], "maps": 4, "skip_norm": 0.0,
    "mixture_components": 50, "pseudo_inputs": 500, "flow_layers": 6, "flow_width": 64,
    "capacity": 25.0, "capacity_weight": 10.0, "capacity_epochs": 0.0, "code_l2": 0.01, "decoder_l2": 1e-4,
    "discriminator_width": 1000, "discriminator_layers": 6,
    "track": "none",
}  # fmt: skip


def format_1(preset: str) -> dict[str, Any]:
    """Every field of a preset, as the version before formats wrote it."""
    return {**json.loads(FORMAT_1), **FORMAT_1_PRESETS[preset], "preset": preset}


@pytest.mark.parametrize(
    "changes", [{"condition": "label"}, {"prior": "label"}, {"prior": "label", "condition": "label"}]
)
def test_a_conditional_model_of_an_older_format_is_read(changes: dict[str, str]) -> None:
    expected = Config("vae", classes=10, **changes)
    written = json.loads(config_file.to_json(expected))
    for number in range(6, config_file.FORMAT + 1):
        assert config_file.from_json(json.dumps({**written, "format": number})) == expected


@pytest.mark.parametrize("preset", FORMAT_1_PRESETS)
def test_a_file_of_format_1_means_what_it_meant(preset: str) -> None:
    written = format_1(preset)
    loaded = dataclasses.asdict(config_file.from_json(json.dumps(written)))
    assert loaded.keys() <= written.keys() | ADDED_SINCE.keys()
    for name, value in loaded.items():
        expected = {**ADDED_SINCE, **written}[name]
        assert value == (tuple(expected) if isinstance(expected, list) else expected), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", FORMAT_1_PRESETS)
def test_a_missing_field_of_format_1_takes_its_value_of_that_time(preset: str) -> None:
    written = format_1(preset)
    whole = config_file.from_json(json.dumps(written))
    for name in written.keys() - {"preset"}:
        rest = {other: value for other, value in written.items() if other != name}
        assert config_file.from_json(json.dumps(rest)) == whole, name
    assert config_file.from_json(json.dumps({"preset": preset})) == whole


def test_an_older_file_keeps_the_former_values_of_its_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        presets, "OVERRIDES", {**presets.OVERRIDES, "vae": {**presets.OVERRIDES["vae"], "latent_size": 99}}
    )
    monkeypatch.setattr(config_file, "FORMERLY", {1: {None: {"batch_size": 7, "gone": 1}, "vae": {"latent_size": 20}}})
    old, new = (config_file.from_json(f'{{"format": {number}, "preset": "vae"}}') for number in (1, 2))
    assert (old.latent_size, old.batch_size) == (20, 7)
    assert (new.latent_size, new.batch_size) == (99, 128)
    assert config_file.from_json('{"preset": "vae", "latent_size": 3}').latent_size == 3


def test_a_removed_field_is_ignored_if_that_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "DROPPED", {1: {"gone": lambda value: value == 3}})
    assert config_file.from_json('{"gone": 3, "epochs": 4}') == config_file.from_json('{"epochs": 4}')
    for text in ('{"gone": 4}', '{"format": 2, "gone": 3}'):
        with pytest.raises(InputError, match="^c.json.*gone"):
            config_file.from_json(text, "c.json")


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({"preset": "notes-ae", "head": "exp"}, {"head": "linear"}),
        ({"preset": "vae", "objective": "info"}, {"objective": "elbo"}),
        ({"preset": "vae", "static_seed": 3}, {"static_seed": 0}),
        ({"preset": "iwae", "architecture": "conv", "init": "pytorch"}, {"architecture": "conv", "init": "glorot"}),
    ],
)
def test_fields_without_effect_in_format_1_still_load(values: dict[str, Any], changes: dict[str, Any]) -> None:
    base = config_file.from_json(json.dumps({"preset": values["preset"]}))
    assert config_file.from_json(json.dumps(values)) == dataclasses.replace(base, **changes)
    with pytest.raises(InputError):
        config_file.from_json(json.dumps({"format": config_file.FORMAT, **values}))


@pytest.mark.parametrize("preset", FORMAT_1_PRESETS)
def test_a_file_of_format_2_means_what_it_meant(preset: str) -> None:
    written = {name: value for name, value in format_1(preset).items() if name != "steps_per_call"}
    held_out = 1 / 12 if preset in ("vae", "iwae") else 0.0
    written |= {"validation": held_out, "validation_seed": 0, "dequantize": False, "matmul_precision": "highest"}
    assert config_file.from_json(json.dumps({"format": 2, **written})) == PRESETS[preset]


def test_fields_of_format_2_that_nothing_reads_today_still_load() -> None:
    values = {"preset": "iwae", "objective": "info", "samples": 1, "mmd_weight": 2.0}
    loaded = config_file.from_json(json.dumps({"format": 2, **values}))
    assert loaded == Config(preset="iwae", objective="info", mmd_weight=2.0)
    with pytest.raises(InputError, match="--samples 1 has no effect"):
        config_file.from_json(json.dumps({"format": config_file.FORMAT, **values}))


def test_the_configuration_in_a_sweep_has_a_format_too(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    written = grid.Grid(PRESETS["vae"], {"beta": [1.0, 2.0]}, [0])
    path.write_text(grid.to_json(written, [[0, 1]]))
    content = json.loads(path.read_text())
    assert content["config"]["format"] == config_file.FORMAT and grid.load_sweep(tmp_path)[0] == written
    path.write_text(json.dumps({**content, "config": format_1("vae")}))
    assert grid.load_sweep(tmp_path)[0].config == config_file.from_json(json.dumps(format_1("vae")))
    path.write_text(json.dumps({**content, "config": {"format": 99}}))
    with pytest.raises(InputError, match="sweep.json is of format 99"):
        grid.load_sweep(tmp_path)


def test_load_names_a_file_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json cannot be read: No such file"):
        config_file.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="config.json cannot be read"):
        config_file.load(tmp_path / "config.json")


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


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_its_values(preset: str) -> None:
    for name, value in presets.OVERRIDES[preset].items():
        assert getattr(PRESETS[preset], name) == value, name


# --- What is read --------------------------------------------------------------------------------------------

SHAPE = (4, 4, 1)
TINY = {"hidden": (3, 2), "latent_size": 2, "batch_size": 3, "epochs": 4, "head": "linear"}
# Fields that decide the data, or what is written and when, but not the steps.
OUTSIDE = {
    "preset",
    "dataset",
    "data_dir",
    "image_size",
    "resize",
    "channels",
    "static_seed",
    "validation",
    "validation_seed",
} | config.RESUMABLE_FIELDS - {"epochs"}

# Fields that have no effect in some configurations.
CONDITIONAL = {
    *("validation_seed", "keep_best_checkpoints", "static_seed", "dequantize", "corruption", "activation", "init"),
    *("likelihood", "likelihood_std", "prior", "samples", "beta", "kl_warmup_epochs", "kl_cycles", "free_bits"),
    *("mmd_weight", "learning_rate", "schedule", "warmup_epochs", "weight_decay", "clip_norm"),
    *("adam_b1", "adam_b2", "adam_eps", "architecture", "hidden", "latent_size", "head", "compute_dtype"),
    *("blocks", "latents", "resize", "condition", "classes"),
    *("mixture_components", "pseudo_inputs", "flow_layers", "flow_width"),
    *("capacity", "capacity_weight", "capacity_epochs", "code_l2", "decoder_l2"),
    *("discriminator_width", "discriminator_layers"),
    *(
        "code_prior_layers",
        "code_prior_width",
        "codes",
        "code_size",
        "codebook",
        "commitment",
        "levels",
        "maps",
        "skip_norm",
    ),
}
# User-defined components, for fields with at most one built-in choice.
OWN = {"model": "own:model", "prior": "own:Prior", "optimizer": "own:sgd"}


class OwnPriorModule(StandardNormalModule):
    def log_density(self, latent: Any, batch: Any) -> Any:
        return log_normal(latent, 0.5)

    def kl(self, mean: Any, std: Any, batch: Any) -> Any:
        return None


@dataclasses.dataclass(frozen=True)
class OwnPrior(Prior):
    def module(self, latent_size: int) -> Any:
        return OwnPriorModule(latent_size)


@pytest.fixture(autouse=True, scope="module")
def _own_components() -> None:
    for thing, name in ((VAE(SHAPE, Mlp((5,)), 3), "model"), (OwnPrior, "prior"), (optax.sgd(0.1), "optimizer")):
        own.give(thing, OWN[name])


def choices(name: str) -> tuple[Any, ...]:
    return typing.get_args(typing.get_type_hints(Config)[name])


def combinations() -> list[Config]:
    """Every pair of a preset, an objective and one of three architectures, with two presets all triples.

    "vae" also with other choices and components.
    """
    needed: dict[str, dict[str, Any]] = {"info": {"mmd_weight": 1.0}}
    vae: list[dict[str, Any]] = [
        {name: value} for name in ("likelihood", "inputs", "schedule") for value in choices(name)
    ]
    vae += [{"kl_warmup_epochs": 1.0}, {"warmup_epochs": 1.0}, {"hidden": ()}, {"architecture": "resnet"}]
    vae += [{"optimizer": OWN["optimizer"]}, {"prior": OWN["prior"]}]
    vae += [{"condition": "label", "classes": 3}, {"prior": "label", "classes": 3}]
    vae += [{"prior": name} for name in ("mixture", "vamp", "realnvp")]
    vae += [{"skip_norm": 9.0}]
    dense = [name for name in PRESETS if name not in ("ladder", "vq-vae", "fsq")]
    spatial = {"hidden": (3,), "code_prior_width": 4, "code_prior_layers": 1}
    others = [
        {"preset": "ladder"},
        {"preset": "vq-vae", **spatial, "codes": 3, "code_size": 2},
        {"preset": "vq-vae", **spatial, "codes": 3, "code_size": 2, "codebook": "gradient"},
        {"preset": "fsq", **spatial, "levels": (4, 3)},
    ]
    every = [{"preset": "vae", **changes} for changes in vae]
    every += [
        {"preset": preset, "objective": objective, "architecture": architecture, **needed.get(objective, {})}
        for preset in dense
        for objective in choices("objective")
        for architecture in ("mlp", "conv", "two-layer")
        if architecture == "mlp" or preset in ("notes-vae", "vae") or objective == PRESETS[preset].objective
    ]
    found = []
    for values in every:
        with contextlib.suppress(InputError):  # Two-layer models have only a few objectives, and so has a VampPrior.
            found.append(Config(**{**TINY, **values}))
    assert len(found) == len(vae) + 2 * 22 + 12 + 11 + 9
    for values in others:
        given = {name: value for name, value in {**TINY, **values}.items() if name not in ("latent_size", "head")}
        found.append(Config(**given))
    # A user-defined model decides its own shape.
    return [*found, Config(preset="vae", model=OWN["model"], batch_size=3, epochs=4)]


def unchecked(original: Config, **changes: Any) -> Config:
    changed = copy.copy(original)
    vars(changed).pop("parts", None)  # Those of the original.
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def another(original: Config, name: str) -> Any:
    """Another value of a field, in range or not."""
    value = getattr(original, name)
    if name in OWN:
        built_in = None if name == "model" else choices(name)[0]
        return OWN[name] if value == built_in else built_in
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next(choice for choice in choices(name) if choice != value)
    if isinstance(value, tuple):
        return tuple(width + 1 for width in value) or (2,)
    return value + (1 if isinstance(value, int) else 0.25)


def traced(config: Config) -> str:
    """What training compiles: the step and the initial state, as text."""
    # Presets that differ only in name and validation images are traced once.
    return _traced(unchecked(config, preset="", validation=0.0))


@functools.cache
def _traced(config: Config) -> str:
    model = build_model(config, SHAPE)
    optimizer = build_optimizer(config, steps_per_epoch=5)
    objective = build_objective(config, steps_per_epoch=5, num_images=16)
    step = make_train_step(model, objective, optimizer)
    image, label = ((config.batch_size, *SHAPE), np.uint8), ((config.batch_size,), np.int32)
    batch = {"image": jax.ShapeDtypeStruct(*image), "label": jax.ShapeDtypeStruct(*label)}
    init, params, others = _initial(model, config.seed)

    def fresh(params: Any, others: Any) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params), others)

    init_optimizer, state = jax.make_jaxpr(fresh, return_shape=True)(params, others)
    one = jax.make_jaxpr(lambda *args: step(*args, purpose_key(config.seed, "train-noise")))(state, batch)
    return re.sub("0x[0-9a-f]+", "", f"{init}\n{init_optimizer}\n{one}")


@functools.cache
def _initial(model: Any, seed: int) -> tuple[str, Any, Any]:
    """What computes the first variables, as text, the forms of the parameters, and of the others."""
    example = {"image": np.zeros((1, *SHAPE), np.float32), "label": np.zeros(1, np.int32)}
    made = jax.make_jaxpr(lambda: init_variables(model, purpose_key(seed, "init"), example), return_shape=True)()
    others = {**made[1]}
    return str(made[0]), {"params": others.pop("params", {})}, others


@pytest.mark.long
def test_fields_called_unread_do_not_change_training() -> None:
    seen = set[str]()
    for one in combinations():
        unread = {field.name for field in dataclasses.fields(Config) if config.unmet(one, field.name)}
        seen |= unread
        changed = unchecked(one, **{name: another(one, name) for name in unread})
        assert traced(one) == traced(changed), (one, unread)
    assert seen == CONDITIONAL


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({field.name for field in dataclasses.fields(Config)} - OUTSIDE))
def test_fields_called_read_change_training(name: str) -> None:
    reading = [one for one in combinations() if not config.unmet(one, name)]
    assert any(traced(one) != traced(unchecked(one, **{name: another(one, name)})) for one in reading)


# --- Required arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "changes", "missing"),
    [
        (build_objective, {"kl_warmup_epochs": 2.0}, "steps_per_epoch"),
        (build_objective, {"kl_warmup_epochs": 2.0, "kl_cycles": 3}, "steps_per_epoch"),
        (build_objective, {"objective": "beta-tc"}, "num_images"),
        (build_optimizer, {"schedule": "cosine"}, "steps_per_epoch"),
        (build_optimizer, {"schedule": "stages"}, "steps_per_epoch"),
        (build_optimizer, {"warmup_epochs": 2.0}, "steps_per_epoch"),
    ],
)
def test_a_missing_argument_that_is_needed_raises(build: Any, changes: dict[str, Any], missing: str) -> None:
    counting = Config(preset="vae", **changes)
    with pytest.raises(TypeError, match=missing):
        build(counting)
    build(counting, **{missing: 100})


@pytest.mark.parametrize("name", ["notes-ae", "notes-vae", "vae"])
def test_no_other_argument_is_needed(name: str) -> None:
    build_objective(PRESETS[name])
    build_optimizer(PRESETS[name])
