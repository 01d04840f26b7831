"""What was read of the latest shards, kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

# A batch draws its rows from all shards: one that is not kept is read for nearly every batch. Half
# a GiB is the ids of half a million pairs of HH.
_LOADED_SHARDS, _LOADED_BYTES = 64, 2**29


class Sized(Protocol):
    """Something of so many bytes."""

    @property
    def nbytes(self) -> int: ...


Shard = TypeVar("Shard", bound=Sized)


class LatestShards(Generic[Shard]):
    """What `load` gives for a shard of a split, kept for the latest ones: so many at least, and
    more while they have so few bytes together. Threads may ask.
    """

    def __init__(
        self,
        load: Callable[[str, int], Shard],
        at_least: int = _LOADED_SHARDS,
        most_bytes: int = _LOADED_BYTES,
    ) -> None:
        self._load, self._at_least, self._most_bytes = load, at_least, most_bytes
        self._found: OrderedDict[tuple[str, int], Shard] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, split: str, number: int) -> Shard:
        key = split, number
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        loaded = self._load(split, number)
        with self._lock:
            if key not in self._found:  # else another thread was there first
                self._found[key] = loaded
                self._bytes += loaded.nbytes
            while len(self._found) > self._at_least and self._bytes > self._most_bytes:
                self._bytes -= self._found.popitem(last=False)[1].nbytes
        return loaded
