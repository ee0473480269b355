"""Objectives, and the loss that a run makes of one."""

from jaxvae.objectives.base import Context, FunctionObjective, Loss, View
from jaxvae.objectives.build import OBJECTIVES, build_objective

__all__ = ["OBJECTIVES", "Context", "FunctionObjective", "Loss", "View", "build_objective"]
