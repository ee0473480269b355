import dataclasses
import re

import pytest

from jaxvae import benchmark, flags, torch_weights
from jaxvae.config import PRESETS, Config, options_of
from jaxvae.errors import InputError
from jaxvae.options import flag
from jaxvae.sweep import __main__ as sweep
from jaxvae.train import __main__ as train

COMMANDS = {"train": train.parse, "sweep": sweep.parse, "benchmark": benchmark.parse, "import": torch_weights.main}


def groups(command: str, capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, list[str]]:
    """The flags of each group of a command's help, by its title."""
    with pytest.raises(SystemExit):
        COMMANDS[command]([*(["import"] if command == "import" else []), *args, "--help"])
    found: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        # In a box, or indented where the terminal cannot show one.
        if title := re.match(r"[╭ ][─ ]*((\w+ )?options|positional arguments)[─╮ ]*$", line):
            group = found.setdefault(title[1], [])
        elif name := re.match(r"[│ ] (?:-h, )?(--[\w-]+)", line):
            group.append(name[1])
    return found


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide terminals show help in two columns."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_begins_with_what_most_people_need_and_groups_the_rest(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = groups(command, capsys)
    first = found["options"]
    assert {*map(flag, flags.FIRST)} <= {*first}
    for name in ("data", "model", "objective", "training", "output"):
        assert found[f"{name} options"], name
    assert found["data options"][0] == "--data-dir"
    assert {"--model", "--head"} <= {*found["model options"]}
    assert {"--objective", "--beta", "--prior"} <= {*found["objective options"]}
    assert {"--optimizer", "--schedule", "--seed"} <= {*found["training options"]}
    assert {"--checkpoint-every"} <= {*found["output options"]}
    listed = [each for group in found.values() for each in group]
    swept = {"--batch-size"} if command == "benchmark" else set()
    assert {flag(o.name) for o in options_of(Config)} - swept <= {*listed}
    assert len(listed) == len({*listed})


def test_what_says_where_it_computes_is_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    found = groups("train", capsys)
    assert found["device options"] == [
        *("--devices", "--coordinator", "--num-processes", "--process-id", "--no-compilation-cache")
    ]
    assert {"--run-dir", "--resume"} <= {*found["options"]}


def test_options_of_a_component_of_the_users_own_stand_in_the_group_of_its_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = groups("train", capsys, "--preset", "vae", "--likelihood", "own_parts:Cauchy")
    assert "--cauchy-scale" in found["objective options"]


def test_flags_change_the_default_and_nothing_else() -> None:
    default = train.Arguments(PRESETS["vae"], devices="2")
    parsed = flags.parse(default, ["--beta", "2", "--resume"], prog="prog", description="")
    assert parsed == dataclasses.replace(default, config=dataclasses.replace(PRESETS["vae"], beta=2.0), resume=True)
    assert flags.parse(default, [], prog="prog", description="") == default


def test_what_the_configuration_refuses_is_told_in_its_own_words() -> None:
    with pytest.raises(InputError, match="^--beta 2 has no effect: it needs --objective [^(]*$"):
        train.parse(["--preset", "notes-ae", "--beta", "2"])


def test_a_flag_that_is_set_may_be_repeated() -> None:
    default = train.Arguments(Config("vae", skip_bad=True))
    for argv in ([], ["--skip-bad"], ["--skip_bad", "--beta", "1"]):
        assert flags.parse(default, argv, prog="prog", description="") == default


CONVOLUTIONS = [
    Config("vae", architecture=name, hidden=hidden)
    for name in ("conv", "resnet")
    for hidden in ((32, 64), (512, 256), (8,))
]


@pytest.mark.slow
@pytest.mark.parametrize("config", [*PRESETS.values(), *CONVOLUTIONS])
def test_the_flags_of_a_configuration_make_it(config: Config) -> None:
    for each in (config, dataclasses.replace(config, hidden=(8, 4), epochs=3, learning_rate=3e-5, seed=7)):
        assert train.parse(flags.flags_of(each)).config == each
