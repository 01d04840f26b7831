"""Replicated and sharded ranks against one rank in this process, and against Ray Train's."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from ranks import Ranks
from runs import MakeRecipe, trainer_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.checkpoint_contents import stored_parameters
from pipelines.train.metrics import read_metrics
from pipelines.train.steps import completed_steps

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
# The frozen reference runs beside the policy, sharded like it; batches of three pairs leave ranks
# with unequal work.
OPTIONS = (
    "objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_all",
    "mask.adam_eps=1e-4", "train.adam_eps=1e-4",
    "reference.mode=online", "data.test_fraction=0", "data.validation_fraction=0.1",
    "train.max_steps=5", "train.global_batch_size=3",
    "train.micro_batch_tokens=60", "train.validate_every=2", "train.cpus_per_worker=1",
)  # fmt: skip


@pytest.fixture
def make(recipe_in: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    def build(name: str, *overrides: str) -> Recipe:
        recipe = recipe_in(
            tmp_path / name, *OPTIONS, *overrides, paths={"pairs": f"{tmp_path}/pairs"}
        )
        run_stages(recipe, (PREPARE, REFERENCE), lambda line: None)
        return recipe

    return build


def curve(recipe: Recipe) -> torch.Tensor:
    """Loss and gradient norm of every step, then the losses of the validations."""
    records = list(read_metrics(RunStore(f"{recipe.run_dir}/train")))
    steps = [value for r in records if "kind" not in r for value in (r["loss"], r["grad_norm"])]
    return torch.tensor(
        steps + [r["validation/loss"] for r in records if r.get("kind") == "validation"],
        dtype=torch.float64,
    )


def alone(recipe: Recipe) -> Recipe:
    trainer_of(recipe).run(lambda metrics: None)
    return recipe


def published(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The model's tensors and the masks'."""
    files = ("model/model.safetensors", "masks/masks.safetensors")
    return {
        f"{file}: {key}": tensor
        for file in files
        for key, tensor in load_file(f"{recipe.run_dir}/train/{file}").items()
    }


def test_sharded_and_replicated_ranks_do_what_one_rank_does(make: MakeRecipe, ranks: Ranks) -> None:
    """Losses, gradient norms, validations and the published tensors; a single pair per step
    leaves one rank without work. Ray Train's two workers arrive at the same bits.
    """
    one = alone(make("one"))
    single = alone(make("single", "train.global_batch_size=1"))
    for name, expected, options in (
        ("ddp", one, ("train.strategy=ddp",)),
        ("fsdp", one, ("train.strategy=fsdp",)),
        ("fsdp-checkpointed", one, ("train.strategy=fsdp", "train.gradient_checkpointing=true")),
        ("ddp-single", single, ("train.strategy=ddp", "train.global_batch_size=1")),
        ("fsdp-single", single, ("train.strategy=fsdp", "train.global_batch_size=1")),
    ):
        found = make(name, "train.num_workers=2", *options)
        ranks.train(found)
        torch.testing.assert_close(
            curve(found),
            curve(expected),
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )
        tensors, wanted = published(found), published(expected)
        assert tensors.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(
                tensors[key],
                wanted[key],
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, name=name, key=key: f"{name}: {key}: {text}",
            )
        if name == "fsdp":
            under_ray = make("ray", "train.num_workers=2", *options)
            TRAIN.run(Run(under_ray), print, True)
            assert torch.equal(curve(under_ray), curve(found))
            again = published(under_ray)
            assert again.keys() == tensors.keys()
            assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert not torch.allclose(curve(one)[:8], curve(single)[:8], rtol=1e-3), "other pairs must show"


def test_adapters_go_on_with_another_number_of_ranks(
    make: MakeRecipe, model_dir: Path, ranks: Ranks
) -> None:
    """One rank's checkpoint is continued by two, replicated and sharded, as by itself, to the
    same adapters; and two ranks' by one.
    """
    lora = ("train.lora.rank=4", "train.learning_rate=1e-2", "train.checkpoint_every=2")
    whole = alone(make("whole", *lora))
    for name, strategy in (("ddp", "train.strategy=ddp"), ("fsdp", "train.strategy=fsdp")):
        started = stopped(make(name, *lora), at=2)
        found = make(name, *lora, "train.num_workers=2", strategy)
        ranks.train(found)
        folder = Path(found.run_dir) / "train" / "checkpoints" / "step-00000005"
        files = [load_file(file) for file in sorted(folder.glob("shard-*"))]
        assert len(files) == 2 and started == 2
        assert {
            name for file in files for name in file if "lora_" not in name and "/masks." not in name
        } == set()
        torch.testing.assert_close(
            curve(found),
            curve(whole),
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )
        torch.testing.assert_close(
            logits(found, model_dir), logits(whole, model_dir), rtol=1e-4, atol=1e-4
        )
        shutil.rmtree(Path(found.run_dir) / "train" / "model")
        again = trainer_of(make(name, *lora))
        tensors = {
            key: tensor
            for file in files
            for key, tensor in file.items()
            if key.startswith("weights/")
        }
        held = stored_parameters(again.model)
        assert again.step == 5 and {f"weights/{key}" for key in held} == tensors.keys()
        assert all(
            torch.equal(parameter, tensors[f"weights/{key}"]) for key, parameter in held.items()
        )


def logits(recipe: Recipe, base: Path) -> torch.Tensor:
    """Of the published adapters on their base."""
    ids = AutoTokenizer.from_pretrained(base)("The plot was", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, f"{recipe.run_dir}/train/model")(ids).logits


def stopped(recipe: Recipe, at: int) -> int:
    """One rank's run that dies once the checkpoint of step `at` is committed; returns the step
    of the newest checkpoint.
    """
    trainer = trainer_of(recipe)

    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == at and "checkpoint_path" in metrics:
            assert trainer.checkpoints.failure(wait=True) is None
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.run(report)
    trainer.close()
    return max(completed_steps(trainer.store))
