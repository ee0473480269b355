"""Weights with a model card, as a folder in the layout that Hugging Face's hub expects."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from jaxvae import config_file
from jaxvae.config import describe
from jaxvae.models.autoencoder import AutoEncoder
from jaxvae.models.vae import LatentModel
from jaxvae.run.records import read_records, words
from jaxvae.trained import TrainedRun

CARD = """---
library_name: jaxvae
tags: [{tags}]
---

# {title}

Trained on {dataset} by jaxvae for {step:,} steps. Images are {shape}.

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
images = model.apply(variables, {arguments}, method="decode"){comment}
```
"""


def card_of(run: TrainedRun, run_dir: Path) -> Mapping[str, bytes]:
    """The files of the folder, by name: weights, configuration, and a README that says what the model is."""
    arrays = {name: np.asarray(values, order="C") for name, values in flatten_dict(run.variables, sep=".").items()}
    # Where the images were is nobody's business.
    published = dataclasses.replace(run.config, dataset=run.dataset, data_dir=None)
    kinds = {LatentModel: "vae", AutoEncoder: "autoencoder"}
    kind = [name for base, name in kinds.items() if isinstance(run.model, base)]
    card = CARD.format(
        tags=", ".join([*kind, "jax", "flax"]),
        title=describe(run.config),
        dataset=run.dataset,
        step=run.step,
        shape=" x ".join(map(str, run.image_shape)),
        image_shape=tuple(run.image_shape),
        metrics=_metrics(read_records(run_dir / "metrics.jsonl"), run.step),
        arguments="latents, labels" if run.config.condition == "label" else "latents",
        comment="" if run.config.model else "  # logits of the mean intensities",
    )
    return {
        "model.safetensors": safetensors.numpy.save(arrays),
        "config.json": config_file.to_json(published).encode(),
        "README.md": card.encode("utf-8", "replace"),
    }


def _metrics(lines: Sequence[Mapping[str, Any]], step: int) -> str:
    """The metrics of the test images at a step, in a sentence; nothing if there are none."""
    tests = [line for line in lines if line["split"] == "test" and line["step"] == step]
    return f"Test images: {words(tests[-1])} ({tests[-1]['unit']})." if tests else ""
