"""Measure every preset on this machine, at one batch size: python experiments/speed/presets.py --data-dir DIR

DIR holds MNIST's IDX files. It writes presets.json beside this file and prints the table of docs/speed.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxvae.config import PRESETS

OUT = Path(__file__).parent / "presets.json"
MORE = ("vae --architecture conv", "vae --architecture resnet", "vae --prior mixture", "vae --prior realnvp")
BATCH = 128


def measured(flags: str, data_dir: Path) -> dict[str, Any]:
    """What ``python -m jaxvae.benchmark`` finds."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "benchmark.json"
        command = [sys.executable, "-m", "jaxvae.benchmark", "--preset", *flags.split(), "--dataset", "mnist"]
        command += ["--data-dir", str(data_dir), "--batch-size", str(BATCH), "--skip-first-step", "--json", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        content: dict[str, Any] = json.loads(out.read_text())
    return content


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    found = {}
    print("| `--preset` | steps/s | images/s | MFLOP/step | of the peak | compiling |")
    print(6 * "| --- " + "|")
    for flags in (*PRESETS, *MORE):
        found[flags] = measured(flags, args.data_dir)
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        [result] = found[flags]["results"]
        rounds = result["steps_per_second_rounds"]
        print(
            f"| `{flags}` | {result['steps_per_second']:.3g} ({min(rounds):.3g}-{max(rounds):.3g}) | "
            f"{result['images_per_second']:,.0f} | {result['flops_per_step'] / 1e6:,.0f} | "
            f"{result['peak_fraction']:.0%} | {result['compile_seconds']:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
