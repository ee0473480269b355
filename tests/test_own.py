"""Components of the user's own: whose fault an error is, and where."""

from pathlib import Path

import pytest
from runs import SMALL, train

from jaxvae import own
from jaxvae.errors import InputError
from jaxvae.own import blamed

MODULE = """
import jax.numpy as jnp
from flax import linen as nn


class Fixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.sigmoid(nn.Dense(30)(x.reshape(x.shape[0], -1))).reshape(-1, 6, 5, 1)


def loss(output, batch):
    return {"loss": jnp.square(output * batch["image"]).sum((1, 2, 3))}
"""


def test_an_error_in_a_component_names_it_and_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_fixed.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = [*SMALL[-2:], "--model", "own_fixed:Fixed", "--objective", "own_fixed:loss", "--run-dir", "run"]
    assert train("--preset", "vae", "--dataset", "digits", "--epochs", "1", *flags) == 2  # 28 x 28.
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --model own_fixed:Fixed --objective own_fixed:loss: ")
    assert "own_fixed.py, line 13: TypeError: " in said and "(8, 6, 5, 1)" in said
    assert not Path("run").exists()


def test_a_file_beside_the_package_is_the_users() -> None:
    """Even if its name begins as the package's folder does."""
    beside = f"{Path(own.__file__).parent}_mine.py"
    with pytest.raises(InputError, match=r"jaxvae_mine\.py, line 1: ZeroDivisionError"), blamed(["--model a:B"]):
        exec(compile("1 / 0", beside, "exec"))


def test_other_errors_stay_what_they_are() -> None:
    components = ["--model here:Model"]
    for error in (InputError("as it was"), ValueError("not theirs")):
        with pytest.raises(type(error), match=str(error)), blamed([] if isinstance(error, ValueError) else components):
            raise error
    said = r"^--model here:Model: .*test_own.py, line \d+: ValueError: two words$"
    with pytest.raises(InputError, match=said), blamed(components):
        raise ValueError("two\nwords\n\nand an explanation")
