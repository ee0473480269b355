"""Count the kernels of a step of every preset, as compiled for accelerators that need not be here.

    python experiments/accelerator/counted.py      # needs what `--compile-for` needs: jax[cuda13] and libtpu

It writes counted.json beside this file after each preset, and prints a table.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxvae.config import PRESETS

OUT = Path(__file__).parent / "counted.json"
ACCELERATORS = ("h100", "v5e:2x2")
MORE = ("vae --architecture conv", "vae --architecture resnet", "vae --prior realnvp", "vae --prior mixture")
BATCH = 128  # Of all presets alike.


def counted(accelerator: str, flags: str) -> dict[str, float | str]:
    """What ``python -m jaxvae.benchmark --compile-for`` finds; or the error."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "compiled.json"
        command = [sys.executable, "-m", "jaxvae.benchmark", "--compile-for", accelerator, "--preset", *flags.split()]
        command += ["--dataset", "digits", "--batch-size", str(BATCH), "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no error was printed"]
            return {"error": next((line for line in said if line.startswith("error:")), said[-1])}
        [result] = json.loads(out.read_text())["results"]
    names = ("kernels_per_step", "chain", "collectives_per_step", "program_bytes", "flops_per_step")
    return {**{name: result[name] for name in names}, "predicted_seconds": sum(result["predicted_seconds"].values())}


def main() -> None:
    """Run the command line."""
    found: dict[str, dict[str, dict[str, float | str]]] = {}
    print(f"| preset | {' | '.join(f'{each}: kernels, chain, predicted' for each in ACCELERATORS)} |")
    for flags in (*PRESETS, *MORE):
        found[flags] = {each: counted(each, flags) for each in ACCELERATORS}
        cells = [
            each["error"]
            if "error" in each
            else f"{each['kernels_per_step']}, {each['chain']}, {1e6 * float(each['predicted_seconds']):.0f} us"
            for each in found[flags].values()
        ]
        print(f"| `{flags}` | {' | '.join(map(str, cells))} |", flush=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
