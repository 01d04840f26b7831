"""Every objective and mask through prepare, reference and train: features arrive, cuts of the
batch do not show.
"""

import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from by_hand import accept_files
from pair_records import PLAIN
from ranks import Ranks
from runs import CPU, MakeRecipe, silent, trainer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
)

from pipelines.commands.plan import run_plan
from pipelines.commands.quickstart_world import write_untrained_model
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.errors import Failure, StageFailed, UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import packaged
from pipelines.recipe.run_paths import RunPaths, failure_files
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.features import feature_source
from pipelines.reference.stage import run_facts
from pipelines.storage.records import read_record
from pipelines.train.metrics import read_metrics
from pipelines.train.trainer import Trainer
from sparsepo import FallingChosenWatch, LearnedMasks, RunawayWatch
from sparsepo.batching.layouts import padded_layout
from sparsepo.masks import MASKS

pytestmark = pytest.mark.usefixtures("ray_cluster")


def prepared(recipe: Recipe) -> Recipe:
    run_stages(recipe, (PREPARE, REFERENCE), silent)
    return recipe


def trained(recipe: Recipe, needs_store: bool = True) -> Trainer:
    trainer = trainer_of(prepared(recipe) if needs_store else recipe)
    trainer.run(lambda metrics: None)
    return trainer


def stop_at_a_checkpoint(trainer: Trainer) -> None:
    """Train until the first checkpoint is written, then end as one that is interrupted."""

    def stop(metrics: dict[str, Any]) -> None:
        assert trainer.checkpoints.failure(wait=True) is None
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.run(stop)


def steps(recipe: Recipe) -> list[dict[str, Any]]:
    return [r for r in read_metrics(RunPaths.of(recipe).train) if "kind" not in r]


@dataclass(frozen=True)
class World:
    """Pairs with scores and weights, two scorers, and one store that holds every feature of them.

    Attributes:
        source: the rows. scorers: options that name them. options: of every recipe on this store.
            paths: where it is.
    """

    source: Path
    scorers: tuple[str, ...]
    options: tuple[str, ...]
    paths: dict[str, str]


@pytest.fixture(scope="module")
def world(
    rows: list[dict[str, str]],
    model_dir: Path,
    recipe_in: MakeRecipe,
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    folder = tmp_path_factory.mktemp("world")
    scorers = perturbed_copies(folder, model_dir)
    source = write_scored(folder / "scored.jsonl", rows, model_dir)
    names = {
        "chosen_score": "good",
        "rejected_score": "bad",
        "chosen_weights": "chosen_w",
        "rejected_weights": "rejected_w",
    }
    columns = tuple(f"data.sources[0].columns.{key}={value}" for key, value in names.items())
    options = (
        f"data.sources[0].path={source}",
        *columns,
        "data.min_gap=0.01",
        "data.validation_fraction=0.1",
    )
    paths = {"pairs": str(folder / "pairs"), "reference": str(folder / "reference")}
    features = (
        "reference_logps, reference_hidden, reference_layers, activation_mask, scorer_log_ratios, "
        "prompt_embedding, reference_entropy, saliency, positive_logps, negative_logps"
    )
    everything = ("objective.name=mapo", "mask.kind=activation", f"reference.features=[{features}]")
    prepared(recipe_in(folder / "run", *options, *everything, *scorers, paths=paths))
    return World(source, scorers, options, paths)


def packaged_objective(recipe: str) -> dict[str, Any]:
    """The section `objective` of a packaged recipe; empty if there is none of that name."""
    file = packaged("recipe").get(recipe)
    found: dict[str, Any] = yaml.safe_load(file.read_text())["objective"] if file else {}
    return found


def write_scored(path: Path, rows: list[dict[str, str]], model_dir: Path) -> Path:
    """The pairs with scores and with one weight per response token; every other row leaves the
    end token's weight out.
    """
    tokenizer, rng = AutoTokenizer.from_pretrained(model_dir), random.Random(1)
    with path.open("w") as file:
        for number, row in enumerate(rows):
            extra: dict[str, Any] = {"good": 1 + rng.random(), "bad": rng.random() * 0.5}
            for side in ("chosen", "rejected"):
                count = len(tokenizer(row[side], add_special_tokens=False).input_ids) + number % 2
                extra[f"{side}_w"] = [round(rng.random(), 3) for _ in range(count)]
            file.write(json.dumps({**row, **extra}) + "\n")
    return path


def perturbed_copies(folder: Path, model_dir: Path) -> tuple[str, ...]:
    chosen = []
    for seed, key in enumerate(("positive_scorer", "negative_scorer")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder / key)
        AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder / key)
        chosen.append(f"model.{key}={folder / key}")
    return tuple(chosen)


# Producers that are not another objective's mask in a case of its own.
PRODUCERS = [kind for kind in MASKS if kind not in ("none", "activation", "learned")]
LAST_LAYER = ["mask.kind=learned", "mask.architecture=ml_last"]
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
# Losses while the policy is the reference.
UNFIXED = (
    "simpo", "odpo", "orpo", "cpo", "alphapo", "wpo", "weighted free", "weighted learned",
)  # fmt: skip
FIRST: dict[str, float | None] = {"ipo": 25.0, **dict.fromkeys(UNFIXED)}
FIRST["weighted all"] = math.log(1 + math.exp(0.1))


@pytest.mark.parametrize("case", CASES)
def test_every_objective_trains_and_micro_batches_do_not_show(
    case: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    name = case.partition(" ")[0]
    options = [f"objective.name={name}", *CASES[case], "train.max_steps=3"]
    options += [*world.options, *world.scorers]
    losses = []
    for label, budget in (("many", 1), ("one", 100_000)):
        recipe = recipe_in(
            tmp_path / label,
            *options,
            f"train.micro_batch_tokens={budget}",
            paths=world.paths,
        )
        trained(recipe)
        losses.append(torch.tensor([record["loss"] for record in steps(recipe)]))
    assert torch.isfinite(losses[0]).all() and len(losses[0]) == 3
    assert float(((losses[0] - losses[1]) / losses[0]).abs().max()) < 3e-5
    first = FIRST.get(case, math.log(2))
    if first is not None:
        assert float(losses[0][0]) == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["loss=sigmoid_norm"], math.log(2)),
        (["loss=hinge"], 1),
        (["loss=robust", "label_smoothing=0.1"], math.log(2)),
        (["loss=exo", "label_smoothing=0.1"], -math.log(2) - math.log(0.9 * 0.1) / 2),
        (["loss=apo_zero"], 1),
        (["loss=apo_down"], 1),
        (["loss=bco_pair"], 2 * math.log(2)),
        (["loss=nca"], 2 * math.log(2)),
        (["loss=sppo"], 50),
        (["loss=discopop"], math.log(2) / 2 + 0.5),
        (["divergence=forward"], math.log(2)),
        (["divergence=js"], math.log(2)),
        (["divergence=alpha", "divergence_alpha=0.3"], math.log(2)),
    ],
)
def test_every_loss_of_dpo_trains(
    options: list[str], first: float, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """In the packaged recipe's place of them, on the same pairs in every step: from its value at
    the reference to a smaller one.
    """
    section = packaged_objective("hh-dpo-losses") | {"loss": "sigmoid"}
    given = [f"objective.{option}" for option in options]
    recipe = recipe_in(
        tmp_path,
        "train.epochs=3",
        "train.warmup_fraction=0",
        "train.learning_rate=1e-4",
        "train.global_batch_size=200",
        *given,
        *world.options,
        objective=section,
        paths=world.paths,
    )
    trained(recipe)
    losses = [record["loss"] for record in steps(recipe)]
    assert losses[0] == pytest.approx(first, rel=1e-5)
    assert losses[0] > losses[1] > losses[2]


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
    found = [[(r["loss"], r["grad_norm"], r[key]) for r in steps(one)] for one in (stopped, whole)]
    assert found[0] == found[1]
    values = [value for _, _, value in found[1]]
    validation = [
        record[f"validation/{key}"]
        for record in read_metrics(RunPaths.of(whole).train)
        if record.get("kind") == "validation"
    ]
    if name == "dpo_shift":
        assert values == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        assert validation == [1.0, 1.0]
    else:
        assert len(set(values)) == 6
        assert validation == [2.0, 2.0]
        kept = [record["beta/kept_fraction"] for record in steps(whole)]
        assert kept == pytest.approx([5 / 7] * 6)


@pytest.mark.parametrize("name", ["dpo", "tdpo1", "tdpo2", "mapo", "sparsepo"])
def test_bfloat16_starts_at_ln2(
    name: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Policy and reference in bfloat16 on the same micro-batches, to 1e-3. (DPOP multiplies what
    is left of rounding by 50.)
    """
    masks = {
        "mapo": ["mask.kind=activation"],
        "sparsepo": ["mask.kind=learned", "mask.architecture=simple_all"],
    }.get(name, [])
    precision = (
        "train.precision=bfloat16",
        "reference.dtype=bfloat16",
        "reference.mode=online",
        "train.max_steps=1",
    )
    recipe = recipe_in(
        tmp_path,
        f"objective.name={name}",
        *masks,
        *precision,
        *world.options,
        paths={"pairs": world.paths["pairs"]},
    )
    trained(recipe, needs_store=False)
    assert steps(recipe)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_scores_and_weights_reach_training(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Values of the source file, truncated and completed with 1 for a missing end token; ODPO's
    first loss by hand.
    """
    recipe = recipe_in(
        tmp_path, "objective.name=odpo", "train.max_steps=1", *world.options, paths=world.paths
    )
    sampler = trained(recipe).sampler
    pairs = open_pairs(Run(recipe))
    source = {row["chosen"]: row for row in map(json.loads, world.source.read_text().splitlines())}
    gaps, columns = [], ("chosen", "chosen_score", "rejected_score", "chosen_weights", "chosen_ids")
    for chosen, good, bad, weights, ids in pairs.values(
        "train", range(pairs.num_rows("train")), columns
    ):
        original = source[chosen]
        assert (good, bad) == (original["good"], original["bad"])
        assert weights == pytest.approx([*original["chosen_w"], 1.0][: len(ids)])
        gaps.append(good - bad)
    batch = sampler.pair_indices(0)
    by_hand = sum(math.log(1 + math.exp(math.log(gaps[i]))) for i in batch) / len(batch)
    assert steps(recipe)[0]["loss"] == pytest.approx(by_hand, abs=1e-5)


def test_rows_with_weights_that_do_not_fit_are_dropped_with_the_reason(
    make_recipe: MakeRecipe, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "weights.jsonl"
    bad: list[Any] = [[1.0], [-1.0] * 3, "x", [float("nan")]]
    path.write_text(
        "".join(
            json.dumps({**row, "c": bad[i % 4], "r": bad[i % 4]}) + "\n"
            for i, row in enumerate(rows)
        )
    )
    columns = (
        "data.sources[0].columns.chosen_weights=c",
        "data.sources[0].columns.rejected_weights=r",
    )
    recipe = make_recipe(
        "objective.name=mapo", "mask.kind=external", f"data.sources[0].path={path}", *columns
    )
    with pytest.raises(UserError, match="no usable training pair") as caught:
        run_stages(recipe, (PREPARE,), silent)
    for reason in (
        "1 token weights for a response of",
        "negative or not finite",
        "c is not a list of numbers",
    ):
        assert reason in str(caught.value)


def test_scorers_of_another_vocabulary_are_refused(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    write_untrained_model(tmp_path / "other", ["quite different words"], seed=1)
    recipe = make_recipe(
        "objective.name=tis_dpo",
        f"model.positive_scorer={model_dir}",
        f"model.negative_scorer={tmp_path / 'other'}",
    )
    with pytest.raises(
        UserError, match="model.negative_scorer = .*other: its tokenizer has another vocabulary"
    ):
        run_stages(recipe, (PREPARE,), silent)
    assert not Path(recipe.run_dir).exists()


def test_stored_scorer_ratios_are_the_models_own(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """Against plain transformers, one unpadded response at a time; other scorers in the same
    place are refused.
    """
    recipe = recipe_in(
        tmp_path, "objective.name=tis_dpo", *world.options, *world.scorers, paths=world.paths
    )
    pairs = open_pairs(Run(recipe))
    rows = [7, 2]
    tokenised = pairs.pairs("train", rows)
    found = (
        feature_source(run_facts(Run(recipe)), pairs, CPU)
        .features("train", rows, padded_layout(tokenised))
        .scorer_log_ratios
    )
    folders = [option.partition("=")[2] for option in world.scorers]
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    expected = []
    for pair in tokenised:
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            with torch.no_grad():
                logps = [
                    model(ids).logits[0].log_softmax(-1)[len(pair.prompt) - 1 : -1]
                    for model in models
                ]
            expected.append(
                (logps[0] - logps[1])[
                    torch.arange(len(response)), torch.tensor(list(map(int, response)))
                ]
            )
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
    exchanged = (f"model.positive_scorer={folders[1]}", f"model.negative_scorer={folders[0]}")
    swapped = recipe_in(
        tmp_path, "objective.name=tis_dpo", *world.options, *exchanged, paths=world.paths
    )
    with pytest.raises(UserError, match="holds scorer_log_ratios made with"):
        run_stages(swapped, (REFERENCE,), silent)


# Objectives whose pairs see the whole batch.
COUPLED = {
    "beta_dpo": ("objective.name=beta_dpo", "objective.beta=2"),
    "rpo": ("objective.name=rpo", "objective.beta=2"),
    "tokens": (
        "objective={name: sum, of: [{weight: 0.8, name: dpo}, {weight: 0.5, name: sft}]}",
        "objective.of[0].weight=0.7",
    ),
    "sum": (
        "objective={name: sum, of: [{weight: 1, name: sft}, {weight: 2, name: rpo, beta: 2}]}",
    ),
    "sum with a memory": (
        "objective={name: sum, of: [{weight: 1, name: rpo}, {weight: 2, name: beta_dpo, beta: 2}]}",
    ),
}


def coupled_losses(recipe: Recipe) -> torch.Tensor:
    return torch.tensor([[record["loss"], record["grad_norm"]] for record in steps(recipe)])


@pytest.mark.parametrize("case", COUPLED)
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
        validation = [
            r["validation/loss"]
            for r in read_metrics(RunPaths.of(recipe).train)
            if r.get("kind") == "validation"
        ]
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


@pytest.mark.parametrize("own", [False, True])
def test_prompt_embeddings_are_means_of_last_hidden_states(
    own: bool, make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    """Of the reference over the prompt's tokens, or of a sentence encoder over its own; against
    unpadded forwards.
    """
    options = ["objective.name=rpo"]
    if own:
        words = sorted(
            {
                word
                for row in rows
                for word in row["prompt"].lower().replace(".", " ").replace(",", " ").split()
            }
        )
        (tmp_path / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
        )
        encoder_dir = tmp_path / "encoder"
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words) + 5,
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(encoder_dir)
        BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(encoder_dir)
        (encoder_dir / "1_Pooling").mkdir()
        (encoder_dir / "1_Pooling" / "config.json").write_text(
            json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
        )
        options.append(f"model.embedder={encoder_dir}")
    recipe = prepared(make_recipe(*options))
    assert run_plan(recipe)["reference"]["bytes_per_pair"] == 4 * (
        12 if own else AutoModelForCausalLM.from_pretrained(model_dir).config.hidden_size
    )
    pairs = open_pairs(Run(recipe))
    wanted = [5, 3, 11]
    tokenised = pairs.pairs("train", wanted)
    found = (
        feature_source(run_facts(Run(recipe)), pairs, CPU)
        .features("train", wanted, padded_layout(tokenised))
        .prompt_embedding
    )
    assert found is not None
    for row, pair, vector in zip(wanted, tokenised, found, strict=True):
        if own:
            tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
            ids = tokenizer(
                pairs.values("train", [row], ("prompt",))[0][0], return_tensors="pt"
            ).input_ids
            model: Any = BertModel.from_pretrained(encoder_dir)
        else:
            ids, model = (
                torch.tensor([list(pair.prompt)]),
                AutoModelForCausalLM.from_pretrained(model_dir).base_model,
            )
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)
    if own:
        (encoder_dir / "1_Pooling" / "config.json").write_text(
            json.dumps({"pooling_mode_max_tokens": True})
        )
        with pytest.raises(
            UserError, match="pooling max_tokens is not supported, only mean, cls or lasttoken"
        ):
            prepared(make_recipe(*options, run_dir=str(tmp_path / "max")))


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
    (record,) = steps(recipe)
    assert 0.4 < record["masks/reward_zero_fraction"] <= 0.51
    assert record["masks/kl_zero_fraction"] == 0
    assert record["masks/kl_mean"] == 1


STEP_PRODUCERS = ("confidence", "surprise", "adversarial", "partition", "transport")


@pytest.mark.parametrize("kind", [*STEP_PRODUCERS, "wpo"])
def test_what_producers_read_of_the_step_depends_on_no_rank_layout_or_resume(
    kind: str, recipe_in: MakeRecipe, world: World, ranks: Ranks, tmp_path: Path
) -> None:
    """Five steps over two epochs: in one piece; by two ranks on padded rows; stopped after two."""
    weighs = ("objective.name=weighted", "objective.alpha=0.5", f"mask.kind={kind}")
    base = (
        *(("objective.name=wpo",) if kind == "wpo" else weighs),
        "train.global_batch_size=32", "train.epochs=2", "train.max_steps=5",
        "train.checkpoint_every=2", *world.options,
    )  # fmt: skip

    def recipe(name: str, *options: str) -> Recipe:
        return recipe_in(tmp_path / name, *base, *options, paths=world.paths)

    whole = recipe("whole")
    assert trained(whole).sampler.steps_per_epoch == 3
    spread = recipe(
        "spread", "train.layout=padded", "train.num_workers=2", "train.cpus_per_worker=1"
    )
    ranks.train(spread)
    stopped = recipe("stopped")
    trainer = trainer_of(stopped)
    stop_at_a_checkpoint(trainer)
    assert trained(stopped, needs_store=False).step == 5
    names = ("loss", "grad_norm", "weights/pair" if kind == "wpo" else "masks/reward_mean")
    first, *others = (
        [[r[name] for name in names] for r in steps(one)] for one in (whole, spread, stopped)
    )
    for other in others:
        assert len(other) == 5
        torch.testing.assert_close(torch.tensor(other), torch.tensor(first), atol=2e-6, rtol=2e-4)


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
        records = steps(recipe)
        found.append([(r["loss"], r["grad_norm"], r["rewards/margins"]) for r in records])
    assert found[0] == found[1] and len(set(found[0])) == 4


def test_two_parts_in_two_epochs_weigh_every_token_twice(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """So the mean weights of two steps over all pairs add up to two; validation's is one."""
    recipe = recipe_in(
        tmp_path, "objective.name=weighted", "mask.kind=partition", "mask.parts=2",
        "train.global_batch_size=500", "train.epochs=2", *world.options, paths=world.paths,
    )  # fmt: skip
    trained(recipe)
    means = [record["masks/reward_mean"] for record in steps(recipe)]
    assert len(means) == 2 and sum(means) == pytest.approx(2, abs=1e-6)
    assert means[0] != 1
    validations = [r for r in read_metrics(RunPaths.of(recipe).train) if "kind" in r]
    assert {r["validation/masks/reward_mean"] for r in validations} == {1.0}


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
        last = [record[f"masks/{term}_zero_fraction"] for record in steps(held)[-30:]]
        assert abs(sum(last) / 30 - 0.4) < 0.05, last
    free = recipe_in(tmp_path / "free", *base, "mask.weights=released", paths=world.paths)
    trained(free)
    assert steps(free)[-1]["masks/reward_zero_fraction"] > 0.9, (
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
def test_one_rank_that_fails_stops_both(
    recipe_in: MakeRecipe, world: World, ranks: Ranks, tmp_path: Path
) -> None:
    """One pair whose scores were turned around behind the pipeline's back: the rank that has it
    says so, and the other does not wait but says the same. Ray Train ends both with that line.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = {name: str(tmp_path / name) for name in ("pairs", "reference")}
    replicated, sharded, under_ray = (
        prepared(
            recipe_in(
                tmp_path / name, "objective.name=odpo", f"train.strategy={strategy}",
                "train.num_workers=2", "train.cpus_per_worker=1", "train.max_steps=3",
                "train.global_batch_size=200",
                *world.options, paths=paths,
            )
        )
        for name, strategy in (("ddp", "ddp"), ("fsdp", "fsdp"), ("ray", "ddp"))
    )  # fmt: skip
    shard = tmp_path / "pairs" / "train-00000.parquet"
    table = pq.read_table(shard)
    scores = table["chosen_score"].to_pylist()
    table = table.set_column(
        table.schema.get_field_index("chosen_score"),
        "chosen_score",
        pa.array([-5.0, *scores[1:]], pa.float64()),
    )
    pq.write_table(table, shard)
    accept_files(RunPaths.of(replicated).pairs)
    line = (
        r"step 1: preference_scores of pair \d+: chosen -5.0, .*; pairs "
        rf".*{table['pair_id'][0]}"
    )
    for recipe in (replicated, sharded):
        said = [end.failure for end in ranks.ends(recipe)]
        assert said[0] is not None and said[0].kind == "stage" and re.search(line, said[0].message)
        assert said[1] == said[0]
        left = RunPaths.of(recipe).train
        assert [Failure(**read_record(left, name)) for name in failure_files(left)] == said
    with pytest.raises(StageFailed, match=line):
        TRAIN.run(Run(under_ray), print, True)


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


def test_a_kl_that_runs_away_is_a_warning_of_the_run_and_is_told_once(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """The nineteen steps before this run's first are given: with it the KL grew by more than 1
    nat at a loss that rose.
    """
    recipe = recipe_in(
        tmp_path,
        "objective.name=tdpo1",
        "train.max_steps=2",
        "train.checkpoint_every=1",
        *world.options,
        paths=world.paths,
    )
    trainer = trainer_of(recipe)
    trainer.runaway = RunawayWatch({"window": [[0.1, -5.0]] * 10 + [[0.7, 0.0]] * 9})
    trainer.run(lambda metrics: None)
    (warning,) = [
        record
        for record in read_metrics(RunPaths.of(recipe).train)
        if record.get("kind") == "warning"
    ]
    assert (
        warning["step"] == 1
        and "KL(reference || policy) runs away: from -5.0 to" in warning["messages"][0]
    )
    assert trainer_of(recipe).runaway.state() == {
        "window": [],
        "has_told": True,
    }


def test_chosen_responses_that_get_unlikely_are_a_warning_of_the_run_and_are_told_once(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    """The forty-nine steps before this run's first are given: they fall by 2 nats a step."""
    recipe = recipe_in(
        tmp_path,
        "objective.name=dpo",
        "train.max_steps=2",
        "train.checkpoint_every=1",
        *world.options,
        paths=world.paths,
    )
    trainer = trainer_of(recipe)
    before = [[100.0 - 2 * i, i / 100 - 0.5] for i in range(49)]
    trainer.falling = FallingChosenWatch({"window": before})
    trainer.run(lambda metrics: None)
    (warning,) = [
        record
        for record in read_metrics(RunPaths.of(recipe).train)
        if record.get("kind") == "warning"
    ]
    assert warning["step"] == 1
    (line,) = warning["messages"]
    assert "logps/chosen falls while rewards/margins grow" in line and "nll_coef" in line
    assert trainer_of(recipe).falling.state() == {"window": [], "has_told": True}


def test_weights_that_stop_being_finite_stop_with_step_and_pairs(
    recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    options = (
        "objective.name=sparsepo",
        "mask.kind=learned",
        "mask.architecture=simple_last",
        "mask.learning_rate=3e37",
        "mask.adam_eps=1e-12",
    )
    recipe = recipe_in(
        tmp_path,
        *options,
        "mask.weight_decay=0",
        "train.max_steps=6",
        "train.warmup_fraction=0",
        *world.options,
        paths=world.paths,
    )
    with pytest.raises(
        StageFailed,
        match=r"step \d: reward_mask\[\d+\]=(nan|inf): weights must be finite and >= 0; pairs "
        r"[0-9a-f]{24}-0.*checkpoint",
    ):
        trained(recipe)


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
