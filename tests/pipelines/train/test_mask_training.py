"""Masks in training: frozen ones, and learned ones that are held, saved, resumed and reported."""

from pathlib import Path
from typing import Any

import pytest
from feature_world import World, log, stop_at_a_checkpoint, trained
from runs import MakeRecipe, trainer_of

from pipelines.commands.run import run_stages
from pipelines.commands.stages import TRAIN
from pipelines.recipe.run_paths import RunPaths
from pipelines.train.metrics import read_metrics
from sparsepo import LearnedMasks

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("mask", ["random", "external", "activation"])
def test_frozen_masks_keep_the_heaviest_tokens(
    mask: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Half of the tokens of every response, rounded up, so slightly under half are zero."""
    options = (
        "objective.name=mapo",
        f"mask.kind={mask}",
        "mask.keep_fraction=0.5",
        "mask.terms=reward",
        "train.max_steps=1",
    )
    recipe = recipe_in(tmp_path, *options, *world.options, paths=world.paths)
    trained(recipe)
    (record,) = log(recipe)
    assert 0.4 < record["masks/reward_zero_fraction"] <= 0.51
    assert record["masks/kl_zero_fraction"] == 0
    assert record["masks/kl_mean"] == 1


def test_the_optimizer_lets_a_masks_maps_decay_alone(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """The policy has its own rate and decay, a mask's maps its own; its bias none."""
    recipe = recipe_in(
        tmp_path,
        "objective.name=sparsepo",
        "mask.kind=learned",
        "mask.architecture=simple_last",
        "mask.weights=released",
        "mask.weight_decay=0.02",
        "mask.learning_rate=3e-4",
        "train.learning_rate=1e-5",
        "train.weight_decay=0.5",
        *world.options,
        paths=world.paths,
    )
    trainer = trainer_of(recipe)
    names = {id(p): name for name, p in trainer.model.masks.named_parameters()}
    found = {
        (group["base_lr"], group["weight_decay"], group["eps"]): {
            names.get(id(p), "policy").rpartition(".")[2] for p in group["params"]
        }
        for group in trainer.optimizer.param_groups
    }
    assert found == {
        (1e-5, 0.5, 1e-8): {"policy"},
        (3e-4, 0.02, 1e-6): {"weight"},
        (3e-4, 0.0, 1e-6): {"bias"},
    }


def test_mask_dropout_resumes_and_is_off_in_validation(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Dropout changes training's masks, the same way in every run, and never validation's."""
    base = (
        "objective.name=sparsepo",
        "mask.kind=learned",
        "mask.architecture=simple_last",
        "mask.weights=released",
        "train.max_steps=2",
        *world.options,
    )

    def run(name: str, *options: str) -> list[dict[str, Any]]:
        recipe = recipe_in(tmp_path / name, *base, *options, paths=world.paths)
        trained(recipe)
        return list(read_metrics(RunPaths.of(recipe).train))

    plain, one, two = run("plain"), run("one", "mask.dropout=0.5"), run("two", "mask.dropout=0.5")
    assert [r.get("masks/reward_mean") for r in one] == [r.get("masks/reward_mean") for r in two]
    assert one[1]["masks/reward_mean"] != plain[1]["masks/reward_mean"]
    assert one[0]["validation/masks/reward_mean"] == plain[0]["validation/masks/reward_mean"]


@pytest.mark.slow
def test_target_sparsity_is_held_saved_and_resumed(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Under an L1 penalty that kills released weights without it; a run stopped at step 8
    continues with the same shift.
    """
    base = (
        "objective.name=sparsepo", "objective.l1_reward=0.1", "objective.l1_kl=0.1",
        "mask.kind=learned", "mask.architecture=simple_last",
        "mask.sharing=independent", "train.epochs=30", "train.max_steps=60",
        "train.global_batch_size=64", "train.checkpoint_every=8",
        *world.options,
    )  # fmt: skip
    held = recipe_in(tmp_path / "held", *base, "mask.target_sparsity=0.4", paths=world.paths)
    trained(held)
    for term in ("reward", "kl"):
        # This world's few dozen token types move as blocks, so single steps are coarse; finer data
        # is tested in test_masks.
        last = [record[f"masks/{term}_zero_fraction"] for record in log(held)[-30:]]
        assert abs(sum(last) / 30 - 0.4) < 0.05, last
    free = recipe_in(
        tmp_path / "free",
        *base,
        "mask.weights=released",
        "train.max_steps=36",
        paths=world.paths,
    )
    trained(free)
    assert log(free)[-1]["masks/reward_zero_fraction"] > 0.9, (
        "the penalty alone must be strong, or this test shows nothing"
    )

    stopped = recipe_in(
        tmp_path / "stopped",
        *base,
        "mask.target_sparsity=0.4",
        "train.max_steps=16",
        paths=world.paths,
    )
    trainer = trainer_of(stopped)
    stop_at_a_checkpoint(trainer)
    resumed = trainer_of(stopped)
    assert resumed.step == 8
    for name in ("shift", "drift", "window"):
        assert (
            float(getattr(resumed.model.masks.reward, name))
            == float(getattr(trainer.model.masks.reward, name))
            != 0
        )
    resumed.run(lambda metrics: None)
    published = LearnedMasks.from_pretrained(f"{stopped.run_dir}/train/masks")
    assert float(published.reward.shift) == float(resumed.model.masks.reward.shift)  # type: ignore[union-attr]
    assert published.target_sparsity == 0.4


@pytest.mark.slow
def test_a_collapsed_mask_is_reported_with_its_cure(
    recipe_in: MakeRecipe, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While training, on the screen, and in the stage's summary."""
    recipe = recipe_in(
        tmp_path, "objective.name=sparsepo", "objective.l1_reward=1", "mask.kind=learned",
        "mask.architecture=simple_last",
        "mask.sharing=independent", "mask.terms=reward", "mask.weights=released",
        "mask.learning_rate=0.05", "train.epochs=9",
        "train.max_steps=40", "train.checkpoint_every=50",
        *world.options, paths=world.paths,
    )  # fmt: skip
    lines: list[str] = []
    run_stages(recipe, (TRAIN,), lines.append)
    cure = (
        "the reward mask has been zero on more than 99 % of all tokens for 20 steps and hardly "
        "gets a gradient any more: centre the weights (weights='centred'), hold its zeros with "
        "target_sparsity"
    )
    assert cure in "\n".join(lines)
    assert cure in capsys.readouterr().err
    assert (
        sum(
            "kind" in record and record["kind"] == "warning"
            for record in read_metrics(RunPaths.of(recipe).train)
        )
        == 1
    )
