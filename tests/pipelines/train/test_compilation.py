"""Where compiling layers is expected to pay."""

from typing import Any

import pytest

from pipelines.models.hardware import compile_forecast


def test_layers_are_compiled_where_that_is_forecast_to_pay() -> None:
    """Pythia-1.4B on an H100 at 396 TFLOP/s: 1,494 and 60,000 pairs of 250 tokens.

    60,000 pairs: 6 * 1.4e9 * 250 * 6e4 = 1.26e17 FLOP are 318 s, 0.3 of them 95 s; and 938
    micro-batches of 24 layers save 34 s.
    """

    def forecast(pairs: int) -> Any:
        return compile_forecast(6 * 1.4e9 * 250 * pairs, pairs / 64, 24, 396.0, 1)

    assert forecast(60_000).saved_seconds == pytest.approx(95 + 34, abs=1)
    assert forecast(60_000).pays and not forecast(1_494).pays
