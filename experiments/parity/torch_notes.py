"""The notes' autoencoder and VAE in PyTorch: the other side of the parity tests.

It shares no code with jaxvae. Widths, activations and formulas are those of the notes; noise is an
argument, so that both sides can be given the same. The names in a `state_dict` are those of the
notes' modules: ``encoder.0.weight`` ... ``decoder.4.bias``.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Where torch is not installed, its classes have no types.
# mypy: allow-subclassing-any

PIXELS = 28 * 28


def _stack(widths: Sequence[int], last: nn.Module) -> nn.Sequential:
    """Linear layers of the given widths, a ReLU after each but the final one, which gets `last`."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1], last)


class AutoEncoder(nn.Module):
    """784 -> 256 -> 64 -> 20 and back; a ReLU on the code, a sigmoid on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _stack((PIXELS, 256, 64, 20), nn.ReLU())
        self.decoder = _stack((20, 64, 256, PIXELS), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Intensities [B, 1, 28, 28] to reconstructed intensities of the same shape."""
        x_hat: Tensor = self.decoder(self.encoder(x.flatten(1)))
        return x_hat.reshape(x.shape)


class VAE(nn.Module):
    """The same encoder, its 20 outputs being 10 means and 10 standard deviations; the decoder takes 10."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _stack((PIXELS, 256, 64, 20), nn.ReLU())
        self.decoder = _stack((10, 64, 256, PIXELS), nn.Sigmoid())

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Intensities [B, 1, 28, 28] and noise [B, 10] to the reconstruction, [B, 1, 28, 28], and kld, []."""
        mean, sigma = self.encoder(x.flatten(1)).split(10, dim=1)
        x_hat: Tensor = self.decoder(mean + sigma * eps)
        nats = 0.5 * (mean**2 + sigma**2 - (1e-8 + sigma**2).log() - 1).sum()
        return x_hat.reshape(x.shape), nats / (len(x) * PIXELS)


MODULES: dict[str, type[nn.Module]] = {"notes-ae": AutoEncoder, "notes-vae": VAE}


def terms(model: nn.Module, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """The notes' loss of a batch and, for a VAE, its two terms: {"loss", "recon", "kl"}, each [].

    Args:
      model: an `AutoEncoder` or a `VAE`.
      x: intensities in [0, 1], [B, 1, 28, 28].
      eps: noise [B, 10]; an autoencoder does not look at it.
    """
    if isinstance(model, VAE):
        x_hat, kld = model(x, eps)
        recon = nn.functional.mse_loss(x_hat, x)
        return {"loss": recon + 1.0 * kld, "recon": recon, "kl": kld}
    return {"loss": nn.functional.mse_loss(model(x), x)}


def adam(model: nn.Module) -> torch.optim.Adam:
    """The notes' optimiser: PyTorch's Adam with its defaults at a rate of 1e-3."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)
