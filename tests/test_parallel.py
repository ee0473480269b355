"""Devices, how arrays lie on them, and joining a job: on the eight emulated devices of the suite."""

import dataclasses
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from runs import COMPARED, assert_same_curve, assert_same_training, float64_steps, state_of, train

from jaxvae import config_file, data
from jaxvae.config import PRESETS
from jaxvae.distributed import devices as parallel
from jaxvae.distributed import job as distributed
from jaxvae.errors import InputError
from jaxvae.keys import purpose_key
from jaxvae.models.build import build_model
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective
from jaxvae.optimizer import build_optimizer
from jaxvae.train.computer import advance
from jaxvae.train.step import init_state, intensities, make_train_step
from jaxvae.train.trainer import Trainer

pytestmark = pytest.mark.unoptimized


@pytest.mark.parametrize("count", [0, -1, 9])
def test_devices_that_do_not_exist_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"--devices {count}: this machine has 8 "):
        parallel.select_devices(count)


def test_data_parallel() -> None:
    assert len(parallel.select_devices()) == 8
    placement = parallel.data_parallel(parallel.select_devices(4))
    assert placement.shares == 4
    x = jnp.arange(8.0).reshape(8, 1)
    shares = parallel.place(x, placement.batch).addressable_shards
    assert [share.data.ravel().tolist() for share in shares] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    for copy in parallel.place(x, placement.replicated).addressable_shards:
        np.testing.assert_array_equal(copy.data, x)


def test_divisible() -> None:
    placement = parallel.data_parallel(parallel.select_devices(4))
    parallel.check_divisible(12, placement)
    with pytest.raises(InputError, match="--batch-size 10 does not divide over 4 devices"):
        parallel.check_divisible(10, placement)


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "message"), [
    (["--devices", "3"], "--batch-size 32 does not divide over 3 devices"),
    (["--devices", "9"], "--devices 9: this machine has 8"),
    (["--devices", "0"], "--devices must be a number of at least 1, or all, not 0"),
    (["--devices", "some"], "not some"),
    (["--batch-size", "12", "--devices", "all"], "--batch-size 12 does not divide over 8 devices"),
    (["--coordinator", "localhost:1234"], "--num-processes, --process-id missing"),
    (["--process-id", "0"], "--coordinator, --num-processes missing"),
    (["--coordinator", "here", "--num-processes", "2", "--process-id", "0"], "--coordinator here: must be HOST:PORT"),
    (["--coordinator", "a:99999", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
    (["--coordinator", "a:9", "--num-processes", "2", "--process-id", "2"], "--process-id must be from 0 to 1, not 2"),
    (["--coordinator", "a:9", "--num-processes", "0", "--process-id", "0"], "--num-processes must be at least 1"),
])  # fmt: skip
def test_bad_input_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--dataset", "digits", "--run-dir", str(tmp_path / "run"), *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_does_not_answer() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # It does not listen.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--coordinator {address} did not answer in 0.5 s: .*refused"):
            distributed.join(address, 2, 1, timeout=0.5)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--coordinator {address}: cannot listen there: .*in use"):
            distributed.join(address, 2, 0)


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, False),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # A shell within an allocation.
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "0",
      "SLURM_LOCALID": "0"}, True),
    ({"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
      "SLURM_LOCALID": "0"}, False),
    ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:99", "OMPI_COMM_WORLD_RANK": "1",
      "OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, False),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0", "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_WORKER_ID": "0"}, False),  # A single host with TPUs.
])  # fmt: skip
def test_schedulers_are_recognised(environment: dict[str, str], expected: bool) -> None:
    assert distributed.started_by_a_scheduler(environment) is expected


def test_workers_of_tpu_slices_are_numbered() -> None:
    slice_ = {"TPU_WORKER_HOSTNAMES": "a.job,b.job", "TPU_WORKER_ID": "1"}
    assert distributed.tpu_workers(slice_) == ("a.job:8482", 2, 1)
    assert distributed.tpu_workers({**slice_, "TPU_PROCESS_ADDRESSES": "c:8476,d:8476"}) == ("c:8482", 2, 1)
    second = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "z:8080"}
    assert distributed.tpu_workers({**slice_, **second, "JAX_COORDINATOR_PORT": "99"}) == ("z:99", 6, 5)
    assert distributed.tpu_workers({"TPU_WORKER_ID": "1"}) is None
    with pytest.raises(InputError, match="^TPU_WORKER_ID must be a whole number, not one$"):
        distributed.tpu_workers({**slice_, "TPU_WORKER_ID": "one"})


def test_a_job_that_jax_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Kubernetes without the package that JAX needs there."""
    from jax._src.clusters import ClusterEnv

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    unknown = staticmethod(lambda *_: (None, None, None, None))
    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", unknown)
    with pytest.raises(InputError, match=r"on Kubernetes, pip install 'jax\[k8s\]'; or give --coordinator"):
        distributed.join()


def test_one_process_agrees_with_itself() -> None:
    assert distributed.is_lead()
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert distributed.on_lead(lambda: 7) == 7
    assert distributed.agreed(lambda: 7, lambda x: {"x": x}) == 7


def test_one_process_refuses_by_itself() -> None:
    def refuse() -> int:
        raise InputError("no such thing")

    with pytest.raises(InputError, match="^no such thing$"):
        distributed.agreed(refuse, lambda _: {})


# --- The same answer on any number of devices ----------------------------------------------------------------
#
# Another order of summation is another rounding, and training a VAE multiplies it: in float32 two runs on *one*
# device whose weights differ in the last bit drift as far apart as runs on one device and on eight. So what is
# computed is compared in float64, over 200 steps of each preset; and in float32 where that is possible.


@pytest.fixture(scope="module")
def one_device() -> dict[str, tuple[Any, Any]]:
    """The float64 curve and final parameters of each preset on one device."""
    return {preset: float64_steps(preset, "jit", jax.devices()[:1]) for preset in COMPARED}


@pytest.mark.long
@pytest.mark.parametrize(("way", "devices"), [("jit", 2), ("jit", 4), ("jit", 8), ("pmap", 4), ("shard_map", 4)])
@pytest.mark.parametrize("preset", COMPARED)
def test_200_steps_are_the_same_on_any_number_of_devices(
    preset: str, way: str, devices: int, one_device: dict[str, tuple[Any, Any]]
) -> None:
    losses, params = float64_steps(preset, way, jax.devices()[:devices])
    assert_same_training(losses, params, *one_device[preset])


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "devices"), [("notes-ae", "2"), ("vae", "all")])
def test_any_number_of_devices_trains_alike(
    preset: str, devices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line, in float32, for as many steps as differences stay as small as rounding."""
    for name, flags in (("one", ["--devices", "1"]), ("several", ["--devices", devices])):
        args = ["--preset", preset, "--dataset", "digits", "--epochs", "3" if preset == "notes-ae" else "1"]
        cadence = ["--log-every", "1", "--image-every", "0", "--run-dir", str(tmp_path / name)]
        assert train(*args, *cadence, *flags) == 0
    assert f"x {8 if devices == 'all' else devices}, " in capsys.readouterr().err
    assert_same_curve(tmp_path / "several", tmp_path / "one", 100 if preset == "notes-ae" else 10)


def losses_on_test_images(trainer: Trainer, state: Any) -> Any:
    parts = [trainer.evaluate(state, "test", first) for first in trainer.parts("test")]
    return trainer.joined("test", parts)["loss"]


def batch_gradient(objective: str, way: str) -> Any:
    """The gradient of an objective with a term of the batch, on one device ("plain") or on four; float64."""
    config = dataclasses.replace(
        PRESETS["vae"],
        objective=objective,
        hidden=(8,),
        latent_size=3,
        batch_size=16,
        beta=3.0,
        mmd_weight=20.0 if objective == "info" else 0.0,
    )
    batch, mesh = np.random.default_rng(0).uniform(size=(16, 4, 3, 1)), Mesh(np.array(jax.devices()[:4]), ("data",))
    with jax.enable_x64(True):
        model = build_model(config, (4, 3, 1)).clone(dtype=jnp.float64)
        optimizer = optax.scale(-1.0)  # So that a step is the gradient.
        state = init_state(model, optimizer, jax.random.key(0))
        state = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, state)
        parts = model, build_objective(config, 1, 500), optimizer
        key = jax.random.key(1)
        if way == "plain":
            new, _ = jax.jit(make_train_step(*parts))(state, batch, key)
        elif way == "pmap":
            step = jax.pmap(
                make_train_step(*parts, axis_name="data"), "data", in_axes=(None, 0, None), devices=jax.devices()[:4]
            )
            new, _ = step(state, batch.reshape(4, 4, 4, 3, 1), key)
            new = jax.tree.map(lambda a: a[0], new)
        else:
            specs = {"in_specs": (jax.P(), jax.P("data"), jax.P()), "out_specs": jax.P()}
            step = jax.shard_map(
                make_train_step(*parts, axis_name="data"), mesh=mesh, check_vma=way == "shard_map, tracked", **specs
            )
            new, _ = jax.jit(step)(state, batch, key)
        return jax.device_get(jax.tree.map(lambda a, b: a - b, state.params, new.params))


def assert_same_gradient(a: Any, b: Any) -> None:
    assert {leaf.dtype for leaf in jax.tree.leaves(a)} == {np.dtype("float64")}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), a, b)


@pytest.mark.long
@pytest.mark.parametrize("way", ["pmap", "shard_map", "shard_map, tracked"])
@pytest.mark.parametrize("objective", ["info", "beta-tc", "factor"])
def test_the_gradient_of_a_term_of_the_batch_is_the_same_on_four_devices(
    objective: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = batch_gradient(objective, "plain")
    assert_same_gradient(batch_gradient(objective, way), one)
    # It would not be if the shares of the other devices counted as constants.
    gather = jax.lax.all_gather
    monkeypatch.setattr(jax.lax, "all_gather", lambda *a, **k: jax.lax.stop_gradient(gather(*a, **k)))
    with pytest.raises(AssertionError):
        assert_same_gradient(batch_gradient(objective, way), one)


@pytest.mark.long
def test_the_users_own_mesh_and_shardings() -> None:
    """Batches are sharded over one axis of a mesh, the widest layer's weights and moments over the other."""
    config = dataclasses.replace(PRESETS["vae"], batch_size=16, hidden=(32,), latent_size=4)
    images = data.load("digits")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    one = Trainer(config, images)

    def spread(leaf: Any) -> NamedSharding:
        wide = leaf.ndim and leaf.shape[-1] == 784
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), "model") if wide else PartitionSpec())

    placement = parallel.Placement(
        state=jax.tree.map(spread, one.abstract_state()),
        batch=NamedSharding(mesh, PartitionSpec("data")),
        images=NamedSharding(mesh, PartitionSpec()),
    )
    assert placement.shares == 4
    with pytest.raises(InputError, match="does not divide over 4"):
        Trainer(dataclasses.replace(config, batch_size=18), images, placement)
    ends, losses, tests = [], [], []
    for trainer in (one, Trainer(config, images, placement)):
        steps = trainer.steps_per_epoch
        state, [(_, terms)] = advance(trainer, trainer.start(None), 0, steps)
        ends.append(state)
        losses.append(terms["loss"])
        tests.append(losses_on_test_images(trainer, state))
        copied = trainer.checkpoint(state, steps, steps)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(copied), jax.device_get(state))
    kernel = ends[1].params["params"]["decoder"]["mlp"]["dense_1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (32, 392)
    assert kernel.sharding == placement.state.params["params"]["decoder"]["mlp"]["dense_1"]["kernel"]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(tests[1], tests[0], rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("count", [180, 179, 3])
def test_evaluation_takes_every_image_once_on_any_number_of_devices(count: int) -> None:
    config = dataclasses.replace(PRESETS["vae"], hidden=(16,), latent_size=3)
    images = data.load("digits")
    images = dataclasses.replace(images, test=images.test[:count])
    got = []
    for devices in (1, 8):
        placement = parallel.data_parallel(parallel.select_devices(devices))
        trainer = Trainer(config, images, placement)
        got.append(losses_on_test_images(trainer, trainer.start(None)))
        assert got[-1].shape == (count,)
    np.testing.assert_allclose(got[1], got[0], rtol=1e-6)
    # Image by image, by hand.
    model = build_model(config, (28, 28, 1))
    params = init_state(model, build_optimizer(config), purpose_key(0, "init")).params
    for place in (0, count - 1):
        key = jax.random.fold_in(purpose_key(0, "test-noise"), place)
        x = intensities(jnp.asarray(images.test[place : place + 1]))
        loss = build_objective(config).of(model, params, {"image": x}, key[None], Context())[0]["loss"]
        np.testing.assert_allclose(got[0][place], loss[0], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_of_eight_devices_starts_on_fewer_bit_for_bit(devices: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    cadence = ["--image-every", "0", "--epochs", "1"]
    assert train("--dataset", "digits", "--devices", "8", "--run-dir", str(run_dir), *cadence) == 0
    saved, config = state_of(run_dir), config_file.load(run_dir / "config.json")
    images = data.load("digits")
    placement = parallel.data_parallel(parallel.select_devices(devices))
    trainer = Trainer(config, images, placement)
    state = trainer.start(saved)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(saved), strict=True):
        assert len(leaf.addressable_shards) == devices
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(expected).tobytes()
    assert train("--resume", "--run-dir", str(run_dir), "--epochs", "2", "--devices", str(devices)) == 0
    assert state_of(run_dir).step == 2 * saved.step


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["notes-vae", "vae"])
def test_a_step_has_one_collective_of_one_vector(preset: str) -> None:
    """It averages everything at once: between machines each collective costs its latency."""
    config = dataclasses.replace(PRESETS[preset], hidden=(16, 8), latent_size=4)
    trainer = Trainer(config, data.load("digits"), parallel.data_parallel(jax.devices()[:2]))
    state = trainer.start(None)
    text = trainer._program.trace(*trainer._arguments(state, 0)).lower().compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    collectives = re.findall(rf"= (\S+) (?:{kinds})\(|= (\(.*?\)) (?:{kinds})\(", text)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    terms = {"notes-vae": 3, "vae": 3}[preset]
    assert [shape.partition("{")[0] for shape, _ in collectives] == [f"f32[{parameters + terms}]"]


def test_the_time_of_a_collective_is_the_median_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(parallel, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert parallel.collective_seconds(1000, parallel.data_parallel(jax.devices()[:2]), rounds=3) == 3.0


@pytest.mark.parametrize(("collective", "step", "said"), [(0.4, 1.0, None), (0.6, 1.0, "60%"), (3.0, 1.0, "100%")])
def test_communication_that_dominates_is_reported(collective: float, step: float, said: str | None) -> None:
    advice = parallel.communication_advice(collective, step)
    assert (advice is None) if said is None else (advice is not None and said in advice and "--batch-size" in advice)
