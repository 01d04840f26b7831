"""Every objective and producer through prepare, reference and train: features arrive, and how the
batch is cut does not show.
"""

import math
import warnings
from pathlib import Path

import pytest
import torch
from feature_world import COUPLED, LAST_LAYER, World, log, prepared, stop_at_a_checkpoint, trained
from matrices import members
from pair_records import PLAIN
from ranks import Ranks
from runs import CUDA, MakeRecipe, trainer_of

from pipelines.recipe.schema import Recipe
from sparsepo.masks import MASKS

pytestmark = pytest.mark.usefixtures("ray_cluster")
# `discriminator` reads one that a command of its own trains: test_packaged_recipes.py.
PRODUCERS = [
    kind for kind in MASKS if kind not in ("none", "activation", "learned", "discriminator")
]

CASES = {
    **{name: [] for name in PLAIN if name not in ("sft", "rpo")},
    "mapo": ["mask.kind=activation"],
    "sparsepo": LAST_LAYER,
    "tis_dpo external": ["objective.source=external"],
    "weighted learned": [*LAST_LAYER, "mask.terms=reward", "objective.l1_reward=0.01"],
    "weighted all": [
        *LAST_LAYER, "objective.alpha=0.5", "objective.gamma=0.1", "objective.reduction=mean_kept",
        "objective.log_ratio_clamp=[-1, 1.5]",
    ],
    "weighted free": [
        "mask.kind=confidence", "objective.reference_free=true", "objective.reduction=mean_kept",
    ],
    **{f"weighted {kind}": [f"mask.kind={kind}"] for kind in PRODUCERS},
}  # fmt: skip

# One of each kind: a margin, another loss, scores, no reference, KL, frozen and learned masks,
# scorers, a coupled objective, weights of the step, its states, signed weights, the data's.
QUICK = (
    "dpo", "ipo", "odpo", "orpo", "tdpo2", "mapo", "sparsepo", "tis_dpo", "beta_dpo",
    "weighted transport", "weighted token_reward", "weighted external",
)  # fmt: skip
# Losses while the policy is the reference.
UNFIXED = (
    "simpo", "odpo", "orpo", "cpo", "alphapo", "wpo", "weighted free", "weighted learned",
)  # fmt: skip

FIRST: dict[str, float | None] = {"ipo": 25.0, **dict.fromkeys(UNFIXED)}
FIRST["weighted all"] = math.log(1 + math.exp(0.1))


@pytest.mark.parametrize("case", members(CASES, QUICK))
def test_every_objective_trains_and_micro_batches_do_not_show(
    case: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    name = case.partition(" ")[0]
    options = [f"objective.name={name}", *CASES[case], "train.max_steps=3"]
    options += ["train.global_batch_size=8", *world.options, *world.scorers]
    losses = []
    for label, budget in (("many", 1), ("one", 100_000)):
        recipe = recipe_in(
            tmp_path / label,
            *options,
            f"train.micro_batch_tokens={budget}",
            paths=world.paths,
        )
        trained(prepared(recipe) if label == "many" else recipe)
        losses.append(torch.tensor([record["loss"] for record in log(recipe)]))
    assert torch.isfinite(losses[0]).all() and len(losses[0]) == 3
    assert float(((losses[0] - losses[1]) / losses[0]).abs().max()) < 3e-5
    first = FIRST.get(case, math.log(2))
    if first is not None:
        assert float(losses[0][0]) == pytest.approx(first, abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_every_objective_adds_in_one_order_on_a_gpu(
    case: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Torch refuses each sum of which it knows no order."""
    options = [f"objective.name={case.partition(' ')[0]}", *CASES[case], "train.max_steps=2"]
    options += ["train.global_batch_size=8", "train.layout=padded", *world.options]
    recipe = prepared(recipe_in(tmp_path, *options, *world.scorers, paths=world.paths))
    trainer = trainer_of(recipe, CUDA)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deterministic")
        trainer.run(lambda metrics: None)
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    trainer.close()


@pytest.mark.parametrize("case", members(COUPLED, ("beta_dpo", "sum with a memory")))
def test_coupled_pairs_do_not_depend_on_micro_batches(
    case: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """A batch of 7 pairs in one piece, or in 7: loss and gradient norm agree; validation is cut
    like training.
    """
    base = (*COUPLED[case], "train.max_steps=4", "train.validate_every=2", *world.options)
    found = {}
    for label, budget in (("seven", 1), ("one", 100_000)):
        recipe = recipe_in(
            tmp_path / label,
            *base,
            "train.global_batch_size=7",
            f"train.micro_batch_tokens={budget}",
            paths=world.paths,
        )
        trainer = trained(recipe)
        assert len(trainer.loader.cuts("train", trainer.sampler.pair_indices(0))) == (
            7 if label == "seven" else 1
        )
        validation = [r["validation/loss"] for r in log(recipe, "validation")]
        found[label] = coupled_losses(recipe), torch.tensor(validation)
    for one, seven in zip(found["one"], found["seven"], strict=True):
        assert float(((one - seven) / one).abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rpo", "beta_dpo", "tokens"])
def test_coupled_pairs_do_not_depend_on_ranks(
    case: str, recipe_in: MakeRecipe, world: World, ranks: Ranks, tmp_path: Path
) -> None:
    """One rank and two see the same global batch of 7; a different batch size shows (negative
    control).
    """
    base = (*COUPLED[case], "train.max_steps=4", *world.options)

    def losses(label: str, workers: int, size: int) -> torch.Tensor:
        recipe = recipe_in(
            tmp_path / label,
            *base,
            f"train.num_workers={workers}",
            f"train.global_batch_size={size}",
            paths=world.paths,
        )
        if workers == 1:
            trained(recipe)
        else:
            ranks.train(prepared(recipe))
        return coupled_losses(recipe)

    one, two, other = losses("one", 1, 7), losses("two", 2, 7), losses("other", 1, 8)
    assert float(((one - two) / one).abs().max()) < 1e-4
    assert float(((one - other) / one).abs().max()) > 1e-3


REMEMBERED = {
    "dpo_shift": "weights/rejected",
    "beta_dpo": "beta/batch",
    "sum": "of/1_beta_dpo/beta/batch",
}


@pytest.mark.parametrize("name", REMEMBERED)
def test_what_an_objective_remembers_survives_a_resume(
    name: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """A run that was stopped at step 4 of 6 gives the same bits as one that was not: lambda follows
    the step, beta the average that lies in the checkpoint. Validation is at lambda_end, and at beta
    itself.
    """
    options = (f"objective.name={name}", "objective.beta=2")
    base = (
        *(COUPLED["sum with a memory"] if name == "sum" else options), "train.max_steps=6",
        "train.global_batch_size=7", "train.checkpoint_every=4", "train.validate_every=6",
        "train.warmup_fraction=0", *world.options,
    )  # fmt: skip
    whole = recipe_in(tmp_path / "whole", *base, paths=world.paths)
    expected = trained(whole)
    stopped = recipe_in(tmp_path / "stopped", *base, paths=world.paths)
    trainer = trainer_of(stopped)
    stop_at_a_checkpoint(trainer)
    resumed = trainer_of(stopped)
    assert resumed.step == 4
    resumed.run(lambda metrics: None)
    assert resumed.objective.state() == expected.objective.state()
    key = REMEMBERED[name]
    found = [[(r["loss"], r["grad_norm"], r[key]) for r in log(one)] for one in (stopped, whole)]
    assert found[0] == found[1]
    values = [value for _, _, value in found[1]]
    validation = [record[f"validation/{key}"] for record in log(whole, "validation")]
    if name == "dpo_shift":
        assert values == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        assert validation == [1.0, 1.0]
    else:
        assert len(set(values)) == 6
        assert validation == [2.0, 2.0]
        kept = [record["beta/kept_fraction"] for record in log(whole)]
        assert kept == pytest.approx([5 / 7] * 6)


@pytest.mark.parametrize("name", ["tis_dpo", "mapo", "sparsepo"])
def test_named_objectives_train_as_their_spelling_does(
    name: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """To the same bits, and with the mask's learning where it learns."""
    masks = {"mapo": ["mask.kind=activation"], "sparsepo": [*LAST_LAYER, "objective.l1_kl=0.01"]}
    spelled = {
        "tis_dpo": ["mask.kind=exp_ratio", "mask.terms=reward"],
        "mapo": ["objective.alpha=1", *masks["mapo"]],
        "sparsepo": ["objective.alpha=1", *masks["sparsepo"]],
    }
    found = []
    for objective, options in ((name, masks.get(name, [])), ("weighted", spelled[name])):
        recipe = recipe_in(
            tmp_path / objective, f"objective.name={objective}", *options, "train.max_steps=4",
            *world.options, *world.scorers, paths=world.paths,
        )  # fmt: skip
        trained(recipe)
        records = log(recipe)
        found.append([(r["loss"], r["grad_norm"], r["rewards/margins"]) for r in records])
    assert found[0] == found[1] and len(set(found[0])) == 4


def coupled_losses(recipe: Recipe) -> torch.Tensor:
    return torch.tensor([[record["loss"], record["grad_norm"]] for record in log(recipe)])
