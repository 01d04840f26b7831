"""The longest row that is read: a text of which almost all is cut off would cost minutes."""

from typing import Any

LONGEST = 2**22  # characters: about a million tokens, more than any model reads


def too_long(values: Any) -> str:
    """What is wrong with a row whose texts are too long together; empty if they are not."""
    total, waiting = 0, [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return "" if total <= LONGEST else f"its texts have over {LONGEST:,} characters"
