"""Wide matrices: all members in `make test`, some of each kind in `make test-quick`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def members(matrix: Iterable[str], quick: Collection[str]) -> list[Any]:
    """The members of a matrix as parameters of a test; all but the quick ones are slow.

    Raises: ValueError if a quick one is no member.
    """
    given = list(matrix)
    if unknown := set(quick).difference(given):
        raise ValueError(f"no members of the matrix: {sorted(unknown)}")
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in given]
