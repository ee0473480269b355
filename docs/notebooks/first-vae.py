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
# # A VAE in five minutes
#
# Train a variational autoencoder (VAE) on MNIST, look at what it makes, and see what it has learned. On two CPU cores the
# training takes about a minute; a GPU needs seconds.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxvae") is None:  # On Colab: upload a zip of the repository as jaxvae.zip first.
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "jaxvae.zip"], check=True)

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE

import jaxvae

DATASET = "mnist"  # Or "digits", which needs no network; or the path of a folder of your own pictures.
EPOCHS = 10
RUN = Path(mkdtemp()) / "first"

# %% [markdown]
# ## Train
#
# The preset `vae` is a dense network with layers of 512 and 256 and 20 latents. Every epoch prints its losses:
#
# - `recon` is what it costs to describe an image if its latents are known, in nats (1 nat is 1.44 bits).
# - `kl` is what it costs to describe the latents themselves.
# - `loss` is their sum: the negative of the evidence lower bound (ELBO). Lower is better.

# %%
result = jaxvae.fit("vae", data=DATASET, epochs=EPOCHS, run_dir=RUN)

# %%
fig, ax = plt.subplots(figsize=(6, 3))
for split in ("train", "validation"):
    values = result.metrics[split]["loss"]
    ax.plot(np.arange(1, len(values) + 1), values, marker="o", label=split)
ax.set(xlabel="epoch", ylabel="loss, nats per image")
ax.legend()
plt.show()

# %% [markdown]
# ## Look
#
# `result.run` is the trained model. Here are test images in the first row, and below them what the model makes of each:
# it *encodes* an image to 20 numbers, and *decodes* these to an image again.


# %%
def show(*rows: np.ndarray, zoom: float = 0.8) -> None:
    """Show rows of images [N, H, W, C]."""
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    height, width = len(rows), len(rows[0])
    plt.figure(figsize=(zoom * width, zoom * height))
    plt.imshow(grid.squeeze(), cmap="gray")
    plt.axis("off")
    plt.show()


run = result.run
test = jaxvae.data.load(DATASET).test
show(test[:12] / 255, run.reconstruct(test[:12]) / 255)

# %% [markdown]
# New images need no encoder. Draw latents from the prior, a standard normal distribution, and decode them:

# %%
show(*run.sample(36).reshape(3, 12, *run.image_shape))

# %% [markdown]
# Between two images lies a path: decode the points between their latents. On the way, one digit becomes the other, and
# each step looks like a digit or nearly so. A path between the pixels would only fade one picture into the other.

# %%
show(*(run.interpolate(test[a], test[b], steps=12) / 255 for a, b in ((0, 1), (2, 7), (4, 8))))

# %% [markdown]
# ## Understand
#
# The model pays for each latent that it uses: its KL term. It gives up those that do not earn what they cost, so some
# stay unused. `evaluate_run` tells what each latent costs, in nats per image.

# %%
figures = jaxvae.evaluate.evaluate_run(RUN)
costs = np.sort(figures["kl_per_dimension"])[::-1]
fig, ax = plt.subplots(figsize=(6, 3))
ax.bar(np.arange(len(costs)), costs)
ax.set(xlabel="latent, most used first", ylabel="KL, nats per image")
plt.show()
print(f"{figures['active_units'][0]} of {len(costs)} latents are in use")

# %% [markdown]
# What does a latent mean? Take an image's latents, and change one of them from -3 to 3, that is, over nearly all that the
# prior allows. Each row is one latent: the three with the greatest spread over the test images.

# %%
latents = run.encode(test)
widest = np.argsort(latents.std(axis=0))[::-1]
rows = []
for latent in widest[:3]:
    changed = np.repeat(latents[:1], 12, axis=0)
    changed[:, latent] = np.linspace(-3, 3, 12)
    rows.append(run.decode(changed))
show(*rows)

# %% [markdown]
# A map of 3,000 test images: t-SNE (van der Maaten and Hinton, 2008) puts those with similar latents close together.
# Pictures of the same digit gather, although nobody told the model which digits they are.

# %%
places = TSNE(random_state=0).fit_transform(latents[:3000])
places = 2 * places / np.abs(places).max()  # From -2 to 2.
fig, ax = plt.subplots(figsize=(8, 8))
ax.scatter(*places.T, s=1, color="lightgray")
shown: list[np.ndarray] = []
for image, place in zip(test, places, strict=False):
    if all(np.abs(place - other).max() > 0.11 for other in shown):  # Where there is room.
        shown.append(place)
        x, y = place
        ax.imshow(255 - image.squeeze(), cmap="gray", extent=(x - 0.06, x + 0.06, y - 0.06, y + 0.06), zorder=2)
low, high = places.min(axis=0), places.max(axis=0)
ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
ax.axis("off")
plt.show()

# %% [markdown]
# ## How good is it?
#
# `unnormalised_elbo` is the lower bound on the log-likelihood of the test images. *Unnormalised* says that grey pixels
# have no probability under a Bernoulli likelihood: compare it with other runs of this kind, not with published figures.
# [Evaluation](../evaluation.md) tells what each number promises.

# %%
for name in ("loss", "recon", "kl", "unnormalised_elbo"):
    print(f"{name:18} {figures[name]:8.2f} +- {figures[name + '_standard_error']:.2f} nats per image")

# %% [markdown]
# ## Go on
#
# - Train for longer: `jaxvae.fit("vae", data=DATASET, epochs=100, run_dir=RUN, resume=True)` goes on from here.
# - Train on your own pictures: `jaxvae.fit("vae", data="path/to/folder", architecture="conv")`.
#   [Your own images](../images.md) has the details.
# - [How much should the latents cost?](rate-distortion.ipynb) is the next notebook.
