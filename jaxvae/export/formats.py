"""Write a trained model in one of the formats for use elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from jaxvae import trained
from jaxvae.errors import InputError, SaveError
from jaxvae.export.card import card_of
from jaxvae.export.onnx.files import onnx_files_of
from jaxvae.export.page import page_of
from jaxvae.export.programs import programs_of

Format: TypeAlias = Literal["html", "onnx", "stablehlo", "safetensors"]


def export_run(run_dir: Path, form: Format, out: Path, best: bool = False) -> None:
    """Write a run's newest model (or its best) to `out`.

    Args:
      run_dir: of the run.
      form: "html", a file (`jaxvae.export.page`); "onnx" (`jaxvae.export.onnx.files`), "stablehlo"
        (`jaxvae.export.programs`) or "safetensors" (`jaxvae.export.card`), a folder.
      out: the file or folder; it must not exist.
      best: the best checkpoint by the validation images.

    Raises:
      InputError: no run, a model that cannot be exported so, or `out` exists.
      SaveError: `out` cannot be written.
    """
    if out.exists():
        raise InputError(f"--out {out}: there is something of that name")
    run = trained.load_run(run_dir, best)
    files: Mapping[str, bytes]
    match form:
        case "html":
            files = {"": page_of(run).encode()}
        case "onnx":
            files = onnx_files_of(run)
        case "stablehlo":
            files = programs_of(run)
        case "safetensors":
            files = card_of(run, run_dir)
    try:
        if form != "html":
            out.mkdir()
        for name, content in files.items():
            (out / name if name else out).write_bytes(content)
    except OSError as error:
        raise SaveError(f"--out {out} cannot be written: {error.strerror}") from None
