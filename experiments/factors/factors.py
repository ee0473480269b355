"""Do objectives that ask for independent latents find the factors of simple images? MIG, DCI and SAP of each.

    python experiments/factors/factors.py --runs runs/factors

The images are 32 x 32, black, with one white shape in them: a square, a disc or a cross, in four sizes, at 16 x 16
places: 3,072 in all, of which every seventh is a test image. So the factors are known. Writes README.md's table beside
this file.
"""

import argparse
import datetime
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

import jaxvae
from jaxvae.evaluate import evaluate_run
from jaxvae.metrics import Disentanglement

HERE = Path(__file__).parent
SIDE, SIZES, PLACES = 32, 4, 16
TEST_EVERY = 7  # Not a divisor of a factor's number of values.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "`elbo`": {},
    "`elbo`, beta 4": {"beta": 4.0},
    "`beta-tc`, beta 6": {"objective": "beta-tc", "beta": 6.0},
    "`factor`, beta 11": {"objective": "factor", "beta": 11.0, "discriminator_width": 256},
}
NAMES = ("elbo", "mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap")
MARK = "<!-- the table: made by factors.py -->"


def sprites() -> dict[str, NDArray[Any]]:
    """All images, and the numbers of shape, size, row and column of each."""
    shape, size, row, column = np.unravel_index(np.arange(3 * SIZES * PLACES**2), (3, SIZES, PLACES, PLACES))
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = (2 + size)[:, None, None]
    dy, dx = (np.abs(grid - (8 + place)[:, None, None]) for grid, place in ((y, row), (x, column)))
    shapes = [np.maximum(dy, dx) <= radius, dy**2 + dx**2 <= radius**2, (np.minimum(dy, dx) < 1) & (dy + dx <= radius)]
    image = np.choose(shape[:, None, None], shapes)
    factors = np.stack([shape, size, row, column], axis=1)
    return {"image": (255 * image[..., None]).astype(np.uint8), "factors": factors.astype(np.int32)}


def measured(changes: Mapping[str, Any], seed: int, run_dir: Path, data: Any) -> dict[str, float]:
    """Train a model if that was not done, and evaluate it."""
    result = run_dir / "factors.json"
    if not result.exists():
        given = {"latent_size": 6, "epochs": 200, "validation": 0, "image_every": 0, "seed": seed, **changes}
        jaxvae.fit("vae", data=data, run_dir=run_dir, resume=(run_dir / "config.json").exists(), **given)
        found = evaluate_run(run_dir, metrics=[Disentanglement()], images=data)
        names = {name: found[name if name in found else f"unnormalised_{name}"] for name in NAMES}
        result.write_text(json.dumps(names), encoding="utf-8")
    return json.loads(result.read_text())  # type: ignore[no-any-return]


def main() -> None:
    """Train what is not trained, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/factors"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    whole = sprites()
    tested = np.arange(len(whole["image"])) % TEST_EVERY == 0
    data = {name: values[~tested] for name, values in whole.items()}, {n: v[tested] for n, v in whole.items()}
    lines = [f"| objective | {' | '.join(f'`{name}`' for name in NAMES)} |", "| --- " * (1 + len(NAMES)) + "|"]
    for name, changes in MODELS.items():
        folder = args.runs / name.replace("`", "").replace(", ", "-").replace(" ", "-")
        found = [measured(changes, seed, folder / str(seed), data) for seed in range(args.seeds)]
        cells = [[one[column] for one in found] for column in NAMES]
        digits = [1, *[2] * (len(NAMES) - 1)]
        shown = [f"{mean(c):.{d}f} ({min(c):.{d}f} to {max(c):.{d}f})" for c, d in zip(cells, digits, strict=True)]
        lines.append(f"| {name} | {' | '.join(shown)} |")
        print(lines[-1], flush=True)
    page = HERE / "README.md"
    said = (
        f"Means of {args.seeds} seeds, least to most. CPU, jax {version('jax')}, {datetime.date.today().isoformat()}."
    )
    page.write_text(
        f"{page.read_text(encoding='utf-8').split(MARK)[0]}{MARK}\n\n" + "\n".join(lines) + f"\n\n{said}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
