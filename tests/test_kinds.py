"""Every kind of model and objective, on colour images: trained, resumed, swept, shared by two devices, and used."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from kinds import KINDS, config_of
from runs import assert_same_run

import jaxvae
from jaxvae import data
from jaxvae.config import PRESETS
from jaxvae.distributed import devices as parallel
from jaxvae.models.build import PRIORS, can_sample
from jaxvae.models.likelihoods import LIKELIHOODS
from jaxvae.models.networks import NETWORKS
from jaxvae.objectives.build import OBJECTIVES
from jaxvae.sweep.trainer import MembersTrainer
from jaxvae.train.computer import advance
from jaxvae.train.cost import flops_per_step
from jaxvae.train.trainer import Trainer

EPOCH = 4  # Steps.


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz file of labelled 8 x 8 images: squares, whose place and colour vary."""
    rng = np.random.default_rng(0)
    whole = np.zeros((8 * EPOCH + 8, 8, 8, 3), np.uint8)
    for image, row, column in zip(whole, *rng.integers(0, 5, (2, len(whole))), strict=True):
        image[row : row + 4, column : column + 4] = rng.integers(60, 256, 3)
    label = np.arange(len(whole)) % 2
    path = tmp_path_factory.mktemp("kinds") / "colour.npz"
    np.savez(path, x_train=whole[:-8], y_train=label[:-8], x_test=whole[-8:], y_test=label[-8:])
    return path


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_trains_resumes_and_is_used_alone_in_a_sweep_and_on_two_devices(
    kind: str, colour: Path, tmp_path: Path
) -> None:
    whole = jaxvae.fit(config_of(kind), data=str(colour), run_dir=tmp_path / "whole", devices=1)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(2 * EPOCH))  # As if it had been killed in the second epoch.
    jaxvae.fit(config_of(kind), data=str(colour), run_dir=tmp_path / "cut", devices=1, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

    run, losses = whole.run, whole.metrics["train"]["loss"]
    config, swept, images = run.config, KINDS[kind][-1], data.load(str(colour), labels=run.config.reads_labels)
    numbers = {name: [value] * 2 for name, value in config.traced().items()}
    numbers[swept] = [2 * getattr(config, swept), getattr(config, swept)]
    members = MembersTrainer(config, images, (config.seed, config.seed), numbers, jax.devices()[:1])
    state, calls = advance(members, members.start(None), 0, 2 * EPOCH)
    other, one = np.concatenate([np.asarray(terms["loss"])[:, :count] for count, terms in calls], axis=1)
    jax.tree.map(np.testing.assert_array_equal, members.host(state).member(1), whole.state)
    np.testing.assert_allclose(one, losses, rtol=1e-5)
    assert (other != one).any()  # They differ in the option that is swept, and in nothing else.

    trainer = Trainer(config, images, parallel.data_parallel(jax.devices()[:2]))
    _, shares = advance(trainer, trainer.start(None), 0, 2 * EPOCH)
    shared = np.concatenate([np.asarray(terms["loss"])[:count] for count, terms in shares])
    np.testing.assert_allclose(shared, losses, rtol=1e-5)

    flops, _ = flops_per_step(config, images)
    assert flops > 2 * config.batch_size * max(leaf.size for leaf in jax.tree.leaves(run.variables))

    told = {"label": images.split("test")["label"]} if config.reads_labels else {}
    latents = run.encode(images.test, **told)
    assert len(latents) == 8 and np.isfinite(latents).all()
    for made in (run.reconstruct(images.test / 255, **told), *([run.sample(8)] if can_sample(run.model) else [])):
        assert made.shape == (8, 8, 8, 3) and made.min() >= 0 and made.max() <= 1 and made.std() > 0


def test_every_part_comes_in_a_kind() -> None:
    configs = [config_of(kind) for kind in KINDS]
    for field, names in (
        ("preset", PRESETS),
        ("objective", OBJECTIVES),
        ("likelihood", LIKELIHOODS),
        ("prior", PRIORS),
        ("architecture", NETWORKS),
    ):
        assert {getattr(config, field) for config in configs} == {*names}, field
