"""What commands print, and where to."""

import os
import sys
from collections.abc import Callable, Iterable


def saying(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(line, flush=True))


def redrawn() -> Callable[[list[str]], None]:
    """Prints lines; on a terminal in place of those before them."""
    height = 0

    def show(lines: list[str]) -> None:
        nonlocal height
        if sys.stdout.isatty():
            width = os.get_terminal_size().columns
            print(f"\x1b[{height}F\x1b[J" if height else "", end="")
            height = sum(1 + (max(1, len(line)) - 1) // max(1, width) for line in lines)
        print("\n".join(lines), flush=True)

    return show


def has_colours() -> bool:
    """Whether what is printed goes to a terminal that shows colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def write(lines: Iterable[str]) -> None:
    """Print lines, with escapes for what the terminal's encoding lacks."""
    coding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(coding, "backslashreplace").decode(coding))
