"""Tokens with their weights for people: as text, coloured text and HTML.

Blue is for weights above zero, red for those below; the strongest has the largest absolute weight.
A bar stands where a segment begins.
"""

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence

# Of 256 colours, from weak to strong; black is read on all but the last.
_ABOVE, _BELOW = (195, 153, 111, 69, 26), (224, 217, 210, 203, 160)
_BLACK, _WHITE = 16, 231
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BORDER = ";border-left:2px solid"
_STYLE = "font-family:monospace;line-height:1.9;overflow-wrap:anywhere"
_BAR = "│"
Tokens = Sequence[str | int]
Places = Collection[int]


def plain_text(tokens: Tokens, weights: Sequence[float], begins: Places = ()) -> str:
    """Every token in brackets, its weight behind it.

    Args:
        begins: places of tokens with which a segment begins.
    """
    pairs = zip(tokens, weights, strict=True)
    return " ".join(
        f"{_BAR + ' ' if i in begins else ''}⟦{visible(token)}⟧{weight:.2f}"
        for i, (token, weight) in enumerate(pairs)
    )


def coloured_text(tokens: Tokens, weights: Sequence[float], begins: Places = ()) -> str:
    """The running text for a terminal of 256 colours; a token of weight 0 has no colour.

    Args:
        begins: as in `plain_text`.
    """
    marked = []
    shares = _shares(weights)
    for i, (token, weight, share) in enumerate(zip(tokens, weights, shares, strict=True)):
        text = visible(token)
        if share:
            level = min(4, int(share * 5))
            back = (_ABOVE if weight > 0 else _BELOW)[level]
            text = f"\x1b[38;5;{_WHITE if level == 4 else _BLACK};48;5;{back}m{text}\x1b[0m"
        marked.append(_BAR + text if i in begins else text)
    return _joined(tokens).join(marked)


def html_of(tokens: Tokens, terms: Mapping[str, Sequence[float]], begins: Places = ()) -> str:
    """An element that needs no script and no style of the page.

    Args:
        terms: name -> weights; a line of text for each, and every token says all of its weights.
        begins: as in `plain_text`.
    """
    hints = [
        " | ".join(f"{name} {weights[i]:.4g}" for name, weights in terms.items())
        for i in range(len(tokens))
    ]
    lines = []
    for name, weights in terms.items():
        spans = [
            f'<span title="{html.escape(hint)}" style="{_paint(weight, share)}'
            f'{_BORDER if i in begins else ""}">{html.escape(visible(token))}</span>'
            for i, (token, weight, share, hint) in enumerate(
                zip(tokens, weights, _shares(weights), hints, strict=True)
            )
        ]
        told = html.escape(f"{name} {span_of(weights)}")
        lines.append(f'<div style="{_STYLE}"><b>{told}</b> {_joined(tokens).join(spans)}</div>')
    return "".join(lines)


def span_of(weights: Sequence[float]) -> str:
    """The smallest and the largest weight."""
    return f"({min(weights):.4g} to {max(weights):.4g})"


def visible(token: str | int) -> str:
    """A token as it can be written on one line: control characters and half characters show."""
    text = _CONTROL.sub(lambda found: _written(found[0]), str(token))
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _written(character: str) -> str:
    code = ord(character)
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return known.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _joined(tokens: Tokens) -> str:
    """What stands between tokens: texts bring their own spaces, ids do not."""
    return " " if any(isinstance(token, int) for token in tokens) else ""


def _shares(weights: Sequence[float]) -> list[float]:
    """Absolute weights as shares of the largest finite one."""
    sizes = [abs(weight) if math.isfinite(weight) else 0.0 for weight in weights]
    largest = max(sizes, default=0.0)
    return [size / largest if largest else 0.0 for size in sizes]


def _paint(weight: float, share: float) -> str:
    colour = "53,100,168" if weight > 0 else "200,85,61"
    white = ";color:#fff" if share > 0.6 else ""
    return f"white-space:pre-wrap;border-radius:3px;background:rgba({colour},{share:.3f}){white}"
