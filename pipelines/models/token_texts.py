"""What every token writes of the text that it stands in."""

from collections.abc import Sequence
from typing import Any

_HALF = "\ufffd"  # what a decoder writes for a part of a character
_TOKENS_OF_CHARACTER = 8


class TokenTexts:
    """The texts of tokens, from their ids alone; those of one response make its text together.

    A token's text is what it adds to a text before it, so a word keeps its space. Each id is
    decoded once.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._known: dict[int, str] = {}

    def __call__(self, ids: Sequence[int], begins: bool = False) -> list[str]:
        """The text of every token. A character of several tokens stands at its last one.

        Args:
            begins: nothing stands before the first token.
        """
        pieces: list[str] = []
        waiting: list[int] = []  # tokens of a character that is not whole yet
        for place, id_ in enumerate(map(int, ids)):
            waiting.append(id_)
            is_first = begins and place + 1 == len(waiting)
            text = self._decoded(waiting) if is_first else self._added(waiting)
            if text.endswith(_HALF) and len(waiting) < _TOKENS_OF_CHARACTER:
                pieces.append("")
                continue
            pieces.append(text)
            waiting = []
        if waiting:
            is_first = begins and len(waiting) == len(pieces)
            pieces[-1] = self._decoded(waiting) if is_first else self._added(waiting)
        return pieces

    def _added(self, ids: list[int]) -> str:
        """What some tokens add to a text before them."""
        if len(ids) > 1:
            return self._after_anchor(ids)
        if ids[0] not in self._known:
            self._known[ids[0]] = self._after_anchor(ids)
        return self._known[ids[0]]

    def _after_anchor(self, ids: list[int]) -> str:
        return self._decoded([*self._anchor, *ids])[len(self._decoded(self._anchor)) :]

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
