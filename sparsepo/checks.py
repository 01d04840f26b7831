"""Conditions on tensors: read at once, or later by a loop that has no time to wait for a device."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """A condition that is known on a device.

    Attributes:
        holds: bool [], on the device. message: what to say where it does not hold; it reads the
            device.
    """

    holds: Tensor
    message: Callable[[], str]


_LATER: ContextVar[list[Check] | None] = ContextVar("checks", default=None)


@contextlib.contextmanager
def checks_read_later() -> Iterator[list[Check]]:
    """Have objectives add their checks to this list instead of waiting for the device.

    Whoever takes the list raises ValueError with the message of a check that does not hold.
    Losses and gradients mean nothing then.
    """
    found: list[Check] = []
    token = _LATER.set(found)
    try:
        yield found
    finally:
        _LATER.reset(token)


def require(holds: Tensor, message: Callable[[], str]) -> None:
    """ValueError with the message if a condition does not hold; later if checks are read later."""
    later = _LATER.get()
    if later is not None:
        later.append(Check(holds, message))
    elif not bool(holds):
        raise ValueError(message())
