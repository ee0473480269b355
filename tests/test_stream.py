"""Streamed training images, against the same images on the device."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import PATIENCE

from jaxvae import memory
from jaxvae.config import Config
from jaxvae.data.images import ImageData
from jaxvae.errors import InputError
from jaxvae.fitting import result_of
from jaxvae.sweep.grid import Grid
from jaxvae.sweep.loop import sweep
from jaxvae.train import loop, pipeline, stream
from jaxvae.train.trainer import Trainer
from tests.small import SMALL

N, B = 57, 4  # 14 steps an epoch, one image dropped.


def example_blocks() -> tuple[dict[str, np.ndarray], stream.Blocks, list[int]]:
    rng = np.random.default_rng(0)
    examples = {"image": rng.integers(0, 256, (N, 3, 2, 1), np.uint8), "label": np.arange(N, dtype=np.int32)}
    asked: list[int] = []

    def order_of(epoch: int) -> np.ndarray:
        asked.append(epoch)
        return np.random.default_rng(epoch).permutation(N)

    return examples, stream.Blocks(examples, B, N // B, order_of), asked


@pytest.mark.parametrize("steps", [1, 3, 5, 14, 100])
@pytest.mark.parametrize("first", [0, 9, 30])
def test_a_step_gets_the_batch_that_the_order_of_its_epoch_names(
    steps: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", steps * B * (6 + 4))
    examples, blocks, asked = example_blocks()
    assert blocks.steps == min(steps, N // B)
    places, step = blocks.places(), first
    while step < first + 40:
        count = blocks.left(step)
        block = blocks.read(blocks.place(step))
        for each in range(step, step + count):
            epoch, within = divmod(each, N // B)
            if within == 0 and each > step:
                break  # The last block of an epoch may be shorter.
            taken = places[within * B : (within + 1) * B]
            wanted = np.random.default_rng(epoch).permutation(N)[within * B : (within + 1) * B]
            for name, values in examples.items():
                assert block[name].ndim <= 2, "examples lie in rows"
                taken_shaped = block[name][taken].reshape(B, *values.shape[1:])
                np.testing.assert_array_equal(taken_shaped, values[wanted])
                assert blocks.forms[name].shape == block[name].shape and blocks.forms[name].dtype == values.dtype
        step = min(step + count, (step // (N // B) + 1) * (N // B))
    assert len(asked) == len(set(asked)), "an epoch's order was computed twice"
    blocks.close()


def test_a_file_that_cannot_be_read_any_more_is_told_where_the_block_is_needed() -> None:
    class Gone:
        shape, dtype, nbytes = (N, 3, 2, 1), np.dtype(np.uint8), 6 * N

        def __len__(self) -> int:
            return N

        def __getitem__(self, key: Any) -> Any:
            raise InputError("gone")

    blocks = stream.Blocks({"image": Gone()}, B, N // B, lambda _: np.arange(N))  # type: ignore[dict-item]
    with pytest.raises(InputError, match="gone"):
        blocks.read(blocks.place(0))


def test_waiting_counts_from_the_second_block_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first must be read in any case. A clock that only waiting moves, by 5 s for a block."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", B * (6 + 4))
    now, result = [0.0], stream.Future.result
    monkeypatch.setattr(stream.time, "perf_counter", lambda: now[0])

    def waits(self: Any) -> Any:
        now[0] += 5
        return result(self)

    monkeypatch.setattr(stream.Future, "result", waits)
    _, blocks, _ = example_blocks()
    for step, waited in ((0, 0), (1, 5), (2, 10), (9, 10), (10, 15)):  # From step 2, it goes to 9.
        blocks.read(blocks.place(step))
        assert blocks.waited == waited
    blocks.close()


@pytest.mark.parametrize(("waited", "said"), [(0.0, None), (1.0, None), (3.4, "34%"), (12.0, "100%")])
def test_a_run_that_waits_for_its_images_says_so(waited: float, said: str | None) -> None:
    told = loop.input_bound(waited, 10.0)
    assert told is None if said is None else told is not None and told.startswith(f"input-bound: {said} of")
    assert loop.input_bound(waited / 100, 0.1) is None  # Less than a second is not worth a word.


def test_a_part_of_a_split_repeats_its_last_example() -> None:
    np.testing.assert_array_equal(stream.part_of({"image": np.arange(7)}, 4, 5)["image"], [4, 5, 6, 6, 6])


# Reads a file for its digest and its mean, then an epoch in blocks. Prints how much its memory grew at most.
READER = """
import sys
from pathlib import Path
import numpy as np
from jaxvae import data
from jaxvae.data import rows
from jaxvae.train import stream

train = data.load(sys.argv[1], None, data.Reading(stream="always")).train
most, advise = 0, rows.StoredArray._advise

def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))

def noted(self, advice):
    global most
    most = max(most, resident())  # Before pages are given back.
    advise(self, advice)

rows.StoredArray._advise = noted
stream.BLOCK_BYTES = 2**22
order = np.random.default_rng(0).permutation(len(train))
before = resident()
data.digest(train)
rows.mean(train)
most = resident()
blocks, place = stream.Blocks({"image": train}, 64, len(train) // 64, lambda _: order), stream.Place(0, 0)
while place.epoch == 0:
    assert blocks.read(place)["image"].nbytes <= 2**22
    place = blocks._after(place)
blocks.close()
print(train.nbytes, max(most, resident()) - before)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_streamed_file_does_not_grow_with_it(tmp_path: Path) -> None:
    file = tmp_path / "images.npy"
    np.lib.format.open_memmap(file, "w+", np.uint8, (17_000, 64, 64, 3))
    ran = subprocess.run([sys.executable, "-c", READER, str(file)], capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stderr
    size, grown = map(int, ran.stdout.split())
    assert size > 180e6 and grown < 90e6


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of runs that stream blocks of 3 steps: an epoch has 13."""
    images = np.random.default_rng(1).integers(0, 256, (64, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 3 * 4 * 64)
    return dataclasses.replace(
        SMALL, dataset=str(tmp_path / "images.npy"), batch_size=4, epochs=3, validation=5, log_every=1,
        checkpoint_every=1,
    )  # fmt: skip


def metrics(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    ("own", "devices"),
    [({}, 2), ({"architecture": "conv", "hidden": (4,)}, 1), ({"inputs": "dynamic", "ema": 0.5}, 1)],
)
def test_a_streamed_run_writes_the_bytes_of_a_resident_one(
    config: Config, tmp_path: Path, own: dict[str, Any], devices: int
) -> None:
    config = dataclasses.replace(config, **own)
    for name in ("never", "always"):
        loop.train(dataclasses.replace(config, stream=name), tmp_path / name, devices=devices)
    assert metrics(tmp_path / "always") == metrics(tmp_path / "never")
    assert json.loads(metrics(tmp_path / "never").splitlines()[-1])["split"] == "test"


@pytest.mark.long
def test_a_run_begun_on_the_device_goes_on_streamed_and_back(config: Config, tmp_path: Path) -> None:
    loop.train(dataclasses.replace(config, stream="never"), tmp_path / "whole", devices=1)
    mixed = tmp_path / "mixed"
    for epochs, how in ((1, "never"), (2, "always"), (3, "auto")):
        loop.train(dataclasses.replace(config, stream=how, epochs=epochs), mixed, epochs > 1, devices=1)  # type: ignore[arg-type]
    finals = [[json.loads(line) for line in metrics(run).splitlines()] for run in (tmp_path / "whole", mixed)]
    train = [[line for line in lines if line["split"] == "train"] for lines in finals]
    assert train[0] == train[1] and finals[0][-1] == finals[1][-1]


@pytest.mark.long
def test_streamed_steps_from_the_middle_of_a_block_are_those_of_a_whole_run(config: Config) -> None:
    images = np.random.default_rng(1).integers(0, 256, (57, 8, 8, 1), np.uint8)
    data = ImageData("noise", "a test", images, images[:9])

    def losses(how: str, cuts: list[int]) -> Any:
        with Trainer(dataclasses.replace(config, stream=how), data) as trainer:  # type: ignore[arg-type]
            state, step, found = trainer.start(None), 0, []
            trainer.compile(state)
            for end in cuts:
                while step < end:
                    count = trainer.usable(step, end - step)
                    state, terms = trainer.run_steps(state, step, count)
                    found += list(np.asarray(terms["loss"])[:count])
                    step += count
            return found, jax.device_get(state.params)

    alone, params = losses("never", [40])
    for cuts in ([40], [1, 2, 7, 40], [14, 28, 40], [5, 13, 15, 40]):
        streamed, streamed_params = losses("always", cuts)
        assert streamed == alone
        jax.tree.map(np.testing.assert_array_equal, streamed_params, params)


@pytest.mark.long
def test_a_streamed_run_that_is_stopped_in_an_epoch_goes_on_from_its_step(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes the metrics of a run never stopped, and reads no block before that of the step."""
    monkeypatch.setattr(pipeline, "CALL_SECONDS", 1e-3)  # Few steps a call, as if each took long.
    config = dataclasses.replace(config, stream="always")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "idle_seconds", 1e6)
        loop.train(config, tmp_path / "whole", devices=1)
    assert "input-bound: 100% of the training time" in capsys.readouterr().err
    run_steps = Trainer.run_steps

    def stopped(self: Trainer, state: Any, step: int, count: int) -> Any:
        if step >= 19:
            signal.raise_signal(signal.SIGTERM)
        return run_steps(self, state, step, count)

    monkeypatch.setattr(Trainer, "run_steps", stopped)
    outcome = loop.train(config, tmp_path / "parts", devices=1)
    monkeypatch.setattr(Trainer, "run_steps", run_steps)
    assert outcome.stopped_by == signal.SIGTERM
    step = int(result_of(tmp_path / "parts").state.step)
    assert 19 < step < 26  # In the second of three epochs of 13 steps.
    begin, begun = stream.Blocks._begin, list[stream.Place]()

    def noted(self: stream.Blocks, place: stream.Place) -> Any:
        begun.append(place)
        return begin(self, place)

    monkeypatch.setattr(stream.Blocks, "_begin", noted)
    loop.train(config, tmp_path / "parts", resume=True, devices=1)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert min(begun) == (1, (step - 13) // 3) and len(begun) == len(set(begun))


def test_images_that_do_not_fit_the_device_are_streamed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((57, 8, 8, 1), np.uint8)
    data = ImageData("noise", "a test", images, images[:9])
    required = sum(Trainer(config, data)._required().values())
    for free, where in ((required + data.nbytes, "resident"), (required + data.nbytes - 1, "streamed in blocks of 3")):
        stats = {"bytes_limit": free}
        monkeypatch.setattr(memory, "device_stats", lambda _, stats=stats: stats)
        assert Trainer(config, data).where.startswith(where)
        assert Trainer(dataclasses.replace(config, stream="never"), data).where.startswith("resident")


def test_a_sweep_does_not_stream(config: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--stream always: a sweep keeps its images on the device"):
        sweep(Grid(dataclasses.replace(config, stream="always"), {}, [0, 1]), tmp_path / "sweep")
