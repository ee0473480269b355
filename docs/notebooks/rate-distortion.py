# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How much should the latents cost?
#
# A VAE describes an image in two parts: its latents, which cost `kl` nats (the *rate*), and what the latents leave open,
# which costs `recon` nats (the *distortion*). A weight beta of the KL term says how much a nat of the one is worth in nats
# of the other (Higgins et al., ICLR 2017). This notebook trains one model for each of six weights, all in one program,
# and shows what the weight changes.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxvae") is None:  # On Colab: upload a zip of the repository as jaxvae.zip first.
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "jaxvae.zip"], check=True)

# %%
import csv
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

import jaxvae

DATASET = "mnist"  # Or "digits", which needs no network.
EPOCHS = 4
BETAS = (0.25, 0.5, 1, 2, 4, 8)
SWEEP = Path(mkdtemp()) / "beta"


def command(*words: object) -> None:
    """Run a command of jaxvae, and print what it says."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(done.stdout.decode())


# %% [markdown]
# ## Train a sweep
#
# A sweep trains every combination of the values given. Here that is one model for each beta; more seeds
# (`--seeds 3`) would show how far chance alone moves the results.

# %%
command(
    "jaxvae.sweep", "--dataset", DATASET, "--preset", "vae", "--epochs", EPOCHS, "--beta", *BETAS, "--run-dir", SWEEP
)

# %% [markdown]
# `members.csv` holds a row for each model.

# %%
with (SWEEP / "members.csv").open() as file:
    members = list(csv.DictReader(file))
betas, rate, distortion = (
    np.array([float(member[column]) for member in members]) for column in ("beta", "test_kl", "test_recon")
)
for row in zip(betas, rate, distortion, rate + distortion, strict=True):
    print("beta {:4g}: rate {:5.1f} + distortion {:5.1f} = {:5.1f} nats per image".format(*row))

# %% [markdown]
# ## The trade
#
# Each point is a model. Along a dashed line the sum of rate and distortion is the same: it is the negative ELBO, so lines
# further down and left are better models of the data. Along the curve one is traded for the other: a model with a small
# beta keeps more about each image, one with a large beta less. (Alemi et al., "Fixing a Broken ELBO", arXiv 1711.00464.)

# %%
fig, ax = plt.subplots(figsize=(6, 5))
ax.plot(rate, distortion, "o-")
for beta, x, y in zip(betas, rate, distortion, strict=True):
    ax.annotate(f"beta {beta:g}", (x, y), xytext=(8, 6), textcoords="offset points")
low = (rate + distortion).min()
for total in (low, low + 20, low + 40):
    ax.plot([0, total], [total, 0], "--", color="gray", linewidth=0.8)
ax.set(xlim=(0, 1.3 * rate.max()), ylim=(0.9 * distortion.min(), 1.1 * distortion.max()))
ax.set(xlabel="rate: KL, nats per image", ylabel="distortion: reconstruction, nats per image")
plt.show()

# %% [markdown]
# ## What it looks like
#
# Three of the models, taken out of the sweep as ordinary runs. For each: test images, what the model makes of them, and
# new images drawn from the prior. A small beta reconstructs sharply, but its samples fall between the digits: its latents
# do not fill the prior. A large beta keeps so little that all is blurred, and one digit becomes another.


# %%
def show(title: str, *rows: np.ndarray, zoom: float = 0.8) -> None:
    """Show rows of images [N, H, W, C]."""
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    plt.figure(figsize=(zoom * len(rows[0]), zoom * len(rows) + 0.3))
    plt.imshow(grid.squeeze(), cmap="gray")
    plt.title(title)
    plt.axis("off")
    plt.show()


test = jaxvae.data.load(DATASET).test[:12]
for beta in (BETAS[0], 1, BETAS[-1]):
    number = next(member["member"] for member, value in zip(members, betas, strict=True) if value == beta)
    to = SWEEP.parent / f"member-{number}"
    command("jaxvae.sweep", "--run-dir", SWEEP, "--extract", number, "--to", to)
    run = jaxvae.load(to)
    show(f"beta {beta:g}: images, reconstructions, samples", test / 255, run.reconstruct(test) / 255, run.sample(12))

# %% [markdown]
# ## Which one?
#
# - To *generate* or to *compare likelihoods*: beta 1, whose loss is the bound itself, trained for long enough.
# - To *compress or reconstruct*: less than 1.
# - For few, independent latents: more than 1. [Objectives](../objectives.md) has ways that cost less quality, such as free
#   bits and beta-TC.
#
# [Sweeps](../sweeps.md) has all options, and the same sweep with three seeds.
