"""Tests must fail if a term, sign or constant is altered: see experiments/mutations/mutations.py."""

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "mutations"))
import mutations
from mutations import MUTATIONS, Mutation, Outcome

Runs = dict[Mutation | None, "Future[Outcome]"]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    with mutations.started() as futures:
        yield futures


def test_every_mutation_applies_and_has_its_own_name() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    for mutation in MUTATIONS:
        path, text = mutations.mutated(mutation)
        compile(text, path, "exec")


@pytest.mark.slow
def test_an_unchanged_copy_passes(runs: Runs) -> None:
    outcome = runs[None].result()
    assert outcome.code == 0, outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.name for m in MUTATIONS])
def test_a_mutation_is_caught(runs: Runs, mutation: Mutation) -> None:
    outcome = runs[mutation].result()
    assert outcome.caught, outcome.output
    name = mutation.test.partition("::")[2]
    assert outcome.failed in (name, name.partition("[")[0]) or outcome.failed.startswith(f"{name}[")
