"""Distances from the reference: in which numbers they are computed, and their floor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MakeRecipe, run_here

from pipelines.commands.stages import EVALUATE, PREPARE
from pipelines.evaluate.distance import sequence_kl
from pipelines.evaluate.history import read_results
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore

FLOAT, HALF = torch.float32, torch.bfloat16


def _dense_kl(
    policy: Any,
    reference: Any,
    prompt: list[int],
    sample: list[int],
    asked: list[int] | None = None,
) -> float:
    """The definition over whole rows of logits, in float64.

    Args:
        asked: what the policy reads in the prompt's place.
    """
    with torch.no_grad():
        one, other = (
            model(torch.tensor([read + sample]))
            .logits[0, len(read) - 1 : -1]
            .double()
            .log_softmax(-1)
            for model, read in ((policy, asked or prompt), (reference, prompt))
        )
    return float((one.exp() * (one - other)).sum())


def test_a_policy_behind_a_control_beside_a_reference_without(model_dir: Path) -> None:
    tokenizer = load_tokenizer(str(model_dir))
    prompts = [tokenizer(text)["input_ids"] for text in ("The film was", "A plot")]
    samples = [tokenizer(text)["input_ids"] for text in (" good and long .", " bad")]
    model = load_causal_lm(str(model_dir), FLOAT)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * 4)
    asked = [[5, 9, *prompt] for prompt in prompts]
    found = sequence_kl(model, model, asked, samples, 8192, prompts)
    dense = [
        _dense_kl(model, model, p, s, a) for p, s, a in zip(prompts, samples, asked, strict=True)
    ]
    assert min(dense) > 1e-3
    assert found == pytest.approx(dense, rel=1e-3)


def test_the_same_weights_in_other_numbers_lie_apart(model_dir: Path) -> None:
    """bfloat16 beside float32 is the distance that dense arithmetic finds, for one model; in equal
    numbers, loaded twice, it is exactly 0.
    """
    tokenizer = load_tokenizer(str(model_dir))
    prompts = [tokenizer(text)["input_ids"] for text in ("The film was", "A plot that")]
    samples = [tokenizer(text)["input_ids"] for text in (" good and long .", " bad")]
    models = {
        (dtype, copy): load_causal_lm(str(model_dir), dtype)
        for dtype in (FLOAT, HALF)
        for copy in (0, 1)
    }
    for model in models.values():  # untrained, it is near to even: rounding would move little
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach() * 4)
    for dtype in (FLOAT, HALF):
        alike = models[dtype, 0], models[dtype, 1]
        assert sequence_kl(*alike, prompts, samples, 8192) == [0.0, 0.0]
    apart = models[HALF, 0], models[FLOAT, 0]
    found = sequence_kl(*apart, prompts, samples, 1)  # each alone: no padding beside it
    dense = [_dense_kl(*apart, p, s) for p, s in zip(prompts, samples, strict=True)]
    assert min(dense) > 1e-5
    assert found == pytest.approx(dense, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_all_models_are_in_trainings_numbers(
    precision: str, make_recipe: MakeRecipe, model_dir: Path
) -> None:
    """A model against itself, whatever numbers the reference is stored in: no distance, and none
    of its floor. What is recorded names a precision that is not the default.
    """
    other = "bfloat16" if precision == "auto" else "float32"
    recipe = make_recipe(
        f"evaluate.model={model_dir}",
        f"reference.dtype={other}",
        f"train.precision={precision}",
        "evaluate.benchmarks=[preference, sentiment]",
        "evaluate.num_prompts=4",
    )
    run_here(recipe, (PREPARE, EVALUATE))
    found = read_results(RunStore(f"{recipe.run_dir}/evaluation"))
    assert found["preference"]["kl/reference_policy"]["mean"] == 0.0
    assert found["preference"]["kl/reference_policy_floor"] == 0.0
    assert found["sentiment"]["kl/policy_reference"]["mean"] == 0.0
    assert found["sentiment"]["kl/policy_reference_floor"] == 0.0
    settings = Run(recipe).record(EVALUATE).settings
    assert settings.get("train.precision") == (None if precision == "auto" else precision)
    assert "evaluate.samples_per_prompt" not in settings, "evaluations of before still match"
