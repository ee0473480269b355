"""Weights with a model card, as a folder in the layout that Hugging Face's hub expects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from jaxvae import config_file
from jaxvae.config import describe
from jaxvae.run.records import read_records, words
from jaxvae.trained import TrainedRun

CARD = """---
library_name: jaxvae
tags: [vae, jax, flax]
---

# {title}

Trained on {dataset} by [jaxvae](https://pypi.org/project/jaxvae/) for {step:,} steps. Images are {shape}.

{metrics}

`model.safetensors` holds the weights by their paths in the Flax module, separated by dots; `config.json` describes the
module and its training. To use them:

```python
from pathlib import Path

from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

import jaxvae
from jaxvae import config_file

config = config_file.load(Path("config.json"), to_use=True)
model = jaxvae.build_model(config, {image_shape})
variables = unflatten_dict(load_file("model.safetensors"), sep=".")
images = model.apply(variables, latents, method="decode")  # logits of the mean intensities
```
"""


def card_of(run: TrainedRun, run_dir: Path) -> Mapping[str, bytes]:
    """The files of the folder, by name: weights, configuration, and a README that says what the model is."""
    arrays = {name: np.asarray(values, order="C") for name, values in flatten_dict(run.variables, sep=".").items()}
    card = CARD.format(
        title=describe(run.config),
        dataset=run.dataset,
        step=run.step,
        shape=" x ".join(map(str, run.image_shape)),
        image_shape=tuple(run.image_shape),
        metrics=_metrics(read_records(run_dir / "metrics.jsonl")),
    )
    return {
        "model.safetensors": safetensors.numpy.save(arrays),
        "config.json": config_file.to_json(run.config).encode(),
        "README.md": card.encode(),
    }


def _metrics(lines: Sequence[Mapping[str, Any]]) -> str:
    """The last metrics of the test images, in a sentence; none if there are none."""
    tests = [line for line in lines if line["split"] == "test"]
    return f"Test images: {words(tests[-1])} ({tests[-1]['unit']})." if tests else ""
