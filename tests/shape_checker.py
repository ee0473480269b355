"""A type checker for jaxtyping's import hook: beartype's, where it can check the hints."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintException


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, checked; as it is if its hints name a protocol that no instance can be checked against."""
    try:
        return beartype(function)
    except BeartypeDecorHintException:
        return function
