"""Explore a trained model on a local page: ``python -m jaxvae.explore RUN_DIR [OTHER]``."""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxvae import cli, compilation_cache
from jaxvae.errors import InputError

DESCRIPTION = """Explore a trained model on a local page.

The page shows the latents of the test images as a map, decodes any place of it, and has a slider for each latent,
interpolation, samples, reconstruction of your own pictures, and the metrics of the run, also while it trains. It prints
the page's address; Ctrl-C ends it. Run directories are only read."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to explore."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Directory of a run of jaxvae.train."""
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER]")] = None
    """A second run, to show beside it."""
    dataset: str | None = None
    """The dataset, if its path is not that of training; the test images must be the same."""
    data_dir: str | None = None
    """Directory of its files, if it is not that of training."""
    best: bool = False
    """Use the best checkpoint by the validation images, not the newest. The run must have had --validation."""
    host: str = "127.0.0.1"
    """Address to listen on. On any but this machine's own, the page's address holds a token that it asks for."""
    port: int = 0
    """Port to listen on. 0: one that is free."""
    no_compilation_cache: bool = False
    """Compile everything: do not use the cache of compiled programs in the user's cache directory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `jaxvae.cli`)."""
    args = sys.argv[1:] if argv is None else argv
    given = cli.parse(Arguments, args, prog="python -m jaxvae.explore", description=DESCRIPTION)
    if not 0 <= given.port < 2**16:
        raise InputError(f"--port must be from 0 to 65535, not {given.port}")
    if importlib.util.find_spec("bokeh") is None:
        raise InputError("jaxvae.explore needs the package bokeh: pip install 'jaxvae[explore]'")
    compilation_cache.use(not given.no_compilation_cache)
    from jaxvae.explore.server import Server
    from jaxvae.explore.watched import Watched

    folders = [given.run_dir] if given.other is None else [given.run_dir, given.other]
    runs = [Watched(folder, given.best, given.dataset, given.data_dir) for folder in folders]
    server = Server(runs, given.host, given.port)
    print(f"{', '.join(map(str, folders))}: {server.url} (Ctrl-C ends it)", flush=True)
    server.serve()
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
