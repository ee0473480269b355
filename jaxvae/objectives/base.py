"""What an objective sees, and how it becomes the loss of a run."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.errors import InputError
from jaxvae.models.build import Examples, Model, call_arguments
from jaxvae.models.layers import Precision
from jaxvae.noise import flipped
from jaxvae.protocols import Inputs, Likelihood, Measure, Objective, PixelDistribution, PosteriorSamples
from jaxvae.typing import RECORD_FIELDS, Array, Batch, Collections, Params, Terms

_BOUND_PREFIXES: Mapping[Measure, str] = {"probability": "", "density": "density_", "unnormalised": "unnormalised_"}
LIKELIHOOD_NAMES: Mapping[Measure, str] = {
    "probability": "log_likelihood",
    "density": "log_density",
    "unnormalised": "unnormalised_log_likelihood",
}


class Context(NamedTuple):
    """What an objective may need besides the model and the batch.

    Attributes:
      step: the number of steps taken, int32 []; None in evaluation, where nothing is warmed up or corrupted.
      gather: maps this device's share of a batch to the whole batch. It is the identity on a single
        device, or if the compiler sees the whole batch.
      key: for the random streams that a model names. None: the key of the first example.
    """

    step: Array | None = None
    gather: Callable[[Array], Array] = lambda share: share
    key: Array | None = None


class Facts(NamedTuple):
    """What an objective may need of the run: its length, and the number of training images. 0 if not needed."""

    epochs: int
    steps_per_epoch: int
    num_images: int


class View:
    """A model with its current weights, as an objective sees it.

    Args:
      model: the Flax module.
      variables: its variables by collection; "params" are the trained ones.
      loss: the loss that the objective belongs to.
      context: see `Context`.

    Attributes:
      model: the Flax module.
      params: its trained variables.
      collections: its other variables; `apply` replaces them in a training step.
      loss: the loss that the objective belongs to.
      step: the number of steps taken, int32 []; None in evaluation.
      gather: see `Context`.
    """

    def __init__(self, model: Model, variables: Params, loss: "Loss", context: Context):
        self.model, self.loss = model, loss
        self.params = {"params": variables["params"]}
        self.collections = {name: values for name, values in variables.items() if name != "params"}
        self.step, self.gather, self._stream = context.step, context.gather, context.key

    @property
    def train(self) -> bool:
        """Whether this is a training step."""
        return self.step is not None

    def apply(self, *arguments: Any, params: Params = None, **named: Any) -> Any:
        """``model.apply`` with the current variables, or with `params` in place of the trained ones."""
        return self._apply(arguments, named, params, self._stream)

    def output(self, batch: Batch, keys: Array) -> Any:
        """What the model's ``__call__`` returns for a batch, with a key for each example."""
        arguments, named = call_arguments(self.model, batch, keys, self.train)
        return self._apply(arguments, named, None, keys[0] if self._stream is None else self._stream)

    def _apply(self, arguments: Any, named: dict[str, Any], params: Params, stream: Array | None) -> Any:
        variables = {**(self.params if params is None else params), **self.collections}
        named["rngs"] = {} if stream is None else {"params": stream}
        if not (self.train and self.collections):
            return self.model.apply(variables, *arguments, **named)
        output, changed = self.model.apply(variables, *arguments, **named, mutable=list(self.collections))
        self.collections |= changed
        return output

    def draw(self, batch: Batch, keys: Array, samples: int) -> PosteriorSamples:
        """Draw `samples` latents for each image of a batch."""
        drawn: PosteriorSamples = self.apply(batch, keys, samples, method="draw")
        return drawn

    def nll(self, pixels: PixelDistribution, x: Array) -> Array:
        """-log p(x | z) of images; see `Loss.nll`."""
        return self.loss.nll(pixels, x)


class Loss(NamedTuple):
    """An objective with all that it needs of a run.

    Attributes:
      objective: with its options, which may be traced.
      likelihood: of the pixels.
      inputs: what is done to the pixels before the model sees them.
      precision: of float32 products in training.
      facts: of the run.
      flip: whether training turns images left to right at random.
    """

    objective: Objective
    likelihood: Likelihood
    inputs: Inputs
    precision: Precision
    facts: Facts
    flip: bool = False

    @property
    def unit(self) -> str:
        """The unit of all terms."""
        return self.objective.unit

    @property
    def per_example(self) -> bool:
        """Whether each device may compute its share of a batch. A `FunctionObjective` must see the whole batch."""
        return not isinstance(self.objective, FunctionObjective)

    def of(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        keys: Array,
        context: Context,
        collections: Collections | None = None,
    ) -> tuple[Terms, Collections]:
        """The terms of a batch, [B] each, and the collections for the next step.

        In evaluation (``context.step is None``) the loss has no terms of a whole batch. The terms then also hold the
        bound on log p(x), under the name `bound_name`; higher is better. The bound has a KL weight of 1 and no free
        bits, so it means the same for any weights in training.

        Args:
          model: the Flax module.
          params: its trained variables; in evaluation, all of its variables.
          batch: its images are intensities [B, H, W, C] in [0, 1].
          keys: [B], for the noise of each example.
          context: see `Context`.
          collections: the model's other variables, if it has any.
        """
        view = View(model, {**params, **(collections or {})}, self, context)
        turned = flipped(batch["image"], keys) if self.flip and view.train else batch["image"]
        seen = {**batch, "image": self.inputs.observe(turned, keys)}
        terms = dict(self.objective.terms(view, Examples(seen), keys))
        if self.has_bound:
            bound = terms.pop("bound")
            if context.step is None:
                terms[self.bound_name] = bound
        if reserved := [name for name in RECORD_FIELDS if name in terms]:
            raise InputError(
                f"a term of a loss must not be called {reserved[0]}: a line of metrics.jsonl has a field of that name"
            )
        return terms, view.collections

    def nll(self, pixels: PixelDistribution, x: Array) -> Array:
        """Negative log-likelihood of images, nats per image; see `measure` for its meaning.

        Args:
          pixels: of shape [B, S, H, W, C], or [B, H, W, C].
          x: intensities [B, H, W, C], as the model sees them.

        Returns:
          [B, S], or [B].
        """
        location, lead = pixels.location, pixels.location.shape[:-3]
        if len(lead) == 2:
            x = jnp.broadcast_to(x[:, None], location.shape)
        # One long axis of pixels: on a CPU, XLA loops over the last axis, which would otherwise be the channels.
        size = x[0].size if len(lead) == 1 else x[0, 0].size
        flat, target, scale = location.reshape(-1, size), x.reshape(-1, size), pixels.log_scale
        if scale is not None and scale.ndim:
            scale = scale.reshape(flat.shape)
        nll = self.likelihood.nll(PixelDistribution(flat, scale), target)
        if jnp.shape(nll) != (len(flat),):
            name, shape = type(self.likelihood).__name__, list(jnp.shape(nll))
            raise InputError(f"{name}.nll must return a value for each image, [{len(flat)}], not {shape}")
        if self.inputs.pixels == "continuous":
            nll = nll + size * math.log(256)  # From a density of intensities to a density of levels.
        return nll.reshape(lead)

    @property
    def has_bound(self) -> bool:
        """Whether an evaluation reports a bound on log p(x)."""
        return bool(self.objective.bound)

    @property
    def measure(self) -> Measure:
        """What kind of value p(x | z) is for the pixels of the images: see `Measure`."""
        return self.likelihood.measure(self.inputs.pixels)

    @property
    def bound_name(self) -> str:
        """The name of the bound: the objective's, prefixed with the measure if that is not a probability."""
        return _BOUND_PREFIXES[self.measure] + self.objective.bound

    @property
    def likelihood_name(self) -> str:
        """The name of log p(x): "log_likelihood", or "log_density" or "unnormalised_log_likelihood" (see `measure`)."""
        return LIKELIHOOD_NAMES[self.measure]

    @property
    def selection_term(self) -> tuple[str, bool]:
        """The evaluation term that selects the best model, and whether higher is better.

        It is the bound, which has no weights, or the loss of an objective without a bound.
        """
        return (self.bound_name, True) if self.has_bound else ("loss", False)


class FunctionObjective(Objective):
    """A user-defined loss function.

    Args:
      function: ``function(output, batch) -> terms``. `output` is what the model's ``__call__`` returns for the batch.
        The terms are named values, [B] each (or [], for the whole batch). One of them is "loss".
    """

    unit = "per image"
    uses = ()
    bound = ""

    def __init__(self, function: Callable[[Any, Batch], Mapping[str, Array]]):
        self.function = function
        self.__doc__ = function.__doc__

    def terms(self, view: View, batch: Batch, keys: Array) -> Terms:
        """See `Objective`. Evaluation computes one example at a time, so that no example affects another."""
        if view.train:
            return self._checked(self.function(view.output(batch, keys), batch), len(keys))

        def one(example: Batch, key: Array) -> Terms:
            alone, its_key = jax.tree.map(lambda a: a[None], (example, key))
            found = self._checked(self.function(view.output(Examples(alone), its_key), Examples(alone)), 1)
            return {name: value[0] for name, value in found.items()}

        return jax.vmap(one)(dict(batch), keys)

    def _checked(self, terms: Mapping[str, Array], size: int) -> Terms:
        """The terms, all [B]. Raises `InputError` if they are not valid."""
        name = getattr(self.function, "__name__", "the loss function")
        if not isinstance(terms, Mapping) or "loss" not in terms:
            kind = "an array" if hasattr(terms, "shape") else type(terms).__name__
            said = f"{', '.join(map(str, terms))}" if isinstance(terms, Mapping) else kind
            raise InputError(f"{name} must return a mapping of terms, among them loss, not {said or 'an empty one'}")
        for term, value in terms.items():
            if jnp.shape(value) not in ((), (size,)):
                raise InputError(f"{name}: the term {term} has shape {jnp.shape(value)}, and must have () or ({size},)")
        return {term: jnp.broadcast_to(value, (size,)) for term, value in terms.items()}
