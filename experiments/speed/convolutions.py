"""Steps per second of convolutional VAEs: jaxvae against PyTorch, eager and compiled.

    python experiments/speed/convolutions.py                      # needs torch and a C++ compiler
    python experiments/speed/convolutions.py --architectures conv --shapes 32,32,3 --batch-sizes 32

The networks are jaxvae's, and what `jaxvae.torch_weights` says they are in PyTorch: channels 32-64-128, 20 latents,
Bernoulli pixels; `resnet` has one block a level. PyTorch is at its best: channels last, fused Adam, no denormal
numbers; on a GPU, what is compiled runs as a CUDA graph. All hold uint8 images in memory, and gather and scale a batch
as part of a step. In a round each contender trains for an epoch of 2,048 images (`resnet`: 512), in turn. Each takes
one core or all, whichever was faster in three epochs.

Writes convolutions.json beside this file, and prints a Markdown table.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_steps import allow_tf32, epoch_of
from turns import best_cores

HERE = Path(__file__).parent
SHAPES = ((28, 28, 1), (32, 32, 3), (64, 64, 3), (45, 60, 3))
BATCH_SIZES = (32, 128)
ARCHITECTURES = ("conv", "resnet")
CHANNELS, LATENTS = (32, 64, 128), 20
IMAGES = {"conv": 2048, "resnet": 512}
NAMES = ("PyTorch eager", "PyTorch compiled", "jaxvae")

Images = NDArray[np.uint8]


def shape_of(text: str) -> tuple[int, ...]:
    """Height, width and channels from "32,32,3"."""
    return tuple(map(int, text.split(",")))


def config_of(architecture: str, batch_size: int, tf32: bool) -> Any:
    """The configuration that jaxvae trains."""
    import jaxvae

    given: dict[str, Any] = {"architecture": architecture, "hidden": CHANNELS, "latent_size": LATENTS}
    given |= {"blocks": 1} if architecture == "resnet" else {}
    given["matmul_precision"] = "default" if tf32 else "highest"
    return jaxvae.Config("vae", head="logvar", batch_size=batch_size, validation=0.0, **given)


def torch_epoch(architecture: str, images: Images, batch_size: int, tf32: bool, compiled: bool) -> Callable[[], None]:
    """A function that trains for an epoch in PyTorch."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    import jaxvae
    from jaxvae.torch_weights import torch_code

    allow_tf32(tf32)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _, height, width, channels = images.shape
    code = torch_code(jaxvae.build_model(config_of(architecture, batch_size, tf32), (height, width, channels)))
    parts: dict[str, Any] = {}
    exec(code.partition("\n\n# x: ")[0], parts)
    model = parts["model"].to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=device.type == "cuda")
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device, memory_format=torch.channels_last)

    def loss_of(batch: Any) -> Any:
        x = batch.float() / 255
        mean, logvar = model["encoder"](x).chunk(2, dim=1)
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        recon = binary_cross_entropy_with_logits(model["decoder"](z), x, reduction="sum")
        kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
        return (recon + kl) / len(x)

    loss_and_graph: Any = torch.compile(loss_of) if compiled else loss_of

    def step(batch: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_and_graph(batch)
        loss.backward()
        optimizer.step()
        return loss

    return epoch_of(step, pixels, batch_size, graph=compiled)


def jaxvae_epoch(architecture: str, images: Images, batch_size: int, tf32: bool) -> Callable[[], None]:
    """A function that trains for an epoch as ``python -m jaxvae.train`` does."""
    from jaxvae.data.images import ImageData
    from jaxvae.train.computer import advance
    from jaxvae.train.trainer import Trainer

    trainer = Trainer(config_of(architecture, batch_size, tf32), ImageData("noise", "noise", images, images[:1]))
    state, step = trainer.start(None), 0

    def epoch() -> None:
        nonlocal state, step
        state, calls = advance(trainer, state, step, trainer.steps_per_epoch)
        step += trainer.steps_per_epoch
        np.asarray(calls[-1][1]["loss"])

    return epoch


def serve(args: argparse.Namespace) -> None:
    """Be a contender: train for an epoch for each line of stdin."""
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        os.environ["OMP_NUM_THREADS"] = str(args.cores)
    (shape,), (batch_size,), (architecture,) = args.shapes, args.batch_sizes, args.architectures
    images = np.random.default_rng(0).integers(0, 256, (args.images, *shape), np.uint8)
    if args.contender == "jaxvae":
        epoch = jaxvae_epoch(architecture, images, batch_size, args.tf32)
    else:
        epoch = torch_epoch(architecture, images, batch_size, args.tf32, compiled=args.contender == "PyTorch compiled")
    for _ in sys.stdin:
        start = time.perf_counter()
        epoch()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def command(name: str, architecture: str, shape: Sequence[int], batch_size: int, images: int) -> list[str]:
    """The command that starts a contender."""
    own = [
        "--images",
        str(images),
        "--architectures",
        architecture,
        "--shapes",
        ",".join(map(str, shape)),
        "--batch-sizes",
        str(batch_size),
    ]
    return [sys.executable, str(HERE / "convolutions.py"), *own, "--contender", name]


def race(architecture: str, shape: Sequence[int], batch_size: int, rounds: int) -> dict[str, Any]:
    """Steps per second of every contender in every round."""
    images = IMAGES[architecture]
    starts = {name: command(name, architecture, shape, batch_size, images) for name in NAMES}
    processes = {name: best_cores(start) for name, start in starts.items()}
    steps = images // batch_size
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name, process in processes.items():
            speeds[name].append(steps / process.epoch())
    cores = {name: process.cores for name, process in processes.items()}
    for process in processes.values():
        process.end()
    case = {"architecture": architecture, "shape": list(shape), "batch_size": batch_size}
    return {**case, "steps_per_second": speeds, "cores": cores}


def table(races: Iterable[Mapping[str, Any]]) -> str:
    """Median steps per second; in brackets, how many times as fast jaxvae was: median, least to most."""
    lines = [f"| network | images | batch | {' | '.join(NAMES)} |", "| --- " * (3 + len(NAMES)) + "|"]
    for r in races:
        cells = []
        for name in NAMES:
            speeds = r["steps_per_second"]
            ratios = [a / b for a, b in zip(speeds["jaxvae"], speeds[name], strict=True)]
            times = f" ({np.median(ratios):.2f}x, {min(ratios):.2f}-{max(ratios):.2f})" if name != "jaxvae" else ""
            cells.append(f"{np.median(speeds[name]):.3g}{times}")
        shape = " x ".join(map(str, r["shape"]))
        lines.append(f"| `{r['architecture']}` | {shape} | {r['batch_size']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, help="height,width,channels")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--tf32", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "convolutions.json", help="file to write")
    parser.add_argument("--contender", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        serve(args)
        return 0
    from jaxvae import machine

    races: list[dict[str, Any]] = []
    for architecture in args.architectures:
        for shape in args.shapes:
            for batch_size in args.batch_sizes:
                races.append(race(architecture, shape, batch_size, args.rounds))
                print(json.dumps(races[-1]), file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("torch", "jax", "flax", "optax")}
    here = {"machine": machine.processor(), "cores": machine.cores(), "python": platform.python_version(), **versions}
    result = {"date": datetime.date.today().isoformat(), **here, "races": races}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(races))
    return 0


if __name__ == "__main__":
    sys.exit(main())
