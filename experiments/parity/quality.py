"""Do both sides learn equally well? The notes' models trained on real MNIST by PyTorch and by jaxvae.

    python experiments/parity/quality.py --data-dir DIR     # DIR: the IDX files of MNIST; needs torch

Three seeds of 10 epochs of each of the notes' models on each side, then the figures of all 10,000
images of the test split, in the notes' scale (per pixel): quality.json, and a Markdown table.
Beside it, the pictures of jaxvae's runs of seed 0.

Expected: the sides differ by no more than seeds do. Nothing ties a seed on one side to one on the
other: weights, order and noise are drawn by each side in its own way.
Measured (2 cores of a Xeon server, torch 2.13.0+cpu, jax 0.10.2, 2026-11-23, 12 minutes; mean and,
in brackets, largest minus smallest):

    notes-ae    MSE          PyTorch 0.01302 (0.00279)    jaxvae 0.01249 (0.00237)
    notes-vae   MSE + KLD    PyTorch 0.04913 (0.00754)    jaxvae 0.05111 (0.00395)
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxvae import PRESETS
from jaxvae.evaluate import evaluate_run
from jaxvae.train.loop import train

PATH = Path(__file__).with_name("quality.json")
PICTURES = Path(__file__).parents[2] / "docs" / "images"
NOTES = ("notes-ae", "notes-vae")
Figures = dict[str, float]


def read_images(data_dir: Path, split: str) -> NDArray[np.uint8]:
    """An IDX file of images, gzipped or not: uint8 [N, 1, 28, 28]."""
    path = data_dir / f"{split}-images-idx3-ubyte"
    content = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)


def train_torch(preset: str, data_dir: Path, seed: int, epochs: int) -> Figures:
    """The notes' way: batches of 32, reshuffled every epoch; then every test image once."""
    import torch
    import torch_notes

    torch.set_num_threads(1)  # The layers are so small that more threads only wait for one another.
    torch.manual_seed(seed)
    images, held_out = (torch.tensor(read_images(data_dir, split)) for split in ("train", "t10k"))
    model = torch_notes.MODULES[preset]()
    optimizer = torch_notes.adam(model)
    for _ in range(epochs):
        order: Any = torch.randperm(len(images))
        for indices in order.split(32):
            x = images[indices].float() / 255
            loss: Any = torch_notes.terms(model, x, torch.randn(len(x), 10))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        x = held_out.float() / 255
        return {name: v.item() for name, v in torch_notes.terms(model, x, torch.randn(len(x), 10)).items()}


def train_jaxvae(preset: str, data_dir: Path, seed: int, epochs: int) -> Figures:
    """What ``python -m jaxvae.train`` and ``python -m jaxvae.evaluate`` do."""
    config = replace(
        PRESETS[preset],
        dataset="mnist",
        data_dir=str(data_dir),
        seed=seed,
        epochs=epochs,
        image_every=0,
        checkpoint_every=0,
    )
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        train(config, run)
        figures = evaluate_run(run)
        if seed == 0:
            for picture in run.glob("images/*_epoch_*.png"):
                picture.rename(PICTURES / f"{preset}-{picture.name.partition('_')[0]}.png")
    return {name: figures[name] for name in ("loss", "recon", "kl") if name in figures}


SIDES = {"PyTorch": train_torch, "jaxvae": train_jaxvae}


def table(runs: list[dict[str, Any]]) -> str:
    """Mean, spread (largest minus smallest) and every seed's figure, of each model, figure and side."""
    lines = ["| model | test figure (per pixel) | side | mean | spread | each seed |", "|---|---|---|---|---|---|"]
    for preset in NOTES:
        terms = {"loss": "MSE"} if preset == "notes-ae" else {"recon": "MSE", "kl": "KLD", "loss": "MSE + KLD"}
        for term, name in terms.items():
            for side in SIDES:
                values = [r["test"][term] for r in runs if (r["preset"], r["side"]) == (preset, side)]
                each = ", ".join(f"{v:.5f}" for v in values)
                spread = max(values) - min(values)
                lines.append(f"| {preset} | {name} | {side} | {np.mean(values):.5f} | {spread:.5f} | {each} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=PATH, help="file to write")
    args = parser.parse_args()
    import torch

    runs: list[dict[str, Any]] = []
    for preset in NOTES:
        for side, train_side in SIDES.items():
            for seed in range(args.seeds):
                start = time.perf_counter()
                test = train_side(preset, args.data_dir, seed, args.epochs)
                seconds = round(time.perf_counter() - start, 1)
                runs.append({"preset": preset, "side": side, "seed": seed, "test": test, "seconds": seconds})
                print(runs[-1], file=sys.stderr, flush=True)
    versions = {"torch": torch.__version__, "jax": jax.__version__, "numpy": np.__version__}
    result = {"epochs": args.epochs, "versions": versions, "runs": runs}
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
