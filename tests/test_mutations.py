"""The mutations of experiments/mutations/mutations.py, which `make mutations` runs, fit the code as it is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "mutations"))
import mutations
import pytest
from mutations import MUTATIONS


@pytest.mark.long
def test_every_mutation_applies_names_a_test_and_has_its_own_name() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        path, text = mutations.mutated(mutation)
        compile(text, path, "exec")
        file, _, test = mutation.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (Path(__file__).parents[1] / file).read_text(), mutation.test
