"""The reference stage: exact, the same bytes however it was made, and never used wrongly.

Real local Ray and models.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import MakeRecipe, silent
from stores import again, all_features, losses_of, store_files
from transformers import AutoModelForCausalLM

from pipelines.commands.run import run_stages
from pipelines.commands.stages import REFERENCE
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from sparsepo import ReferenceModel, padded_layout
from sparsepo.compression import unpack_topk
from sparsepo.kernels.token_scoring import score_tokens

pytestmark = pytest.mark.usefixtures("ray_cluster")
KL = ("objective.name=tdpo1",)


@pytest.mark.slow
@pytest.mark.actors
def test_the_store_is_the_same_bytes_for_any_number_of_actors(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    files = store_files(scored)
    assert len(files) == 2 * 4 + 1, "two features of four shards, and the head"
    for number in (1, 2):
        option = f"reference.num_actors={number}"
        found = again(scored, recipe_in, tmp_path / str(number), option)
        assert store_files(found) == files, f"{number} actors, against this process"


@pytest.mark.slow
def test_budget_and_layout_change_nothing_but_rounding(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """fp32 agreement 1e-4 (other budget, other layout); another model's store is the negative
    control.
    """
    names = ("reference_logps", "reference_hidden")
    expected = all_features(scored, *names)
    for name, option in (
        ("budget", "reference.batch_tokens=100"),
        ("padded", "reference.layout=padded"),
    ):
        found = all_features(again(scored, recipe_in, tmp_path / name, option), *names)
        for feature in names:
            torch.testing.assert_close(found[feature], expected[feature], atol=1e-4, rtol=0)
    other = tmp_path / "other"
    shutil.copytree(scored.model.name_or_path, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.norm.weight.data += 0.01
    model.save_pretrained(other)
    moved = all_features(
        again(scored, recipe_in, tmp_path / "moved", f"model.reference={other}"), *names
    )
    assert float((moved["reference_logps"] - expected["reference_logps"]).abs().max()) > 1e-4


def test_kl_from_the_store_is_that_of_a_live_reference(scored: Recipe, model_dir: Path) -> None:
    """A moved policy against the stored states times the stored head, and against a model that
    runs: 1e-5 in fp32.
    """
    pairs = open_pairs(Run(scored))
    store = open_reference(run_facts(Run(scored)), pairs)
    rows = [3, 60, 17, 40]
    stored = store.features("train", rows, ["reference_hidden"]).reference_hidden
    inputs = padded_layout(pairs.pairs("train", rows))
    live = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    policy = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    torch.manual_seed(0)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    with torch.no_grad():
        logits = [
            m(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits.flatten(
                0, 1
            )[inputs.score_rows]
            for m in (live, policy)
        ]
        reference, moved = (values.double().log_softmax(-1) for values in logits)
        expected = (reference.exp() * (reference - moved)).sum(-1)
        hidden = policy.model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        ).last_hidden_state.flatten(0, 1)[inputs.score_rows]
        found = score_tokens(
            hidden, ReferenceModel(policy).head, inputs.labels, stored, store.head()
        )[1]
    assert found is not None
    assert float(expected.mean()) > 0.01
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "seed"), [("simple_last", 0), ("simple_all", 1)])
def test_training_from_the_store_equals_training_beside_the_reference(
    mask: str, seed: int, scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Four optimizer steps in fp32: within 2e-6 from a store in the same layout, within 1e-5 from
    padded rows; int8 is close.

    Adam's epsilon is raised: while policy and reference are the same, a mask's gradient is their
    rounding, which it would scale up.
    """
    base = (
        "objective.name=sparsepo",
        "mask.kind=learned",
        f"mask.architecture={mask}",
        f"train.seed={seed}",
        "objective.beta=1",
    )
    base += ("mask.adam_eps=1e-4", "train.adam_eps=1e-4")
    paths = {"pairs": f"{scored.run_dir}/pairs"}
    online = recipe_in(tmp_path / "online", *base, "reference.mode=online", paths=paths)
    stored = recipe_in(tmp_path / "stored", *base, "reference.mode=stored", paths=paths)
    padded = recipe_in(
        tmp_path / "padded", *base, "reference.mode=stored", "reference.layout=padded", paths=paths
    )
    for recipe in (online, stored, padded):
        run_stages(recipe, (REFERENCE,), silent)
    expected = losses_of(online)
    assert float(expected.max() - expected.min()) > 1e-3, "the policy moves"
    torch.testing.assert_close(losses_of(stored), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(losses_of(padded), expected, atol=1e-5, rtol=0)
    if mask == "simple_all":
        packed = recipe_in(
            tmp_path / "int8",
            *base,
            "reference.mode=stored",
            "reference.layers_dtype=int8",
            paths=paths,
        )
        run_stages(packed, (REFERENCE,), silent)
        difference = (losses_of(packed) - expected).abs().max()
        assert 0 < float(difference) < 2e-2
        manifest = Run(packed).record(REFERENCE).manifest()["counts"]
        assert manifest["formats"]["reference_layers"]["encoding"] == "int8"
        sizes = [
            sum(len(data) for name, data in store_files(r).items() if "reference_layers" in name)
            for r in (packed, stored)
        ]
        assert sizes[0] < 0.3 * sizes[1], "a byte per value and a scale per block, against four"


@pytest.mark.slow
def test_topk_is_a_lower_bound_whose_error_is_in_the_manifest(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    recipe = again(scored, recipe_in, tmp_path / "topk", "reference.topk=16")
    counts = Run(recipe).record(REFERENCE).manifest()["counts"]
    assert set(counts["features"]) == {"reference_logps", "reference_topk"}
    assert counts["formats"]["reference_topk"]["shape"] == [16]
    error = counts["topk_error"]
    assert 0 < error["kl_topk"] < error["kl_exact"]
    assert error["relative_error"] == pytest.approx(
        1 - error["kl_topk"] / error["kl_exact"], rel=1e-3
    )
    packed = all_features(recipe, "reference_topk")["reference_topk"]
    exact = all_features(scored, "reference_hidden")["reference_hidden"]
    probabilities = (
        open_reference(run_facts(Run(scored)), open_pairs(Run(scored)))
        .head()
        .logits(exact)
        .softmax(-1)
    )
    kept = unpack_topk(packed)
    torch.testing.assert_close(
        kept.logps.exp().sum(1), probabilities.topk(16).values.sum(1), atol=2e-3, rtol=0
    )
    first = losses_of(recipe)
    assert float(first[0]) == pytest.approx(np.log(2), abs=1e-5), (
        "policy = reference: the bound is zero too"
    )
    assert float((first - losses_of(scored)).abs().max()) < 0.02
    with pytest.raises(UserError, match="holds reference_topk made with 'top 16', now 'top 8'"):
        run_stages(
            recipe_in(
                tmp_path / "topk",
                *KL,
                "reference.topk=8",
                paths={"pairs": f"{scored.run_dir}/pairs"},
            ),
            (REFERENCE,),
            silent,
        )
