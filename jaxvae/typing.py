"""Types that many modules share. A batch, wherever one is passed, is a mapping of arrays with a common first axis."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Array = jax.Array
Batch: TypeAlias = Mapping[str, Array]
"""Examples by what they hold: "image" [B, H, W, C], and whatever else there is, such as "label" [B]."""
Terms: TypeAlias = dict[str, Array]
"""What an objective returns: named values [B], among them "loss", which is minimised."""
Params: TypeAlias = Any
"""The trained variables of a model: ``{"params": tree of arrays}``."""
Collections: TypeAlias = Mapping[str, Any]
"""The other variables of a model, by collection: batch statistics, codebooks. Empty for models that have none."""
ImageShape: TypeAlias = tuple[int, int, int]
"""(H, W, C)."""
RECORD_FIELDS = ("step", "epoch", "split", "unit", "member", "at")
"""What a line of ``metrics.jsonl`` holds besides terms, so that no term is called so."""
