"""Training images that do not lie on the device: they come block by block, in the order of the epoch, read ahead."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxvae.data.images import Split
from jaxvae.train.step import as_rows

BLOCK_BYTES = 2**26  # Of the examples that a block holds, or one batch if that is more.
AHEAD = 2  # Blocks that are read before they are needed, each by a thread.


class Place(NamedTuple):
    """A block: the epoch, and its number within it."""

    epoch: int
    number: int


class Blocks:
    """The training examples of a run, in blocks of whole batches.

    The examples of a block, ``steps`` B in rows as `as_rows` makes them, are those that the epoch's order names, in
    this order. The last block of an epoch repeats its last example, to be as long as the others. So what a step gets
    is a function of seed and step, as if all examples lay on the device, and a resumed run reads nothing of what came
    before.

    Attributes:
      waited: for how many seconds `read` waited for blocks after the first, which were being read ahead.

    Args:
      examples: arrays by name, or `jaxvae.data.rows.Rows`; any length N.
      batch_size: B.
      steps_per_epoch: steps an epoch.
      order_of: the order of the examples in an epoch, [N]: a thread waits for it.
    """

    def __init__(
        self,
        examples: Split,
        batch_size: int,
        steps_per_epoch: int,
        order_of: Callable[[int], Any],
    ):
        self._examples, self._batch_size, self._steps_per_epoch = examples, batch_size, steps_per_epoch
        row = sum(values.nbytes for values in examples.values()) // len(examples["image"])
        self.steps = min(max(1, BLOCK_BYTES // (row * batch_size)), steps_per_epoch)
        self.nbytes = self.steps * batch_size * row
        self._order_of = order_of
        self._orders: dict[int, Any] = {}
        self._read: dict[Place, Future[dict[str, NDArray[Any]]]] = {}
        self._threads = ThreadPoolExecutor(AHEAD, thread_name_prefix="blocks")
        self.waited = 0.0

    def close(self) -> None:
        """Read no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def forms(self) -> dict[str, NDArray[Any]]:
        """A block's shapes and dtypes: arrays that take no memory."""
        forms = {
            name: np.broadcast_to(np.zeros((), values.dtype), (self.steps * self._batch_size, *values.shape[1:]))
            for name, values in self._examples.items()
        }
        return as_rows(forms)

    def places(self) -> NDArray[np.int32]:
        """For each place in an epoch's order, int32 [N]: where its example is in its block."""
        every = np.arange(len(self._examples["image"]), dtype=np.int32)
        return every % np.int32(self.steps * self._batch_size)

    def left(self, step: int) -> int:
        """Steps from `step` on to the end of its block."""
        return self.steps - step % self._steps_per_epoch % self.steps

    def place(self, step: int) -> Place:
        """The block that holds the batch of `step`."""
        epoch, within = divmod(step, self._steps_per_epoch)
        return Place(epoch, within // self.steps)

    def read(self, place: Place) -> Mapping[str, NDArray[Any]]:
        """Return the examples of a block, and begin to read the next ones.

        Raises:
          InputError: they cannot be read.
        """
        wanted, ahead = [place], place in self._read
        for _ in range(AHEAD):
            wanted.append(self._after(wanted[-1]))
        self._orders = {epoch: self._order(epoch) for epoch in {each.epoch for each in wanted}}
        self._read = {each: self._read.get(each) or self._begin(each) for each in wanted}
        start = time.perf_counter()
        block = self._read.pop(place).result()
        if ahead:
            self.waited += time.perf_counter() - start
        return block

    def _after(self, place: Place) -> Place:
        last = (self._steps_per_epoch - 1) // self.steps
        return Place(place.epoch, place.number + 1) if place.number < last else Place(place.epoch + 1, 0)

    def _order(self, epoch: int) -> Any:
        return self._orders[epoch] if epoch in self._orders else self._order_of(epoch)

    def _begin(self, place: Place) -> "Future[dict[str, NDArray[Any]]]":
        return self._threads.submit(self._gather, place.number, self._orders[place.epoch])

    def _gather(self, number: int, order: Any) -> dict[str, NDArray[Any]]:
        size = self.steps * self._batch_size
        places = np.asarray(order)[number * size : (number + 1) * size]
        places = np.pad(places, (0, size - len(places)), mode="edge")
        return as_rows({name: values[places] for name, values in self._examples.items()})


def part_of(examples: Split, first: int, size: int) -> dict[str, NDArray[Any]]:
    """The `size` examples from place `first` on, `as_rows` on the host; those past the end repeat the last one."""
    places = np.minimum(np.arange(first, first + size), len(examples["image"]) - 1)
    return as_rows({name: values[places] for name, values in examples.items()})
