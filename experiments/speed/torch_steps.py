"""An epoch of steps in PyTorch: on a CPU from a Python loop, on a GPU by replaying a CUDA graph of a whole step."""

from collections.abc import Callable
from typing import Any


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on a GPU use TF32, or not."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def epoch_of(step: Callable[[Any], Any], count: int, size: int, device: Any, graph: bool = True) -> Callable[[], None]:
    """A function that trains for an epoch, and waits for it.

    Args:
      step: takes the places of a batch's images, int64 [size], trains on it, and returns the loss.
      count: images.
      size: of a batch.
      device: PyTorch's.
      graph: whether a GPU replays a CUDA graph. The graph finds its own batch, so the host only starts it.
    """
    import torch

    def loop() -> None:
        order = torch.randperm(count, device=device)
        for start in range(0, count - size + 1, size):
            loss = step(order[start : start + size])
        loss.item()

    if device.type == "cpu" or not graph:
        return loop
    cuda: Any = torch.cuda
    order = torch.randperm(count, device=device)
    place = torch.zeros((), dtype=torch.int64, device=device)
    offsets = torch.arange(size, device=device)

    def next_step() -> Any:
        loss = step(order[place + offsets])
        place.add_(size)
        return loss

    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        for _ in range(3):
            place.zero_()
            next_step()
    cuda.current_stream().wait_stream(stream)
    recorded = cuda.CUDAGraph()
    with cuda.graph(recorded):
        loss = next_step()

    def replay() -> None:
        order.copy_(torch.randperm(count, device=device))
        place.zero_()
        for _ in range(count // size):
            recorded.replay()
        loss.item()

    return replay
