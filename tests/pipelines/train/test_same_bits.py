"""On a GPU, a training that was stopped and goes on has the bits of one that was not."""

from pathlib import Path

import pytest
import torch
from feature_world import World, log, prepared, stop_at_a_checkpoint
from runs import CUDA, MakeRecipe, trainer_of
from safetensors.torch import load_file

from pipelines.models.device import sum_in_one_order

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_gpu_adds_in_one_order() -> None:
    """A million numbers to each of two places, again and again."""
    sum_in_one_order(CUDA)
    values = torch.randn(2_000_000, device=CUDA)
    index = torch.arange(2_000_000, device=CUDA) % 2
    sums = [torch.zeros(2, device=CUDA).index_add(0, index, values) for _ in range(20)]
    assert all(torch.equal(one, sums[0]) for one in sums)


@pytest.mark.parametrize("compiles", ["true", "false"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_resumed_training_has_the_same_bits(
    layout: str, compiles: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    found = {}
    for label in ("whole", "resumed"):
        recipe = prepared(
            recipe_in(
                tmp_path / label,
                "objective.name=dpo",
                f"train.layout={layout}",
                f"train.compile={compiles}",
                "train.max_steps=6",
                "train.checkpoint_every=3",
                "train.global_batch_size=16",
                *world.options,
                paths=world.paths,
            )
        )
        if label == "resumed":
            stopped = trainer_of(recipe, CUDA)
            stop_at_a_checkpoint(stopped)
            stopped.close()
            torch._dynamo.reset()
        trainer = trainer_of(recipe, CUDA)
        trainer.run(lambda metrics: None)
        trainer.close()
        model = load_file(tmp_path / label / "train" / "model" / "model.safetensors")
        found[label] = [record["loss"] for record in log(recipe)], model
    losses, weights = zip(*found.values(), strict=True)
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
