"""Which tokens of a text belong to known key words."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[A-Za-z']+")


def key_token_labels(
    text: str, offsets: Sequence[tuple[int, int]], key_words: frozenset[str]
) -> list[bool]:
    """True for every token whose characters overlap a key word (compared in lower case).

    Args:
        offsets: character span (start, end) of each token in text.
    """
    spans = [m.span() for m in _WORD.finditer(text) if m.group().lower() in key_words]
    return [
        any(start < end_word and end > start_word for start_word, end_word in spans)
        for start, end in offsets
    ]
