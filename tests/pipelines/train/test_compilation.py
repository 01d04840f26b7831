"""What is compiled in a training: how often, and who finds it afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_here, train_here
from torch._inductor.utils import fresh_cache

from pipelines.commands.stages import PREPARE, REFERENCE
from pipelines.models.hardware import compile_forecast
from pipelines.recipe.schema import Recipe
from pipelines.storage.store import RunStore

MakeRecipe = Callable[..., Recipe]
COMPILED = (
    "train.compile=true",
    "train.max_steps=2",
    "train.micro_batch_tokens=400",
    "data.validation_fraction=0.2",
)


def trained(recipe: Recipe) -> dict[str, Any]:
    """The last step's record of a training by a process that has compiled nothing, and finds
    nothing in the machine's caches.
    """
    torch._dynamo.reset()
    with fresh_cache():
        return train_here(recipe)["counts"]["final"]


@pytest.mark.slow
def test_a_training_compiles_twice_and_its_successors_never(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Rows of many shapes, and a validation without gradients. The second run shares the pairs,
    as a trial does; the third finds a file that somebody else has signed.
    """
    first = make_recipe(*COMPILED)
    run_here(first, (PREPARE, REFERENCE))
    found = trained(first)
    assert found["compilations"] <= 2
    assert found["compiled_parts"] == 3  # a forward and a backward; a forward without gradient
    shared = [f"paths.{name}={first.run_dir}/{name}" for name in ("pairs", "reference")]
    second = make_recipe(*COMPILED, *shared, run_dir=tmp_path / "second")
    again = trained(second)
    assert (again["compiled_parts"], again["loss"]) == (0, found["loss"])
    assert again["compiled_parts_found"] == 3
    store = RunStore(f"{first.run_dir}/compiled")
    (name,) = store.names()
    data = store.read_bytes(name)
    store.write_bytes(name, bytes([data[0] ^ 1]) + data[1:])
    third = make_recipe(*COMPILED, *shared, run_dir=tmp_path / "third")
    assert trained(third)["compiled_parts"] == 3


def test_layers_are_compiled_where_that_is_forecast_to_pay() -> None:
    """Pythia-1.4B on an H100 at 396 TFLOP/s: 1,494 and 60,000 pairs of 250 tokens.

    60,000 pairs: 6 * 1.4e9 * 250 * 6e4 = 1.26e17 FLOP are 318 s, 0.3 of them 95 s; and 938
    micro-batches of 24 layers save 34 s.
    """

    def forecast(pairs: int) -> Any:
        return compile_forecast(6 * 1.4e9 * 250 * pairs, pairs / 64, 24, 396.0, 1)

    assert forecast(60_000).saved_seconds == pytest.approx(95 + 34, abs=1)
    assert forecast(60_000).pays and not forecast(1_494).pays
