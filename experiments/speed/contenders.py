"""Five ways to train the notes' models, each in a process of its own that trains when it is told to.

    python experiments/speed/contenders.py jaxvae --preset notes-vae --batch-size 32 --data-dir DIR

Reads commands from stdin and answers each with a line of JSON: ``epoch`` trains for one epoch and says
how many seconds that took; ``test`` says the loss of all test images in the notes' scale.
`compare.py` starts these processes and lets them take turns.
"""

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch_steps import allow_tf32, epoch_of

Images = NDArray[np.uint8]


class Contender(Protocol):
    """Trains and tests; each method blocks until its results are there."""

    def epoch(self) -> None:
        """Train for one epoch, every image at most once, in a new order."""

    def test(self) -> float:
        """The mean loss of all test images."""


def read_images(data_dir: Path, split: str) -> Images:
    """An IDX file of images, gzipped or not: uint8 [N, 28, 28]."""
    path = data_dir / f"{split}-images-idx3-ubyte"
    content = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def notes_way(args: argparse.Namespace, train: Images, test: Images) -> Contender:
    """The notes' own loop: PyTorch eager, a DataLoader that turns one image at a time into a tensor."""
    import torch
    import torch_notes
    from PIL import Image
    from torch.utils.data import DataLoader

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class MNIST:
        def __len__(self) -> int:
            return len(train)

        def __getitem__(self, index: int) -> Any:
            # What torchvision's MNIST and ToTensor do.
            picture = np.array(Image.fromarray(train[index]), copy=True)
            return torch.from_numpy(picture).view(28, 28, 1).permute(2, 0, 1).contiguous().float().div(255)

    dataset: Any = MNIST()
    loader: Any = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
    model = torch_notes.MODULES[args.preset]().to(device)
    optimizer = torch_notes.adam(model)

    class NotesWay:
        def epoch(self) -> None:
            for x in loader:
                x = x.to(device)
                loss: Any = torch_notes.terms(model, x, torch.randn(len(x), 10, device=device))["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss.item()

        def test(self) -> float:
            return torch_test(model, test, device)

    return NotesWay()


def torch_best(args: argparse.Namespace, train: Images, test: Images) -> Contender:
    """The best PyTorch there is: images in memory, forward and backward compiled, fused Adam; CUDA graphs on a GPU."""
    import torch
    import torch_notes

    allow_tf32(args.tf32)
    torch.set_flush_denormal(True)  # Else Adam's vanishing moments slow a CPU down, more from epoch to epoch.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.from_numpy(train.copy()).to(device)[:, None].float() / 255
    model = torch_notes.MODULES[args.preset]().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=device.type == "cuda")
    size = args.batch_size

    def loss_of(x: Any) -> Any:
        return torch_notes.terms(model, x, torch.randn(size, 10, device=device))["loss"]

    compiled: Any = torch.compile(loss_of)

    def step(batch: Any) -> Any:
        loss = compiled(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    train_epoch = epoch_of(step, images, size)

    class TorchBest:
        def epoch(self) -> None:
            train_epoch()

        def test(self) -> float:
            return torch_test(model, test, device)

    return TorchBest()


def torch_test(model: Any, test: Images, device: Any) -> float:
    """The mean loss of all test images."""
    import torch
    import torch_notes

    with torch.no_grad():
        x = torch.from_numpy(test.copy()).to(device)[:, None].float() / 255
        return float(torch_notes.terms(model, x, torch.randn(len(x), 10, device=device))["loss"])


def jax_parts(args: argparse.Namespace) -> Any:
    """Model, mean loss, optimiser, first parameters: what both of the common JAX ways start from."""
    import jax
    import optax

    import jaxvae
    from jaxvae.models.layers import with_precision
    from jaxvae.objectives.notes import mse, notes_kld

    config = jaxvae.PRESETS[args.preset]
    model = jaxvae.build_model(config, (28, 28, 1))
    optimizer = optax.adam(1e-3)

    @with_precision("default" if args.tf32 else "highest")
    def mean_loss(params: Any, x: Any, key: Any) -> Any:
        output: Any = model.apply(params, x, key)
        loss = mse(output.x_hat, x)
        return (loss + notes_kld(output.mean, output.std, x[0].size) if config.is_vae else loss).mean()

    def update(params: Any, opt_state: Any, x: Any, key: Any) -> Any:
        loss, grads = jax.value_and_grad(mean_loss)(params, x, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    key = jax.random.key(args.seed)
    params = jaxvae.init_state(model, optimizer, key).params
    return update, mean_loss, params, optimizer.init(params), key


def jax_loop(args: argparse.Namespace, train: Images, test: Images) -> Contender:
    """JAX the common way: a Python loop that hands batches from the host to a jitted step."""
    import jax

    update, mean_loss, params, opt_state, first_key = jax_parts(args)
    step = jax.jit(update, donate_argnums=(0, 1))
    rng = np.random.default_rng(args.seed)
    size = args.batch_size

    class JaxLoop:
        def __init__(self) -> None:
            self.params, self.opt_state, self.key = params, opt_state, first_key

        def epoch(self) -> None:
            order = rng.permutation(len(train))
            for start in range(0, len(train) - size + 1, size):
                x = train[order[start : start + size], ..., None].astype(np.float32) / 255
                self.key, key = jax.random.split(self.key)
                self.params, self.opt_state, loss = step(self.params, self.opt_state, x, key)
            float(loss)

        def test(self) -> float:
            return float(mean_loss(self.params, test[..., None].astype(np.float32) / 255, self.key))

    return JaxLoop()


def jax_fori(args: argparse.Namespace, train: Images, test: Images) -> Contender:
    """JAX with a whole epoch in one jitted `fori_loop`, images converted to float up front.

    The style of NumPyro's VAE example (numpyro.readthedocs.io, examples/vae).
    """
    import jax
    import jax.numpy as jnp

    update, mean_loss, params, opt_state, first_key = jax_parts(args)
    images = jnp.asarray(train[..., None], jnp.float32) / 255
    size, steps = args.batch_size, len(train) // args.batch_size

    @jax.jit
    def run_epoch(params: Any, opt_state: Any, images: Any, key: Any) -> Any:
        shuffle_key, key = jax.random.split(key)
        order = jax.random.permutation(shuffle_key, len(images))

        def body(i: Any, carry: Any) -> Any:
            total, params, opt_state, key = carry
            key, noise_key = jax.random.split(key)
            x = jnp.take(images, jax.lax.dynamic_slice_in_dim(order, i * size, size), axis=0)
            params, opt_state, loss = update(params, opt_state, x, noise_key)
            return total + loss, params, opt_state, key

        return jax.lax.fori_loop(0, steps, body, (jnp.zeros(()), params, opt_state, key))

    class JaxFori:
        def __init__(self) -> None:
            self.params, self.opt_state, self.key = params, opt_state, first_key

        def epoch(self) -> None:
            total, self.params, self.opt_state, self.key = run_epoch(self.params, self.opt_state, images, self.key)
            float(total)

        def test(self) -> float:
            return float(mean_loss(self.params, test[..., None].astype(np.float32) / 255, self.key))

    return JaxFori()


def jaxvae_way(args: argparse.Namespace, train: Images, test: Images) -> Contender:
    """jaxvae: the program that ``python -m jaxvae.train`` runs."""
    from dataclasses import replace

    import jaxvae
    from jaxvae.data.images import ImageData
    from jaxvae.train.computer import advance
    from jaxvae.train.trainer import Trainer

    precision = "default" if args.tf32 else "highest"
    own = {"batch_size": args.batch_size, "seed": args.seed, "matmul_precision": precision}
    own["step_kernels"] = args.step_kernels
    config = replace(jaxvae.PRESETS[args.preset], **own)
    images = ImageData("mnist", "MNIST", train[..., None], test[..., None])
    trainer = Trainer(config, images)

    class Jaxvae:
        def __init__(self) -> None:
            self.state, self.step = trainer.start(None), 0

        def epoch(self) -> None:
            self.state, calls = advance(trainer, self.state, self.step, trainer.steps_per_epoch)
            self.step += trainer.steps_per_epoch
            np.asarray(calls[-1][1]["loss"])

        def test(self) -> float:
            parts = [trainer.evaluate(self.state, "test", first) for first in trainer.parts("test")]
            return float(np.mean(trainer.joined("test", parts)["loss"]))

    return Jaxvae()


CONTENDERS = {
    "notes' way": notes_way,
    "best PyTorch": torch_best,
    "JAX loop": jax_loop,
    "JAX fori_loop": jax_fori,
    "jaxvae": jaxvae_way,
}


def main() -> int:
    """Serve commands until stdin ends; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--preset", choices=["notes-ae", "notes-vae"], required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, help="cores it may run on; default: all")
    parser.add_argument("--tf32", action="store_true", help="a GPU may round the factors of products to TF32")
    parser.add_argument("--step-kernels", default="plain", help="jaxvae's")
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        os.environ["OMP_NUM_THREADS"] = str(args.cores)
    if "orch" in args.name or "notes" in args.name:
        sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
        import torch

        torch.manual_seed(args.seed)
    contender = CONTENDERS[args.name](args, *(read_images(args.data_dir, split) for split in ("train", "t10k")))
    for line in sys.stdin:
        start = time.perf_counter()
        answer: dict[str, float] = {}
        if line.strip() == "epoch":
            contender.epoch()
            answer["seconds"] = time.perf_counter() - start
        else:
            answer["loss"] = contender.test()
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
