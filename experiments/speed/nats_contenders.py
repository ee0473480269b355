"""Five ways to train the VAE of Flax's example, each in a process of its own.

    python experiments/speed/nats_contenders.py "PyTorch compiled" --images FILE.npz --seed 0 --epochs 20

The model is 784-500-20 with ReLU: the encoder's mean and log-variance are linear layers, pixels are Bernoulli. Adam at
1e-3, batches of 128, a new order in every epoch. All hold the images in memory as float32, which is faster than the
examples' own input pipelines. Prints a line of JSON after the first step, and after each epoch one with the loss of all
test images: the negative ELBO in nats, with one latent an image.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_steps import epoch_of

Images = NDArray[np.float32]  # [N, 784], of 0 and 1.

HIDDEN, LATENTS, PIXELS = 500, 20, 784
BATCH_SIZE = 128
LEARNING_RATE = 1e-3


def tell(event: str, **values: float) -> None:
    """Print a line of JSON."""
    print(json.dumps({"event": event, **values}), flush=True)


def batches(images: Images, rng: np.random.Generator) -> Iterator[Images]:
    """The full batches of an epoch."""
    order = rng.permutation(len(images))
    for start in range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE):
        yield images[order[start : start + BATCH_SIZE]]


def flax_example(seed: int, train: Images, test: Images, jitted: bool) -> Iterator[float]:
    """Flax's example (github.com/google/flax, examples/vae), which jits nothing. Here its evaluation is jitted."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from flax.training.train_state import TrainState

    class VAE(nn.Module):
        @nn.compact
        def __call__(self, x: Any, key: Any) -> Any:
            hidden = nn.relu(nn.Dense(HIDDEN)(x))
            mean, logvar = nn.Dense(LATENTS)(hidden), nn.Dense(LATENTS)(hidden)
            z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
            return nn.Dense(PIXELS)(nn.relu(nn.Dense(HIDDEN)(z))), mean, logvar

    model = VAE()

    def loss_of(params: Any, x: Any, key: Any) -> Any:
        output: Any = model.apply({"params": params}, x, key)
        logits, mean, logvar = output
        recon = optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)
        kl = -0.5 * (1 + logvar - jnp.square(mean) - jnp.exp(logvar)).sum(-1)
        return (recon + kl).mean()

    def update(state: Any, x: Any, key: Any) -> Any:
        return state.apply_gradients(grads=jax.grad(loss_of)(state.params, x, key))

    step, evaluate = jax.jit(update) if jitted else update, jax.jit(loss_of)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(key, jnp.ones((BATCH_SIZE, PIXELS)), key)["params"],
        tx=optax.adam(LEARNING_RATE),
    )
    on_device, begun = jax.device_put(test), False
    while True:
        for x in batches(train, rng):
            key, noise_key = jax.random.split(key)
            state = step(state, x, noise_key)
            if not begun:
                jax.block_until_ready(state.params)
                begun = True
                tell("first step")
        yield float(evaluate(state.params, on_device, key))


def numpyro_example(seed: int, train: Images, test: Images) -> Iterator[float]:
    """NumPyro's example (num.pyro.ai, examples/vae): SVI, softplus, an epoch in one jitted `fori_loop`."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from jax.example_libraries import stax
    from numpyro import distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    scale = jax.nn.initializers.normal(0.01)
    mean_layer, std_layer = stax.Dense(LATENTS, scale), stax.serial(stax.Dense(LATENTS, scale), stax.Exp)
    encoder = stax.serial(
        stax.Dense(HIDDEN, scale), stax.Softplus, stax.FanOut(2), stax.parallel(mean_layer, std_layer)
    )
    decoder = stax.serial(stax.Dense(HIDDEN, scale), stax.Softplus, stax.Dense(PIXELS, scale))

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), LATENTS))
        with numpyro.plate("batch", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENTS]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", encoder, (len(x), PIXELS))
        mean, std = encode(x)
        with numpyro.plate("batch", len(x)):
            numpyro.sample("z", dist.Normal(mean, std).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    images, on_device = jax.device_put(train), jax.device_put(test)
    steps = len(train) // BATCH_SIZE

    @jax.jit
    def run(state: Any, images: Any, order: Any, first: Any, last: Any) -> Any:
        def body(i: Any, state: Any) -> Any:
            x = jnp.take(images, jax.lax.dynamic_slice_in_dim(order, i * BATCH_SIZE, BATCH_SIZE), axis=0)
            return svi.update(state, x)[0]

        return jax.lax.fori_loop(first, last, body, state)

    evaluate = jax.jit(svi.evaluate)
    rng = np.random.default_rng(seed)
    state = svi.init(jax.random.key(seed), images[:BATCH_SIZE])
    first = 0
    while True:
        order = rng.permutation(len(train)).astype(np.int32)
        if first == 0:
            state = jax.block_until_ready(run(state, images, order, 0, 1))
            first = 1
            tell("first step")
            state = run(state, images, order, 1, steps)
        else:
            state = run(state, images, order, 0, steps)
        yield float(evaluate(state, on_device)) / len(test)


def torch_way(seed: int, train: Images, test: Images, compiled: bool) -> Iterator[float]:
    """PyTorch as people write it; or at its best: forward and backward compiled, fused Adam, on a GPU a CUDA graph."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits

    torch.manual_seed(seed)
    torch.set_flush_denormal(compiled)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = {
        "hidden": nn.Linear(PIXELS, HIDDEN),
        "mean": nn.Linear(HIDDEN, LATENTS),
        "logvar": nn.Linear(HIDDEN, LATENTS),
        "decoder": nn.Sequential(nn.Linear(LATENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)),
    }
    model = nn.ModuleDict(layers).to(device)
    best: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"} if compiled else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **best)

    def loss_of(x: Any) -> Any:
        hidden = model["hidden"](x).relu()
        mean, logvar = model["mean"](hidden), model["logvar"](hidden)
        logits = model["decoder"](mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        recon = binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
        return (recon + kl) / len(x)

    train_loss: Callable[[Any], Any] = torch.compile(loss_of) if compiled else loss_of
    images, on_device = torch.from_numpy(train).to(device), torch.from_numpy(test).to(device)

    def step(batch: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = train_loss(batch)
        loss.backward()
        optimizer.step()
        return loss

    step(images[:BATCH_SIZE]).item()
    tell("first step")
    train_epoch = epoch_of(step, images, BATCH_SIZE, graph=compiled)
    while True:
        train_epoch()
        with torch.no_grad():
            yield float(loss_of(on_device))


CONTENDERS: dict[str, Callable[[int, Images, Images], Iterator[float]]] = {
    "Flax's example": functools.partial(flax_example, jitted=False),
    "Flax's example, jitted": functools.partial(flax_example, jitted=True),
    "NumPyro's example": numpyro_example,
    "PyTorch eager": functools.partial(torch_way, compiled=False),
    "PyTorch compiled": functools.partial(torch_way, compiled=True),
}


def main() -> int:
    """Train; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--images", type=Path, required=True, help="an .npz file: train and test, uint8, 0 or 255")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, required=True)
    args = parser.parse_args()
    with np.load(args.images) as file:
        train, test = (file[name].reshape(-1, PIXELS).astype(np.float32) / 255 for name in ("train", "test"))
    losses = CONTENDERS[args.name](args.seed, train, test)
    for _ in range(args.epochs):
        tell("epoch", loss=next(losses))
    return 0


if __name__ == "__main__":
    sys.exit(main())
