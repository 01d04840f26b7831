"""Which shards are read again."""

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.pairs.latest_shards import LatestShards

Shard = npt.NDArray[np.int8]


@pytest.mark.parametrize(
    ("most_bytes", "read"),
    [
        (400, [0, 1, 2, 3]),  # all four fit
        (399, [0, 1, 2, 3, 0, 1, 2, 3]),  # three do, and each round drives out who comes next
        (0, [0, 1, 2, 3, 0, 1, 2, 3]),  # two are kept whatever they take
    ],
)
def test_shards_are_kept_while_they_fit(most_bytes: int, read: list[int]) -> None:
    """Of 100 bytes each, asked for in turn, each twice in a row."""
    loaded: list[int] = []

    def load(split: str, number: int) -> Shard:
        loaded.append(number)
        return np.full(100, number, np.int8)

    shards = LatestShards(load, at_least=2, most_bytes=most_bytes)
    for number in (0, 1, 2, 3) * 2:
        assert shards("train", number)[0] == number
        assert shards("train", number)[0] == number
    assert loaded == read


def test_a_shard_that_was_asked_for_again_stays_longest() -> None:
    loaded: list[tuple[str, int]] = []

    def load(split: str, number: int) -> Shard:
        loaded.append((split, number))
        return np.zeros(100, np.int8)

    shards = LatestShards(load, at_least=2, most_bytes=0)
    for split, number in (("a", 0), ("b", 0), ("a", 0), ("a", 1), ("a", 0), ("b", 0)):
        shards(split, number)
    assert loaded == [("a", 0), ("b", 0), ("a", 1), ("b", 0)]
