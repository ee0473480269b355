"""The evaluation of runs, as the command line reports it."""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import SMALL, train
from scipy import stats

from jaxvae import cli, data, evaluate
from jaxvae.errors import InputError
from jaxvae.keys import example_keys, purpose_key
from jaxvae.models.build import reconstruct
from jaxvae.noise import binarize
from jaxvae.run import plots
from jaxvae.trained import load_run

pytestmark = pytest.mark.unoptimized

BOUNDS_AND_LIKELIHOODS = ("elbo", "iwae_bound", "log_likelihood", "log_density")  # Or one of these with a prefix.


@pytest.fixture
def base(image_file: Path) -> list[str]:
    return ["--dataset", str(image_file), *SMALL, "--epochs", "2"]


def evaluated(run_dir: Path, out: Path, *flags: str) -> Any:
    assert cli.run(lambda: evaluate.main([str(run_dir), "--json", str(out), *flags])) == 0
    return json.loads(out.read_text())


@pytest.mark.long
@pytest.mark.parametrize("inputs", ["grey", "dynamic", "static"])
def test_the_metrics_of_a_run(inputs: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    weights = ["--beta", "3", "--free-bits", "0.3"]
    assert train("--preset", "vae", *base, "--inputs", inputs, *weights, "--run-dir", str(run)) == 0
    capsys.readouterr()
    figures = evaluated(run, tmp_path / "figures.json", "--samples", "300")
    shown = capsys.readouterr().out
    found = load_run(run)
    test = data.load(found.config.dataset).test
    if inputs == "static":
        test = data.binarized(data.load(found.config.dataset), 0).test
        assert set(np.unique(test)) <= {0, 255}
    x = jnp.asarray(test, jnp.float32) / 255
    keys = example_keys(purpose_key(0, "test-noise"), 0, len(test))
    if inputs == "dynamic":
        x = binarize(x, keys)
    mean, std = (np.asarray(a, np.float64) for a in found.model.apply(found.variables, x, method="encode"))
    output = found.model.apply(found.variables, x, keys)
    assert figures["mse"] == pytest.approx(float(jnp.square(output.x_hat - x).mean()), rel=1e-4)
    kl = 0.5 * (mean**2 + std**2 - 1) - np.log(std)
    np.testing.assert_allclose(figures["kl_per_dimension"], kl.mean(0), rtol=1e-3, atol=1e-6)
    assert figures["kl"] == pytest.approx(kl.sum(1).mean(), rel=1e-4)
    assert figures["kl_standard_error"] == pytest.approx(stats.sem(kl.sum(1)), rel=0.01)  # Three digits.
    assert (figures["active_units"], figures["latent_sizes"]) == ([int((mean.var(0) > 0.01).sum())], [4])
    # The loss is what was minimised; the ELBO is the model's, whatever the weights were.
    kind = "unnormalised_" if inputs == "grey" else ""
    elbo, log_p = f"{kind}elbo", f"{kind}log_likelihood"
    assert figures[elbo] == pytest.approx(-(figures["recon"] + figures["kl"]), rel=1e-6)
    cost = np.maximum(kl, 0.3).sum(1).mean()
    assert figures["loss"] == pytest.approx(figures["recon"] + 3 * cost, rel=1e-5)
    assert figures["samples"] == 300
    slack = 5 * math.hypot(figures[f"{log_p}_sampling_error"], figures[f"{elbo}_standard_error"])
    assert figures[log_p] > figures[elbo] - slack
    if inputs == "grey":
        assert not {"elbo", "log_likelihood", "bits_per_dimension"} & figures.keys()
        assert " elbo" not in shown and " log_likelihood" not in shown
    else:
        assert figures["bits_per_dimension"] == pytest.approx(-figures["log_likelihood"] / 30 / math.log(2), rel=1e-5)
    for word in (elbo, log_p, "from 300 latents an image", "nats/image", "per pixel", "active_units"):
        assert word in shown


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "bound", "log_p"),
    [
        ("--architecture two-layer --objective iwae", "unnormalised_iwae_bound", "unnormalised_log_likelihood"),
        ("--architecture conv", "unnormalised_elbo", "unnormalised_log_likelihood"),
        ("--likelihood logistic", "elbo", "log_likelihood"),
        ("--likelihood gaussian-pixel --objective dreg --samples 3", "density_iwae_bound", "log_density"),
        ("--likelihood gaussian-pixel --objective dreg --samples 3 --dequantize", "iwae_bound", "log_likelihood"),
    ],
)  # fmt: skip
def test_every_kind_of_model_is_evaluated(
    flags: str, bound: str, log_p: str, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("--preset", "vae", *base, *flags.split(), "--run-dir", str(run)) == 0
    assert capsys.readouterr().err.count("--dequantize") == int(log_p == "log_density")
    figures = evaluated(run, tmp_path / "figures.json", "--samples", "50")
    assert capsys.readouterr().err.count("--dequantize") == int(log_p == "log_density")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["latent_sizes"] == ([8, 4] if "two-layer" in flags else [4])
    for term in ("loss", bound):
        assert figures[term] == pytest.approx(last[term], rel=1e-5)
    assert math.isfinite(figures[log_p])
    assert {bound, log_p} == {name for name in figures if name.endswith(BOUNDS_AND_LIKELIHOODS)}
    if log_p == "log_likelihood":
        assert figures["bits_per_dimension"] == pytest.approx(-figures[log_p] / 30 / math.log(2), rel=1e-5)
        scaled = figures[f"{log_p}_standard_error"] / 30 / math.log(2)
        assert figures["bits_per_dimension_standard_error"] == pytest.approx(scaled, rel=1e-2)
    else:
        assert "bits_per_dimension" not in figures


@pytest.mark.slow
def test_one_latent_an_image_has_no_sampling_error(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train("--preset", "vae", *base, "--likelihood", "logistic", "--run-dir", str(run)) == 0
    figures = evaluated(run, tmp_path / "figures.json", "--samples", "1")
    assert figures["log_likelihood_sampling_error"] is None
    assert "; from 1 latent an image" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notes_scale_has_no_likelihood(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(*base, "--run-dir", str(run)) == 0
    figures = evaluated(run, tmp_path / "figures.json")
    assert figures["mse"] == pytest.approx(figures["recon"], rel=1e-4)
    assert not any(name.endswith(BOUNDS_AND_LIKELIHOODS) for name in figures)
    capsys.readouterr()
    assert cli.run(lambda: evaluate.main([str(run), "--samples", "10"])) == 2
    assert "notes-elbo, which has no likelihood" in capsys.readouterr().err
    with pytest.raises(InputError, match="--samples must not be negative"):
        evaluate.main([str(run), "--samples", "-1"])


@pytest.mark.long
def test_pictures_show_what_the_model_sees(base: list[str], tmp_path: Path) -> None:
    """Binarised pixels over their reconstructions, in the grid that is written."""
    run = tmp_path / "run"
    assert train("--preset", "vae", *base, "--inputs", "dynamic", "--run-dir", str(run)) == 0
    with Image.open(run / "images" / "reconstructions_epoch_0002.png") as file:
        picture = np.asarray(file)[::2, ::2]
    found = load_run(run)
    shown = data.prepared(data.load(found.config.dataset), found.config).validation
    x = jnp.asarray(shown, jnp.float32) / 255
    key = purpose_key(0, "reconstructions")
    seen = binarize(x, example_keys(key, 0, len(shown)))
    expected = plots.reconstruction_grid(
        np.asarray(seen), np.asarray(reconstruct(found.model, found.variables, {"image": seen}, key))
    )
    assert np.abs(picture.astype(int) - expected[..., 0]).max() <= 1
    assert not np.array_equal(np.asarray(seen), np.asarray(x))
