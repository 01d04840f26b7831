"""What a recipe's names mean here: a place, and the fingerprint of what lies there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Located:
    """A model, a tokenizer or a file that a recipe names.

    Attributes:
        path: its directory or file on this machine. fingerprint: of its content.
    """

    path: str
    fingerprint: str
