"""Progress bars whose rate, and time left, leave out the start of what does the work."""

from typing import Any

from tqdm import tqdm

from pipelines.storage import Pace, tell_progress


class Bar(tqdm):  # type: ignore[type-arg,misc]
    """A bar of tqdm that counts its rate from the first unit, and tells `status` of it.

    A bar that is disabled tells too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pace, self._told = Pace(kwargs.get("initial", 0)), kwargs.get("initial", 0)
        self._unit = kwargs.get("unit", "it")  # a disabled bar keeps none
        super().__init__(*args, **kwargs)

    def update(self, n: float | None = 1) -> bool | None:
        self.came_to(int(self._told + (n or 0)))
        shown: bool | None = super().update(n)
        return shown

    def came_to(self, done: int) -> None:
        """So many units are done; for whoever sets `n` itself."""
        self._told = done
        self._pace.update(done)
        if self.total:
            tell_progress(done, int(self.total), self._unit, self._pace)

    def starts_at(self, done: int) -> None:
        """So many units were done before this command."""
        self._pace, self._told, self.n = Pace(done), done, done

    @property
    def format_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().format_dict
        return {**found, "rate": self._pace.rate() or 0}  # None would count from the start
