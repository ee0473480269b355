"""Train members from Python, without files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae.config import Config, traced_of
from jaxvae.data.images import ImageData, prepared
from jaxvae.errors import InputError
from jaxvae.options import flag
from jaxvae.sweep.grid import DIVERGED
from jaxvae.sweep.trainer import MembersState, MembersTrainer, common_config
from jaxvae.train.computer import advance


class Trained(NamedTuple):
    """What `train_members` returns, on the host.

    Attributes:
      state: of the M members; ``state.member(i)`` is one of them.
      train: the objective's terms at every step, [M, steps].
      test: their means over the test images, [M]; NaN for a member that diverged.
    """

    state: MembersState
    train: dict[str, NDArray[np.float32]]
    test: dict[str, NDArray[np.float64]]


def member_configs(
    config: Config, seeds: Sequence[int], hyperparameters: Mapping[str, Sequence[float]] | None = None
) -> list[Config]:
    """The configuration of each of M members, as of a separate run. Raises `InputError` as `train_members` does."""
    hyperparameters = hyperparameters or {}
    for name, values in hyperparameters.items():
        if name not in traced_of(type(config)):
            raise InputError(
                f"{name} cannot differ between members; what can: seed, {', '.join(traced_of(type(config)))}"
            )
        if len(values) != len(seeds):
            raise InputError(f"{flag(name)} has {len(values)} values for {len(seeds)} members")
    if not len(seeds):
        raise InputError("there are no members to train")
    return [
        replace(config, seed=int(seed), **{name: float(values[i]) for name, values in hyperparameters.items()})
        for i, seed in enumerate(seeds)
    ]


def train_members(
    config: Config,
    images: ImageData,
    seeds: Sequence[int],
    hyperparameters: Mapping[str, Sequence[float]] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Train M models in one program, each as a separate run with its seed and hyperparameters would be.

    Args:
      config: what they have in common.
      images: what to train and to test on; binarised here where `config` says "static".
      seeds: [M].
      hyperparameters: any of `jaxvae.config.TRACED`, [M] each; `config` has the others.
      devices: those that share the members. Default: all.

    Raises:
      InputError: a number is out of range or cannot be swept, or there is not one for each seed.
    """
    configs = member_configs(config, seeds, hyperparameters)
    images = prepared(images, config)
    common = common_config(configs)
    swept = {name: [getattr(member, name) for member in configs] for name in common.traced()}
    trainer = MembersTrainer(common, images, [member.seed for member in configs], swept, devices)
    state, dispatched = advance(trainer, trainer.start(None), 0, config.epochs * trainer.steps_per_epoch)
    calls = [
        {name: values[:, :count] for name, values in trainer.host(dict(terms)).items() if name != DIVERGED}
        for count, terms in dispatched
    ]
    parts = [trainer.evaluate(state, "test", first) for first in trainer.parts("test")]
    test = {name: values.mean(axis=1, dtype=np.float64) for name, values in trainer.joined("test", parts).items()}
    end: MembersState = trainer.host(state)
    for values in test.values():
        values[np.asarray(end.diverged) > 0] = np.nan
    return Trained(end, {name: np.concatenate([terms[name] for terms in calls], axis=1) for name in calls[0]}, test)
