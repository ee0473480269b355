"""Fused steps: which runs can take those of `jaxvae.train.kernels`, and the calls that do."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxvae.errors import InputError
from jaxvae.keys import example_keys
from jaxvae.models.layers import ACTIVATIONS
from jaxvae.models.likelihoods import Bernoulli, bernoulli_nll_per_pixel
from jaxvae.models.networks import Mlp
from jaxvae.models.priors import StandardNormal, gaussian_kl_per_dimension
from jaxvae.models.vae import moments
from jaxvae.noise import Grey, Static
from jaxvae.objectives.elbo import Elbo
from jaxvae.objectives.notes import Mse, NotesElbo, twice_notes_kld
from jaxvae.optimizer import Adam
from jaxvae.train.fused_plan import Plan, Weights
from jaxvae.train.fused_step import Carry, step
from jaxvae.train.step import Metrics, TrainState
from jaxvae.typing import Array, Batch, ImageShape, Params

MOST_IMAGES = 128  # Of a batch: a program of a kernel computes one, and a GPU runs about as many at once.
MOST_WIDTH = 2048  # Of a layer: each program reads all weights between the first and the last layer.
MOST_VALUES = 2**30  # Pixels x batch x first width: a tile of pixels writes a number for each of the last two.
GATHERED = 2**28  # Pixels gathered at once.


def chosen_plan(config: Any, image_shape: ImageShape, devices: Sequence[jax.Device]) -> Plan:
    """The plan of the fused steps that a configuration asks for.

    Raises:
      InputError: it cannot have them.
    """
    why = refusal(config, image_shape)
    kind = getattr(devices[0], "compute_capability", "9.0")  # A device that is only described has none.
    if why is None and devices[0].platform != "gpu":
        why = f"they run on a GPU, not on a {devices[0].platform.upper()}"
    elif why is None and not (re.fullmatch(r"\d+\.\d+", kind) and float(kind) >= 8):
        why = f"they run on NVIDIA's GPUs from Ampere on, not on {devices[0].device_kind}"
    elif why is None and len(devices) > 1:
        why = f"they run on one GPU, not on {len(devices)}: take --devices 1"
    if why is not None:
        raise InputError(f"--step-kernels {config.step_kernels}: {why}")
    return plan_of(config, image_shape)


def refusal(config: Any, image_shape: ImageShape) -> str | None:
    """Why no fused steps train a configuration: a part of a sentence; None: they can."""
    parts = config.parts
    network, objective, optimizer, inputs = parts.network, parts.objective, parts.optimizer, parts.inputs
    if parts.model is not None or type(network) is not Mlp:
        return "they are for --architecture mlp"
    if config.condition != "none":
        return "they have no --condition"
    if type(objective) not in (Mse, NotesElbo, Elbo):
        return "they are for --objective mse, notes-elbo or elbo"
    if isinstance(objective, Mse) and objective.corruption:
        return "they have no --corruption"
    if isinstance(objective, Elbo):
        if type(parts.likelihood) is not Bernoulli or type(parts.prior) is not StandardNormal:
            return "they are for --likelihood bernoulli with --prior normal"
        if objective.samples > 1 or objective.free_bits or objective.kl_warmup_epochs:
            return "they have no --samples, --free-bits or --kl-warmup-epochs"
    if type(inputs) not in (Grey, Static) or getattr(inputs, "dequantize", False):
        return "they draw no pixels: take --inputs grey or static, without --dequantize"
    if config.flip:
        return "they have no --flip"
    if type(optimizer) is not Adam or config.ema:
        return "they are for --optimizer adam without --ema"
    if optimizer.schedule != "constant" or optimizer.warmup_epochs or optimizer.weight_decay:
        return "they have no --schedule, --warmup-epochs or --weight-decay"
    if optimizer.clip_norm or optimizer.skip_norm:
        return "they have no --clip-norm or --skip-norm"
    if config.compute_dtype != "float32":
        return "they are for --compute-dtype float32"
    if config.batch_size > MOST_IMAGES:
        return f"they are for a --batch-size of at most {MOST_IMAGES}"
    widths = (*network.hidden, config.latent_size)
    if max(widths) > MOST_WIDTH:
        return f"they are for layers and latents of at most {MOST_WIDTH}"
    if math.prod(image_shape) * config.batch_size * widths[0] > MOST_VALUES:
        return f"pixels of an image x --batch-size x the first width must be at most {MOST_VALUES:,}"
    return None


def plan_of(config: Any, image_shape: ImageShape, interpret: bool = False) -> Plan:
    """The plan of a configuration without `refusal`."""
    parts, pixels = config.parts, math.prod(image_shape)
    objective, head = parts.objective, config.head
    features = config.latent_size if isinstance(objective, Mse) else 2 * config.latent_size
    hidden = parts.network.hidden
    nats = isinstance(objective, Elbo)

    def latent(first: Array, second: Array, eps: Array) -> tuple[Array, Array]:
        mean, std = moments(first, second, head, _relu)
        cost = gaussian_kl_per_dimension(mean, std) if nats else 0.5 * twice_notes_kld(mean, std) / pixels
        return mean + std * eps, cost

    def pixel(logits: Array, x: Array) -> Array:
        if nats:
            return bernoulli_nll_per_pixel(logits, x, _relu)
        return jnp.square(nn.sigmoid(logits) - x) / pixels

    exact = config.matmul_precision == "highest"
    return Plan(
        widths=(pixels, *hidden, features, *hidden[::-1], pixels),
        encoder=len(hidden) + 1,
        batch_size=config.batch_size,
        latents=config.latent_size,
        act=_relu if parts.network.activation == "relu" else ACTIVATIONS[parts.network.activation],
        latent=None if isinstance(objective, Mse) else latent,
        code=_relu if head == "relu" else lambda features: features,
        pixel=pixel,
        weight=objective.beta if nats else 1.0,
        b1=parts.optimizer.adam_b1,
        b2=parts.optimizer.adam_b2,
        eps=parts.optimizer.adam_eps,
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        interpret=interpret,
    )


def _relu(x: Array) -> Array:
    # The greater of NaN and 0 is 0 in Triton: a run that diverges must show it.
    return jnp.where(x <= 0, 0.0, x)


def weights_of(tree: Params) -> Weights:
    """The weights of a tree of parameters, or of a moment."""
    parts = [tree["params"][name]["mlp"] for name in ("encoder", "decoder")]
    layers = [part[f"dense_{i}"] for part in parts for i in range(len(part))]
    return Weights(tuple(layer["kernel"] for layer in layers), tuple(layer["bias"] for layer in layers))


def tree_of(weights: Weights, encoder: int) -> Params:
    """The tree of `weights`; see `weights_of`."""
    layers = [{"kernel": k, "bias": b} for k, b in zip(weights.kernels, weights.biases, strict=True)]
    parts = {"encoder": layers[:encoder], "decoder": layers[encoder:]}
    return {
        "params": {name: {"mlp": {f"dense_{i}": layer for i, layer in enumerate(part)}} for name, part in parts.items()}
    }


def make_fused_run_steps(
    plan: Plan, steps_per_epoch: int, capacity: int, block: int, rate: Array | float
) -> Callable[[TrainState, Batch, Array, Array, Array], tuple[TrainState, Metrics]]:
    """As `jaxvae.train.step.make_run_steps`, with fused steps on batches that are mappings.

    Images are gathered and noise is drawn for up to `block` steps at once, so that no step waits for them. What is left
    of a call after whole blocks is a shorter one.
    """
    block = max(1, min(block, GATHERED // (plan.batch_size * plan.widths[0])))

    def run_steps(
        state: TrainState, examples: Batch, order: Array, noise_key: Array, count: Array
    ) -> tuple[TrainState, Metrics]:
        first, batch = state.step % steps_per_epoch, plan.batch_size
        images = examples["image"].reshape(len(examples["image"]), -1)
        spots = jnp.arange(block * batch)
        before, rates = optax.tree_utils.tree_get(state.opt_state, "count"), jnp.reshape(rate, 1)

        def noise_of(step: Array) -> Array:
            keys = example_keys(jax.random.fold_in(noise_key, step), 0, batch)
            return jax.vmap(lambda key: jax.random.normal(key, (plan.latents,), jnp.float32))(keys)

        def take(start: Array, length: int | Array, carry: Any) -> Any:
            weights, costs = carry
            place = jnp.stack([jnp.zeros((), jnp.int32), before + start]).astype(jnp.int32)
            which = order.at[(first + start) * batch + spots].get(mode="clip")
            given = images[which].reshape(block, batch, -1)
            noise = jnp.zeros((block, batch, plan.latents), jnp.float32)
            if plan.latent is not None:
                noise = jax.vmap(noise_of)(state.step + start + jnp.arange(block))
            recon = jnp.zeros((block, plan.pixel_tiles, batch), jnp.float32)
            params, mu, nu = weights
            steps = Carry(place, params, mu, nu, recon, jnp.zeros((block, batch), jnp.float32))
            steps = jax.lax.fori_loop(0, length, lambda _, steps: step(plan, steps, given, noise, rates), steps)
            found = {"recon": steps.recon.sum(axis=1).mean(axis=1), "kl": steps.kl.mean(axis=1)}
            costs = {n: jax.lax.dynamic_update_slice(costs[n], values, (start,)) for n, values in found.items()}
            return (steps.params, steps.mu, steps.nu), costs

        mu, nu = (optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu"))
        costs = {name: jnp.zeros(capacity + block, jnp.float32) for name in ("recon", "kl")}
        carry = (weights_of(state.params), weights_of(mu), weights_of(nu)), costs
        blocks = count // block
        carry = jax.lax.fori_loop(0, blocks, lambda i, carry: take(i * block, block, carry), carry)
        if block > 1:
            carry = take(blocks * block, count - blocks * block, carry)
        (params, mu, nu), costs = carry
        trees = [tree_of(weights, plan.encoder) for weights in (params, mu, nu)]
        opt_state = optax.tree_utils.tree_set(state.opt_state, count=before + count, mu=trees[1], nu=trees[2])
        recon, kl = (costs[name][:capacity] for name in ("recon", "kl"))
        metrics: Mapping[str, Array] = {"loss": recon}
        if plan.latent is not None:
            metrics = {"loss": recon + plan.weight * kl, "recon": recon, "kl": kl}
        return TrainState(state.step + count, trees[0], opt_state, state.collections), dict(metrics)

    return run_steps
