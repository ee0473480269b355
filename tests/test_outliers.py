"""The worst test images: their numbers, their picture, and the events of an evaluation."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import SMALL, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxvae import cli, data, evaluate
from jaxvae.keys import example_keys, purpose_key
from jaxvae.noise import binarize
from jaxvae.trained import load_run

pytestmark = [pytest.mark.unoptimized, pytest.mark.slow]


@pytest.mark.long
def test_the_worst_images_of_a_run(image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, picture, written = tmp_path / "run", tmp_path / "outliers.png", tmp_path / "figures.json"
    flags = ["--dataset", str(image_file), *SMALL, "--epochs", "1", "--inputs", "dynamic"]
    assert train("--preset", "vae", *flags, "--run-dir", str(run)) == 0
    asked = ["--outliers", str(picture), "--json", str(written), "--tensorboard"]
    assert cli.run(lambda: evaluate.main([str(run), *asked])) == 0
    figures = json.loads(written.read_text())

    found = load_run(run)
    test = data.load(found.config.dataset).test
    keys = example_keys(purpose_key(0, "test-noise"), 0, len(test))
    x = binarize(jnp.asarray(test, jnp.float32) / 255, keys)
    output = found.model.apply(found.variables, x, keys)
    error = np.square(np.float64(output.x_hat) - np.float64(x)).mean((1, 2, 3))
    kl = (0.5 * (output.mean**2 + output.std**2 - 1) - jnp.log(output.std)).sum(1)
    p = np.float64(output.x_hat)
    elbo = np.where(np.asarray(x) > 0.5, np.log(p), np.log1p(-p)).sum((1, 2, 3)) - np.float64(kl)
    for name, values, sign in (("mse", error, -1), ("elbo", elbo, 1)):
        told = figures["outliers"][name]
        assert len(told["indices"]) == 16
        np.testing.assert_allclose(told["values"], values[told["indices"]], rtol=1e-4)
        np.testing.assert_allclose(told["values"], np.sort(sign * values)[:16] * sign, rtol=1e-4)
    with Image.open(picture) as image:
        assert image.width > 500 and len(np.unique(np.asarray(image.convert("L")))) > 50

    # The values of the table are events, beside those of training.
    events = EventAccumulator(str(run / "tensorboard" / "evaluation"), size_guidance={"images": 0})
    events.Reload()
    [event] = events.Scalars("evaluation/mse")
    assert event.step == figures["step"] and event.value == pytest.approx(figures["mse"], rel=1e-6)
    names = ("evaluation/elbo", "evaluation/psnr", "evaluation_active_units/0", "evaluation_kl_per_dimension/3")
    assert {*names} <= {*events.Tags()["scalars"]}
    assert events.Tags()["images"] == ["evaluation/outliers"]

    capsys.readouterr()
    assert cli.run(lambda: evaluate.main([str(run), "--outliers", str(tmp_path / "outliers.jpg")])) == 2
    assert "must end in .png" in capsys.readouterr().err


@pytest.mark.long
def test_a_model_without_a_likelihood_has_its_worst_reconstructions(image_file: Path, tmp_path: Path) -> None:
    run, picture = tmp_path / "run", tmp_path / "outliers.png"
    flags = ["--dataset", str(image_file), *SMALL, "--epochs", "1", "--run-dir", str(run)]
    assert train("--preset", "notes-ae", *flags) == 0
    figures = evaluate.evaluate_run(run, outliers=picture)
    assert figures["outliers"].keys() == {"mse"} and picture.exists()
