"""Do exported files compute what the model computes, at the size at which it was trained?

    python experiments/export/check.py RUN_DIR ... [--out FILE]    # trained on MNIST, say by experiments/zoo/zoo.py

Encoder and decoder as ONNX, in onnxruntime on a CPU, on 64 test images of each run: the largest difference from jaxvae.
The page's decoder, in Node, if the model has one: the same, and the milliseconds an image takes. Writes check.json
beside this file. Needs onnx, onnxruntime and node.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import jaxvae
from jaxvae import machine
from jaxvae.errors import InputError
from jaxvae.export import page
from jaxvae.export.formats import export_run
from jaxvae.run_images import images_of
from jaxvae.trained import TrainedRun

HERE = Path(__file__).parent
IMAGES, ROUNDS = 64, 11
TIMED = """
unpack(model.layers);
if (model.labels) model.labels = floats(model.labels);
const images = given.map(([z, label]) => Array.from(decode(model, Float32Array.from(z), label)));
const times = [];
for (let round = 0; round < ROUNDS; round++) {
  const start = performance.now();
  for (const [z, label] of given.slice(0, 8)) decode(model, Float32Array.from(z), label);
  times.push((performance.now() - start) / 8);
}
times.sort((a, b) => a - b);
console.log(JSON.stringify({images, ms: times[(ROUNDS - 1) / 2]}));
"""


def onnx(run_dir: Path, run: TrainedRun, images: Any, told: dict[str, Any], place: Path) -> dict[str, float]:
    """The largest differences of latents and of intensities."""
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]

    export_run(run_dir, "onnx", place)
    encoder, decoder = (InferenceSession(place / f"{part}.onnx") for part in ("encoder", "decoder"))
    code, latents = encoder.run(None, {"image": images, **told})[0], run.encode(images, **told)
    [decoded] = decoder.run(["image"], {"latent": latents, **told})
    return {
        "latents_most": float(np.abs(latents).max()),
        "latents_differ": float(np.abs(code - latents).max()),
        "images_differ": float(np.abs(decoded - run.decode(latents, **told)).max()),
    }


def in_node(run: TrainedRun, latents: Any, labels: Any) -> dict[str, float]:
    """The largest difference of the page's images, and milliseconds an image. Raises `InputError`: there is no page."""
    html = page.page_of(run)
    [model] = re.findall(r'<script type="application/json" id="model">(.*?)</script>', html, re.DOTALL)
    decoder = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    given = json.dumps(list(zip(latents.tolist(), labels.tolist(), strict=True)))
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "page.js"
        facts = f"const model = {model}, given = {given};\n"
        script.write_text(f"{decoder}\n{facts}{TIMED.replace('ROUNDS', str(ROUNDS))}", encoding="utf-8")
        said = subprocess.run(["node", script], capture_output=True, check=True, text=True)
    found = json.loads(said.stdout)
    told = {"label": labels} if run.config.reads_labels else {}
    decoded = run.decode(latents, **told)
    return {
        "page_differs": float(np.abs(np.reshape(found["images"], decoded.shape) - decoded).max()),
        "page_ms": found["ms"],
    }


def check(run_dir: Path) -> dict[str, Any]:
    """What there is to say about a run."""
    run = jaxvae.load(run_dir)
    split = images_of(run, run_dir, labels=run.config.reads_labels).split("test")
    images = (split["image"][:IMAGES] / np.float32(255)).astype(np.float32)
    if run.config.inputs != "grey":
        images = np.round(images)
    labels = np.asarray(split.get("label", np.zeros(IMAGES)), np.int32)[:IMAGES]
    told = {"label": labels} if run.config.reads_labels else {}
    with tempfile.TemporaryDirectory() as directory:
        found: dict[str, Any] = onnx(run_dir, run, images, told, Path(directory) / "onnx")
    try:
        found |= in_node(run, np.random.default_rng(0).normal(size=(IMAGES, run.config.latent_size)), labels)
    except InputError as error:
        found["no_page"] = str(error)
    return found


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=HERE / "check.json")
    args = parser.parse_args()
    found = {}
    print("| run | latents up to | latents differ | images differ | page differs | page, ms an image |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run_dir in args.runs:
        each = found[run_dir.name] = check(run_dir)
        cells = [f"{each[name]:.2g}" for name in ("latents_most", "latents_differ", "images_differ")]
        cells += [f"{each[name]:.2g}" if name in each else "" for name in ("page_differs", "page_ms")]
        print(f"| `{run_dir.name}` | {' | '.join(cells)} |", flush=True)
    about = {"date": str(datetime.date.today()), "machine": machine.processor(), "jax": version("jax")}
    about |= {name: version(name) for name in ("onnx", "onnxruntime")}
    args.out.write_text(json.dumps({**about, "runs": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
