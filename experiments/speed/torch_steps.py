"""An epoch of steps in PyTorch: on a CPU from a Python loop, on a GPU by replaying a CUDA graph of a whole step."""

from collections.abc import Callable
from typing import Any


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on a GPU use TF32, or not."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def epoch_of(step: Callable[[Any], Any], pixels: Any, size: int, graph: bool = True) -> Callable[[], None]:
    """A function that trains for an epoch, and waits for it.

    Args:
      step: takes a batch of images, trains on it, and returns the loss.
      pixels: of all images, on PyTorch's device: [count, ...].
      size: of a batch.
      graph: whether a GPU replays a CUDA graph of a step, for which each batch is copied to the same place.
    """
    import torch

    count, device = len(pixels), pixels.device

    def loop() -> None:
        order = torch.randperm(count, device=device)
        for start in range(0, count - size + 1, size):
            loss = step(pixels[order[start : start + size]])
        loss.item()

    if device.type == "cpu" or not graph:
        return loop
    cuda: Any = torch.cuda
    batch = pixels[:size].clone(memory_format=torch.preserve_format)
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        for _ in range(3):
            step(batch)
    cuda.current_stream().wait_stream(stream)
    recorded = cuda.CUDAGraph()
    with cuda.graph(recorded):
        loss = step(batch)

    def replay() -> None:
        order = torch.randperm(count, device=device)
        for start in range(0, count - size + 1, size):
            torch.index_select(pixels, 0, order[start : start + size], out=batch)
            recorded.replay()
        loss.item()

    return replay
