"""What a device is expected to hold."""

import pytest

from pipelines.models.hardware import tokens_within


@pytest.mark.parametrize(
    ("gib", "per_token", "width", "expected"),
    [(140, 553_000, 576, 32768), (140, 553_000, 1025, 16384), (24, 2_000_000, 576, 4096),
     (140, 553_000, 1024, 32768), (1, 2_000_000, 576, 2048), (28, 2_000_000, 2048, 5120)],
)  # fmt: skip
def test_a_narrow_models_micro_batches_are_larger(
    gib: float, per_token: int, width: int, expected: int
) -> None:
    """35 % of the memory, in whole 1,024 tokens; twice the most where a layer's work is short."""
    assert tokens_within(0.35 * gib * 2**30, per_token, width) == expected
