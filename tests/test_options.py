"""The options that components declare, in the configuration and on the command line."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jaxvae import cli, config_file
from jaxvae.components import SLOTS
from jaxvae.config import PRESETS, TRACED, Config, options_of, traced_of
from jaxvae.errors import InputError
from jaxvae.options import AT_LEAST_1, FRACTION, NOT_NEGATIVE, POSITIVE, flag, one_of, option, options, words
from jaxvae.train.__main__ import parse

OWN = {"preset": "vae", "likelihood": "own_parts:Cauchy"}


def test_options_are_read_off_the_declaration() -> None:
    @dataclasses.dataclass(frozen=True)
    class Base:
        first: int = option(3, AT_LEAST_1)
        """The first,
        on two lines."""

    @dataclasses.dataclass(frozen=True)
    class Part(Base):
        second: float = option(0.5, traced=True)
        """The second."""

    first, second = options(Part)
    assert (first.name, first.annotation, first.default, first.help) == ("first", int, 3, "The first, on two lines.")
    assert (second.name, second.help, second.traced, first.traced) == ("second", "The second.", True, False)
    with pytest.raises(InputError, match="--first must be at least 1, not 0"):
        first.check(0)


@pytest.mark.parametrize(
    ("must", "taken", "refused"),
    [
        (AT_LEAST_1, [1, 7], [0, -1]),
        (POSITIVE, [1e-9, 3.0], [0.0, -1.0, float("nan"), float("inf")]),
        (NOT_NEGATIVE, [0.0, 3.0], [-1e-9, float("nan"), float("inf")]),
        (FRACTION, [0.0, 0.999], [1.0, -0.1, float("nan")]),
    ],
)
def test_ranges_accept_what_they_say(must: Any, taken: list[float], refused: list[float]) -> None:
    assert all(must.holds(value) for value in taken) and not any(must.holds(value) for value in refused)


@pytest.mark.parametrize(("slot", "name"), [(slot, name) for slot, known in SLOTS.items() for name in known])
def test_every_component_is_documented_and_its_options_are_fields_of_the_configuration(slot: str, name: str) -> None:
    kind = SLOTS[slot][name]
    assert kind.__doc__
    fields = {o.name: o for o in options_of(Config)}
    for declared in options(kind):
        assert declared.help, f"{name} has no help for {declared.name}"
        assert (fields[declared.name].annotation, fields[declared.name].default) == (
            declared.annotation,
            declared.default,
        )


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for declared in options_of(Config):
        assert flag(declared.name) in said
    for kind in (kind for known in SLOTS.values() for kind in known.values()):
        for declared in options(kind):
            assert declared.help[:30] in said


def test_traced_options_follow_from_the_declarations() -> None:
    assert set(TRACED) == {"learning_rate", "weight_decay", "beta", "free_bits", "mmd_weight"} | {
        *("capacity", "capacity_weight", "code_l2", "decoder_l2", "commitment")
    }
    assert set(traced_of(type(Config(**OWN)))) == {*TRACED, "cauchy_scale"}
    assert set(PRESETS["notes-vae"].traced()) == {"learning_rate", "weight_decay"}


def test_a_user_defined_component_brings_its_options() -> None:
    config = Config(**OWN, cauchy_scale=0.3)
    assert isinstance(config, Config) and type(config) is type(Config(**OWN))
    assert config.parts.likelihood.cauchy_scale == 0.3
    assert dataclasses.replace(config, beta=2.0).cauchy_scale == 0.3
    assert dataclasses.replace(PRESETS["vae"], likelihood="own_parts:Cauchy", cauchy_scale=0.3) == config
    assert config_file.from_json(config_file.to_json(config)) == config
    with pytest.raises(InputError, match="--cauchy-scale must be positive"):
        Config(**OWN, cauchy_scale=-1.0)
    # If its component is replaced, it has no effect.
    with pytest.raises(InputError, match="--cauchy-scale has no effect"):
        dataclasses.replace(config, likelihood="bernoulli")
    assert dataclasses.replace(Config(**OWN), likelihood="bernoulli") == PRESETS["vae"]


def test_the_command_line_has_the_options_of_user_defined_components(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--preset", "vae", "--likelihood", "own_parts:Cauchy"]
    assert parse([*args, "--cauchy-scale", "0.3"]).config == Config(**OWN, cauchy_scale=0.3)
    with pytest.raises(InputError, match="--cauchy-scael.*--cauchy-scale"):
        parse([*args, "--cauchy-scael", "0.3"])
    with pytest.raises(SystemExit):
        parse([*args, "--help"])
    assert "--cauchy-scale" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--likelihood", "own_parts:Nothing"], "own_parts holds no Nothing"),
        (["--likelihood", "no_such_module:Name"], "no_such_module cannot be imported"),
        (["--likelihood", "own_parts:Net"], "must inherit from jaxvae.protocols.Likelihood"),
        (["--likelihood", "own_parts:Clashing"], "--beta of a component is declared twice"),
        (["--likelihood", "own parts:Net"], "must be package.module:Name"),
        (["--likelihood", "bernouli"], "did you mean bernoulli"),
        (["--likelihood", "own_parts:Without"], "own_parts:Without: must define nll"),
        (["--likelihood", "own_parts:NoDataclass"], "must be a dataclass(frozen=True)"),
        (["--likelihood", "own_parts:Taken"], "--resume is a flag of the command lines"),
        (["--model", "own_parts:Net"], "has no method draw, which --objective elbo calls"),
        (["--prior", "own_parts:Cauchy"], "must inherit from jaxvae.protocols.Prior"),
        (["--model", "own_parts"], "--model own_parts: must be package.module:Name"),
        (["--model", "own_parts:loss"], "--model"),
        (["--model", "own_parts:lion"], "--model"),
        (["--optimizer", "own_parts:loss"], "must inherit from jaxvae.protocols.Optimizer"),
        (["--optimizer", "own_parts:lion", "--learning-rate", "0.1"], "--learning-rate 0.1 has no effect"),
    ],
)
def test_a_component_that_cannot_be_used_is_a_one_line_error(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runs import train

    assert train("--preset", "vae", *args, "--run-dir", str(tmp_path / "run")) == cli.EXIT_BAD_INPUT
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.unoptimized
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--likelihood", "own_parts:Wrong", "--dataset", "digits"], "Wrong.nll must return a value for each image"),
        (["--model", "own_parts:Net", "--objective", "own_parts:not_a_loss", "--dataset", "digits"], "among them loss"),
        (["--prior", "own_parts:OfLabel", "--dataset", "digits"], "the data holds no label"),
    ],
)
def test_a_component_that_breaks_its_contract_fails_before_the_first_step(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runs import train

    assert train("--preset", "vae", *args, "--run-dir", str(tmp_path / "run")) == cli.EXIT_BAD_INPUT
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and said in last
    assert not list((tmp_path).glob("run/*"))


def test_words() -> None:
    assert [one_of(list(names)) for names in ("a", "ab", "abc")] == ["a", "a or b", "a, b or c"]
    assert (words((512, 256)), words(()), words(1e-3), words(True)) == ("512,256", "none", "0.001", "True")
