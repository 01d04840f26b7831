"""Which tokens of a pair are good and which are bad: those in which its responses differ.

Chosen and rejected are aligned token by token. That tokens of the better response alone are good,
and those of the worse one alone bad, is TLCR's rule for an edit and what it was made of; taking it
for chosen and rejected, where nobody edits, is ours.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
import numpy.typing as npt

from sparsepo.batching.layouts import TokenizedPair

GOOD, BAD, NEUTRAL = 1.0, 0.0, 0.5
Targets = npt.NDArray[np.float32]


def targets_of(pair: TokenizedPair, equal: Literal["left_out", "neutral"]) -> Targets:
    """float32 [S]: what a discriminator is to say of the pair's scored tokens, chosen first.

    1 for tokens that the chosen response alone has, 0 for the rejected one's; of tokens that both
    have 1/2 if they are neutral, nan if they are left out.
    """
    responses = [
        np.asarray(response)[places].tolist()
        for response, places in zip(pair.responses(), pair.scored_places(), strict=True)
    ]
    own = differing(*responses)
    shared = NEUTRAL if equal == "neutral" else np.nan
    found = [
        np.where(is_own, label, shared) for is_own, label in zip(own, (GOOD, BAD), strict=True)
    ]
    return np.concatenate(found).astype(np.float32)


def differing(
    one: Sequence[int], other: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of each sequence, which tokens the alignment leaves without a partner.

    What both begin and end with is aligned first, the rest by longest common runs (difflib).
    """
    alone = np.ones(len(one), bool), np.ones(len(other), bool)
    most = min(len(one), len(other))
    start = next((n for n in range(most) if one[n] != other[n]), most)
    end = next((n for n in range(most - start) if one[-1 - n] != other[-1 - n]), most - start)
    middle = one[start : len(one) - end], other[start : len(other) - end]
    for side, tokens in zip(alone, (one, other), strict=True):
        side[:start] = False
        side[len(tokens) - end :] = False
    for block in SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks():
        alone[0][start + block.a : start + block.a + block.size] = False
        alone[1][start + block.b : start + block.b + block.size] = False
    return alone
