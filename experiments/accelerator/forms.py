"""XLA's own convolutions instead of jaxvae's, to be timed on a GPU: python forms.py FORM [flags of convolutions.py]."""

import sys
from typing import Any

import jax
from trainers import COMPILERS  # noqa: F401  (finds experiments/speed)

from jaxvae.models import convolution

NUMBERS = ("NHWC", "HWIO", "NHWC")


def by_xla(x: Any, kernel: Any, stride: int = 1) -> Any:
    """See `jaxvae.models.convolution.convolve`."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=NUMBERS)


def transposed_by_xla(x: Any, kernel: Any, size: tuple[int, int]) -> Any:
    """See `jaxvae.models.convolution.convolve_transposed`."""
    whole = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=NUMBERS)
    return whole[:, : size[0], : size[1]]


FORMS = {"by XLA": (by_xla, transposed_by_xla)}


def take_form(name: str) -> None:
    """Let this process compute convolutions in a form of `FORMS`."""
    vars(convolution)["convolve"], vars(convolution)["convolve_transposed"] = FORMS[name]


def main() -> int:
    """Be a contender of convolutions.py; the exit code."""
    import convolutions

    take_form(sys.argv.pop(1))
    return convolutions.main()


if __name__ == "__main__":
    sys.exit(main())
