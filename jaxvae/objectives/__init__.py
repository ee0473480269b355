"""What a model is trained on: objectives, and the loss that one becomes in a run."""

from jaxvae.objectives.base import Context, FunctionObjective, Loss, View
from jaxvae.objectives.build import OBJECTIVES, build_objective

__all__ = ["OBJECTIVES", "Context", "FunctionObjective", "Loss", "View", "build_objective"]
