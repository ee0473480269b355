"""What PyTorch computes for the notes' two models, as numbers: writes and checks reference.json.

    python experiments/parity/reference.py --write       # needs torch
    python experiments/parity/reference.py --check       # needs torch; exit code 1 if it does not hold
    python experiments/parity/reference.py --rounding    # how far apart rounding alone drives two runs

Expected of ``--check``: every line within its tolerance. Measured with torch 2.13.0+cpu, on the
machine that wrote the file: every deviation 0. ``tests/test_parity.py`` holds jaxvae against the
file, and so needs no torch.

Both sides start from the same weights, see the same batches and add the same noise, all of which
follow from `SEED`: weights and batches by NumPy, noise by plain `jax.random` calls that spell out
jaxvae's scheme (see `noise`). torch is imported only where it computes.
"""

import argparse
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

PATH = Path(__file__).with_name("reference.json")
PRESETS = ("notes-ae", "notes-vae")
Dtype = Literal["float32", "float64"]
STEPS: dict[Dtype, int] = {"float32": 200, "float64": 50}
BATCH, LATENT = 32, 10
# The gradient in a sigma close to 0 goes as 1/sigma, which multiplies the rounding of sigma itself: most
# seeds have a sigma of 1e-3 or less in the first batch, and float32 cannot tell gradients from one
# another to 1e-5 there. With this seed 4 in 10 sigmas are exactly 0 and all others above 8e-3.
SEED = 297
PROJECTIONS = 8

# (curve, gradients), relative. Another build of torch sums in another order; float64 leaves that no room.
TOLERANCE: dict[Dtype, tuple[float, float]] = {"float32": (1e-3, 1e-5), "float64": (1e-9, 1e-12)}

Weights = dict[str, NDArray[Any]]
Summary = dict[str, dict[str, Any]]


# --- What both sides are given ------------------------------------------------------------------------------


def initial_weights(preset: str) -> Weights:
    """float32 weights by `state_dict` name, uniform in +-1/sqrt(fan_in), weight [out, in] and bias [out]."""
    rng = np.random.default_rng(SEED)
    weights: Weights = {}
    code = 20 if preset == "notes-ae" else LATENT
    for part, widths in {"encoder": (784, 256, 64, 20), "decoder": (code, 64, 256, 784)}.items():
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            for name, shape in {"weight": (fan_out, fan_in), "bias": (fan_out,)}.items():
                values = rng.uniform(-1, 1, shape) / fan_in**0.5
                weights[f"{part}.{2 * i}.{name}"] = values.astype(np.float32)
    return weights


@functools.cache
def batches() -> NDArray[np.uint8]:
    """uint8 [steps, B, 28, 28, 1]: scikit-learn's handwritten digits, each pixel a square of 3 x 3, framed."""
    from sklearn.datasets import load_digits

    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    pictures = np.pad(digits.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))[..., None]
    shape = (max(STEPS.values()), BATCH)
    chosen: NDArray[np.uint8] = pictures[np.random.default_rng(SEED).integers(0, len(pictures), shape)]
    chosen.flags.writeable = False
    return chosen


def noise_key() -> jax.Array:
    """The key of the noise of a run."""
    return jax.random.key(SEED)


@functools.cache
def noise(dtype: Dtype) -> NDArray[Any]:
    """[steps, B, L]: for step s and place i, ``normal(fold_in(fold_in(key, s), i), (L,))``.

    float64 needs jax's 64-bit mode, which this sets while it draws.
    """

    def draw(step: jax.Array, place: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(noise_key(), step), place)
        return jax.random.normal(key, (LATENT,), jnp.dtype(dtype))

    with jax.enable_x64(dtype == "float64"):
        steps, places = jnp.arange(STEPS[dtype]), jnp.arange(BATCH)
        return np.asarray(jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(steps, places))


def digests() -> dict[str, str]:
    """SHA-256 of what NumPy and scikit-learn contribute, so that a change there is not taken for jaxvae's."""
    found = {"batches": batches().tobytes()} | {
        preset: b"".join(values.tobytes() for values in initial_weights(preset).values()) for preset in PRESETS
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


# --- What is compared ---------------------------------------------------------------------------------------


def summarise(gradients: Mapping[str, NDArray[Any]]) -> Summary:
    """Of each gradient, named and laid out as in a `state_dict`: its norm, its sum, random projections of it.

    A projection is the inner product with a vector of N(0, 1) entries, so an error of norm d anywhere
    in the gradient moves it by about d.
    """
    summary: Summary = {}
    for i, (name, values) in enumerate(sorted(gradients.items())):
        flat = values.astype(np.float64).ravel()
        vectors = np.random.default_rng([SEED, i]).standard_normal((PROJECTIONS, flat.size))
        summary[name] = {
            "norm": float(np.linalg.norm(flat)),
            "sum": float(flat.sum()),
            "projections": (vectors @ flat).tolist(),
        }
    return summary


def gradient_deviation(summary: Summary, expected: Summary) -> float:
    """The largest deviation in any figure of any parameter, relative to the norm of that gradient.

    A sum larger than the norm, as it is where all entries have one sign, is taken relative to itself.
    """
    assert summary.keys() == expected.keys()
    worst = 0.0
    for name, want in expected.items():
        for figure, value in want.items():
            scale = np.maximum(want["norm"], np.abs(value))
            worst = max(worst, float(np.max(np.abs(np.subtract(summary[name][figure], value)) / scale)))
    return worst


def curve_deviation(curve: Any, expected: Any) -> NDArray[np.float64]:
    """Relative deviation, step by step."""
    want = np.asarray(expected, np.float64)
    assert np.shape(curve) == want.shape
    return np.abs(np.asarray(curve, np.float64) - want) / np.abs(want)


# --- PyTorch's side -----------------------------------------------------------------------------------------


def run_torch(preset: str, dtype: Dtype, steps: int, weights: Weights) -> dict[str, Any]:
    """Train for `steps` steps: {"curve": {term: [value of each step]}, "gradients": of the first step}."""
    import torch
    import torch_notes

    torch.set_num_threads(1)  # So that the order of its sums does not depend on the number of cores.
    kind: torch.dtype = getattr(torch, dtype)
    model: Any = torch_notes.MODULES[preset]().to(kind)
    model.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
    optimizer = torch_notes.adam(model)
    pictures, eps = torch.tensor(batches()[:steps]), torch.tensor(noise(dtype)[:steps])
    curve: dict[str, list[float]] = {}
    gradients: Summary = {}
    for picture, e in zip(pictures, eps, strict=True):
        terms: Any = torch_notes.terms(model, picture.permute(0, 3, 1, 2).to(kind) / 255, e)
        optimizer.zero_grad()
        terms["loss"].backward()
        gradients = gradients or summarise({n: p.grad.numpy() for n, p in model.named_parameters()})
        optimizer.step()
        for name, value in terms.items():
            curve.setdefault(name, []).append(value.item())
    return {"curve": curve, "gradients": gradients}


def compute() -> dict[str, Any]:
    """The whole content of reference.json."""
    import torch

    runs = {
        preset: {dtype: run_torch(preset, dtype, STEPS[dtype], initial_weights(preset)) for dtype in STEPS}
        for preset in PRESETS
    }
    versions = {"torch": torch.__version__, "numpy": np.__version__, "jax": jax.__version__}
    return {"versions": versions, "sha256": digests(), "runs": runs}


def load() -> dict[str, Any]:
    """The committed reference.json."""
    reference: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return reference


def deviations(found: dict[str, Any], reference: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, largest relative deviation, tolerance) for every curve and every set of gradients."""
    rows = []
    for preset in PRESETS:
        for dtype, (of_curves, of_gradients) in TOLERANCE.items():
            got, want = found["runs"][preset][dtype], reference["runs"][preset][dtype]
            for term, values in want["curve"].items():
                worst = float(np.max(curve_deviation(got["curve"][term], values)))
                rows.append((f"{preset} {dtype} {term}", worst, of_curves))
            worst = gradient_deviation(got["gradients"], want["gradients"])
            rows.append((f"{preset} {dtype} gradients", worst, of_gradients))
    return rows


def rounding(preset: str) -> NDArray[np.float64]:
    """Relative deviation of the loss, by step, of two float32 runs that rounding alone tells apart.

    The second starts from weights one float32 unit in the last place away, up or down at random.
    """
    weights, steps = initial_weights(preset), STEPS["float32"]
    rng = np.random.default_rng(SEED)
    moved = {name: np.nextafter(w, rng.choice(np.array([-1, 1], np.float32), w.shape)) for name, w in weights.items()}
    first, second = (run_torch(preset, "float32", steps, w)["curve"]["loss"] for w in (weights, moved))
    return curve_deviation(second, first)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--write", "--check", "--rounding"):
        what.add_argument(flag, action="store_true")
    args = parser.parse_args()
    if args.write:
        PATH.write_text(json.dumps(compute(), indent=1) + "\n", encoding="utf-8")
        print(f"{PATH}: {PATH.stat().st_size:,} bytes")
        return 0
    if args.rounding:
        for preset in PRESETS:
            drift = np.maximum.accumulate(rounding(preset))
            print(preset, ", ".join(f"{drift[n - 1]:.1e} by step {n}" for n in (1, 10, 50, 100, 200)))
        return 0
    reference = load()
    print(f"inputs {'as' if digests() == reference['sha256'] else 'NOT as'} in the file")
    rows = deviations(compute(), reference)
    for name, worst, tolerance in rows:
        print(f"{name:28} {worst:.1e} (tolerance {tolerance:.0e})")
    return int(digests() != reference["sha256"] or any(worst > tolerance for _, worst, tolerance in rows))


if __name__ == "__main__":
    sys.exit(main())
