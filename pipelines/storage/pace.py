"""How fast a piece of work goes once it goes: its start-up is no part of the rate."""

import time


class Pace:
    """Units per second from the first that was done here.

    Args:
        done: units that were done before.
    """

    def __init__(self, done: int = 0) -> None:
        self._before = done
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def update(self, done: int, now: float | None = None) -> None:
        """So many units are done now, those of before included.

        Args:
            now: seconds of any clock that does not go back; the process's by default.
        """
        now = time.monotonic() if now is None else now
        if done > (self._last[0] if self._last else self._before):
            self._last = (done, now)
            self._first = self._first or self._last

    def rate(self) -> float | None:
        """Units per second; None until two moments are known."""
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return None
        return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])


def shown_seconds(seconds: float) -> str:
    """A length of time as people say it: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    if seconds < 99.5:
        return (
            f"{seconds:.0f} s" if seconds >= 9.95 or seconds == int(seconds) else f"{seconds:.1f} s"
        )
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def progress_text(done: int, total: int, unit: str, rate: float | None) -> str:
    """How far a piece of work has come, its rate and the time that is left."""
    text = f"{unit} {done} of {total}"
    if not rate:
        return text
    fast = f"{rate:.3g} {unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"
    left = f", {shown_seconds((total - done) / rate)} left" if done < total else ""
    return f"{text}, {fast}{left}"
