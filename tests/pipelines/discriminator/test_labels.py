"""Labels of tokens by alignment, against ones by hand and a search of all alignments."""

import itertools
import random

import numpy as np
import pytest

from pipelines.discriminator.labels import differing, targets_of
from sparsepo import TokenizedPair


def test_by_hand() -> None:
    """7 and 9 are shared; 1 2 stand for 5; 3 is dropped from between."""
    own, others = differing([7, 1, 2, 9, 3], [7, 5, 9])
    assert own.tolist() == [False, True, True, False, True]
    assert others.tolist() == [False, True, False]
    for same in ([], [4, 4, 4]):
        assert not any(side.any() for side in differing(same, same))
    assert [side.tolist() for side in differing([1], [])] == [[True], []]


@pytest.mark.parametrize("equal", ["left_out", "neutral"])
def test_targets_are_of_scored_tokens_chosen_first(equal: str) -> None:
    """Tokens 0 and 1 of the chosen response and token 1 of the rejected one are not scored."""
    pair = TokenizedPair([3], [8, 8, 5, 6, 7], [5, 8, 4, 7], (0, 2), (1, 2))
    found = targets_of(pair, equal)  # type: ignore[arg-type]
    shared = 0.5 if equal == "neutral" else np.nan
    np.testing.assert_array_equal(found, np.float32([shared, 1, shared, shared, 0, shared]))


def test_what_is_kept_is_a_common_subsequence_and_rarely_a_short_one() -> None:
    """Against the longest one, of all alignments: never longer, and short of it in few cases."""
    rng = random.Random(0)
    short = 0
    for _ in range(300):
        one, other = ([rng.randrange(4) for _ in range(rng.randrange(8))] for _ in range(2))
        own, others = differing(one, other)
        kept = [token for token, alone in zip(one, own, strict=True) if not alone]
        assert kept == [token for token, alone in zip(other, others, strict=True) if not alone]
        longest = _longest(one, other)
        assert len(kept) <= longest
        short += len(kept) < longest
    assert short < 60


def _longest(one: list[int], other: list[int]) -> int:
    for size in range(min(len(one), len(other)), 0, -1):
        wanted = set(itertools.combinations(other, size))
        if any(part in wanted for part in itertools.combinations(one, size)):
            return size
    return 0
