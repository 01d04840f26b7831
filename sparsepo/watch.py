"""What the watches over a training share: the last steps' numbers, and that each warns once."""

from collections.abc import Mapping, Sequence
from typing import Any


class WindowWatch:
    """A watch over a window of steps; subclasses observe their numbers and warn once.

    Args:
        state: what `state` returned for an earlier watch, to continue after a restart.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._window: list[Sequence[float]] = list((state or {}).get("window", ()))
        self._has_told = bool((state or {}).get("has_told", False))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"window": self._window, "has_told": self._has_told}

    def _fills(self, size: int, *values: float) -> bool:
        """Take one step's numbers; whether there are `size` steps of them now."""
        self._window = [*self._window, values][-size:]
        return len(self._window) == size

    def _tell(self, warning: str) -> list[str]:
        self._window, self._has_told = [], True
        return [warning]
