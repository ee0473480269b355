"""The pseudo-inputs of a VampPrior beside samples from it: two pictures.

    python experiments/priors/draw.py RUN docs/images

NOTES.md says how the run was trained.
"""

import sys
from pathlib import Path

import numpy as np

import jaxvae
from jaxvae.run import plots

SHOWN = 32


def main(run_dir: str, out: str) -> None:
    """Write vamp-pseudo-inputs.png and vamp-samples.png to the folder `out`."""
    run = jaxvae.load(run_dir)
    inputs = np.clip(run.variables["params"]["p_z"]["pseudo_inputs"][:SHOWN], 0, 1)
    for name, images in (("pseudo-inputs", inputs), ("samples", run.sample(SHOWN))):
        plots.save_png(Path(out) / f"vamp-{name}.png", plots.image_grid(images), scale=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
