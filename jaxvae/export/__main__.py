"""Export a trained model for use elsewhere: ``python -m jaxvae.export RUN_DIR --format html``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxvae import cli, compilation_cache
from jaxvae.export.formats import Format, export_run

DESCRIPTION = """Export a trained model for use elsewhere.

html: a web page with sliders for the latents, in one file that needs nothing else. onnx: a folder with the encoder and
the decoder for ONNX's runtimes, which need neither JAX nor Python. stablehlo: a folder with both as programs that JAX
runs on any device without jaxvae. safetensors: a folder with the weights, the configuration and a model card. For
PyTorch, see jaxvae.torch_weights."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to export."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    format: Format = "html"
    """What to write."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """File or folder to write; it must not exist. Default: model.html, or the format's name."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    given = cli.parse(Arguments, args, prog="python -m jaxvae.export", description=DESCRIPTION)
    out = given.out or Path("model.html" if given.format == "html" else given.format)
    if not out.exists():  # Else `export_run` says so.
        cli.check_writable("--out", out)
    compilation_cache.use()
    export_run(given.run_dir, given.format, out, given.best)
    print(f"{given.run_dir} -> {out}")
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
