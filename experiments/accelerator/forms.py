"""Forms of a convolution, to be timed on an accelerator: python forms.py FORM, and the flags of convolutions.py.

On an accelerator jaxvae takes XLA's own convolutions. On an H100 these reach 1 to 2% of what products do.
"""

import sys
from typing import Any

import jax.numpy as jnp
from trainers import COMPILERS  # noqa: F401  (finds experiments/speed)

from jaxvae.models import convolution


def sliced(x: Any, kernel: Any, stride: int = 1) -> Any:
    """A convolution as one product of the kernel with what its taps see, as strided slices of the images."""
    rows, cols, _, features = kernel.shape
    batch, height, width, _ = x.shape
    high, wide = -(-height // stride), -(-width // stride)
    tall, broad = max(0, (high - 1) * stride + rows - height), max(0, (wide - 1) * stride + cols - width)
    x = jnp.pad(x, ((0, 0), (tall // 2, tall - tall // 2), (broad // 2, broad - broad // 2), (0, 0)))
    ends = (high - 1) * stride + 1, (wide - 1) * stride + 1
    taps = [x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(rows) for j in range(cols)]
    seen = jnp.concatenate(taps, -1).reshape(batch * high * wide, -1)
    return (seen @ kernel.reshape(-1, features)).reshape(batch, high, wide, features)


def transposed_sliced(x: Any, kernel: Any) -> Any:
    """A transposed convolution with a 4 x 4 kernel and stride 2 as four products, one for each phase of the output."""
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def phase(row: int, col: int) -> Any:
        # Output 2 p + row sees input p + (row + tap - 2) / 2 through each tap that makes this whole.
        places = [(t, u) for t in range(4) for u in range(4) if (row + t) % 2 == (col + u) % 2 == 0]
        starts = [((row + t) // 2, (col + u) // 2) for t, u in places]
        seen = jnp.concatenate([padded[:, i : i + height, j : j + width] for i, j in starts], -1)
        taps = jnp.concatenate([kernel[t, u] for t, u in places])
        return (seen.reshape(-1, 4 * channels) @ taps).reshape(batch, height, width, -1)

    rows = [jnp.stack([phase(row, col) for col in (0, 1)], 3) for row in (0, 1)]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, -1)


FORMS = {
    "as on a CPU": (convolution._by_products, convolution._transposed_by_products),
    "by slices": (sliced, transposed_sliced),
}


def main() -> int:
    """Be a contender of convolutions.py; the exit code."""
    import convolutions

    form = sys.argv.pop(1)
    vars(convolution)["convolve"], vars(convolution)["convolve_transposed"] = FORMS[form]
    return convolutions.main()


if __name__ == "__main__":
    sys.exit(main())
