"""How numbers and names are written on a page."""

from collections.abc import Mapping
from typing import Any

WITHOUT = "without an interval"  # over one prompt there is none


def interval(value: Mapping[str, float]) -> str:
    if value["low"] != value["low"]:
        return f"{value['mean']:.3f}, {WITHOUT}"
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def signed_interval(value: Mapping[str, float]) -> str:
    if value["low"] != value["low"]:
        return f"{value['mean']:+.3f}, {WITHOUT}"
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def shown(value: Any) -> str:
    """A number with its interval, or alone as evaluations had it before there was one."""
    return interval(value) if isinstance(value, dict) else number(value)


def number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def readable(text: str) -> str:
    """A text that can be written: of a pair of surrogates its character, of a single one a mark."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def listed(names: list[str], word: str = "and") -> str:
    """Names as a sentence says them: "a", "a and b", "a, b and c"."""
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def either(names: list[str]) -> str:
    """Names of which one holds: "a", "a or b"."""
    return listed(names, "or")
