"""Types that many modules share. A batch is always a mapping of arrays with a common first axis."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Array = jax.Array
Batch: TypeAlias = Mapping[str, Array]
"""Named arrays: "image" [B, H, W, C], and others if there are any, such as "label" [B]."""
Terms: TypeAlias = dict[str, Array]
"""What an objective returns: named values [B], among them "loss", which is minimised."""
Params: TypeAlias = Any
"""The trained variables of a model: ``{"params": tree of arrays}``."""
Collections: TypeAlias = Mapping[str, Any]
"""The other variables of a model, by collection: batch statistics, codebooks. Empty for models that have none."""
ImageShape: TypeAlias = tuple[int, int, int]
"""(H, W, C)."""
RECORD_FIELDS = ("step", "epoch", "split", "unit", "member", "at")
"""The fields of a line of ``metrics.jsonl`` besides terms. No term may have such a name."""
