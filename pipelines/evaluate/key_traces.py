"""Cuts a key out of texts that whoever was sent it may have written."""

import base64
import html
import json
import re
from urllib.parse import quote

_SHORTEST, _TRACE = 4, 8  # characters
_CUT = "***"
_FOR_ADDRESSES = str.maketrans("+/", "-_")


class KeyTraces:
    """What may be left of a key in a text.

    Of a key of eight characters or more, any eight in a row are a trace, in either case of letters:
    of the key itself, or of it percent-encoded, escaped for JSON or HTML, in base64 or hexadecimal.
    Of a shorter one, the whole is, in any of these forms, where no letter or digit is beside it. A
    key of one to three characters is a placeholder, and is not looked for.
    """

    def __init__(self, key: str | None) -> None:
        forms = _forms(key) if key and len(key) >= _SHORTEST else set()
        self._traces: set[str] = set()
        self._words: re.Pattern[str] | None = None
        if key and len(key) >= _TRACE:
            self._traces = {
                form[at : at + _TRACE] for form in forms for at in range(len(form) - _TRACE + 1)
            }
        elif forms:
            longest_first = sorted(map(re.escape, forms), key=len, reverse=True)
            self._words = re.compile(rf"(?<![^\W_])(?:{'|'.join(longest_first)})=*(?![^\W_])", re.I)

    def cut(self, text: str) -> str:
        """The text with each trace replaced by three asterisks."""
        if self._words:
            return self._words.sub(_CUT, text)
        if not self._traces:
            return text
        # Of the same length: lower() makes two characters of some letters.
        lowered = "".join(c.lower() if c.isascii() else c for c in text)
        kept, at, end = [], 0, 0  # end: of the trace that is being cut
        for start in range(len(lowered) - _TRACE + 1):
            if lowered[start : start + _TRACE] in self._traces:
                if start > end or end == 0:
                    kept += [text[at:start], _CUT]
                at = end = start + _TRACE
        return "".join([*kept, text[at:]])


def _forms(key: str) -> set[str]:
    """In small letters, and long enough to be told from other text."""
    data = key.encode()
    found = {key, quote(key, safe=""), json.dumps(key)[1:-1], html.escape(key), data.hex()}
    alone = base64.b64encode(data).decode().rstrip("=")
    found |= {alone, alone.translate(_FOR_ADDRESSES)}
    for before in range(3):  # where the key begins within base64's groups of three bytes
        whole = base64.b64encode(b"\0" * before + data).decode()
        inner = whole[(0, 2, 3)[before] : len(whole) - (0, 3, 2)[(before + len(data)) % 3]]
        found |= {inner, inner.translate(_FOR_ADDRESSES)}
    return {form.lower() for form in found if len(form) >= _SHORTEST}
