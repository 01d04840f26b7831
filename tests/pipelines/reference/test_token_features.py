"""What the stage keeps of every token beside the log-probability, against plain transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CPU, MakeRecipe, silent
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import REFERENCE
from pipelines.errors import UserError
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.features import feature_source
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from sparsepo import Features, padded_layout

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS = [5, 40, 2]
OF_THE_REFERENCE = ("reference_entropy", "reference_square_sum", "saliency")
OF_SCORERS = ("scorer_log_ratios", "positive_logps", "negative_logps")


@pytest.fixture(scope="module")
def scorer(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model moved."""
    folder = tmp_path_factory.mktemp("scorer")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return folder


def stored(recipe: Recipe, names: tuple[str, ...]) -> Features:
    run_stages(recipe, (REFERENCE,), silent)
    pairs = open_pairs(Run(recipe))
    return open_reference(run_facts(Run(recipe)), pairs).features("train", ROWS, list(names))


def expected_of(recipe: Recipe, model: Any) -> dict[str, torch.Tensor]:
    """One response at a time, without padding."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in (*OF_THE_REFERENCE, "logps")}
    for pair in open_pairs(Run(recipe)).pairs("train", ROWS):
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = model(inputs_embeds=embedded).logits[0]
            (gradient,) = torch.autograd.grad(logits[-1].max(), embedded)
            log_probs = logits[len(pair.prompt) - 1 : -1].double().log_softmax(-1).detach()
            probs = log_probs.exp()
            labels = torch.tensor(list(map(int, response)))[:, None]
            found["reference_entropy"].append(-(probs * log_probs).sum(-1))
            found["reference_square_sum"].append((probs * probs).sum(-1))
            found["saliency"].append(gradient[0, len(pair.prompt) :].abs().sum(-1))
            found["logps"].append(log_probs.gather(1, labels)[:, 0])
    return {name: torch.cat(values).float() for name, values in found.items()}


@pytest.mark.slow
def test_entropy_squares_and_saliency_are_the_models_own(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Of packed and of padded rows; in a store that had log-probabilities alone, and online."""
    model = AutoModelForCausalLM.from_pretrained(scored.model.name_or_path)
    expected = expected_of(scored, model)
    paths = {"pairs": f"{scored.run_dir}/pairs"}
    for layout in ("auto", "padded"):
        option = f"reference.layout={layout}"
        first = recipe_in(tmp_path / layout, option, paths=paths)
        run_stages(first, (REFERENCE,), silent)
        kept = Run(first).record(REFERENCE).manifest()["outputs"]
        names = f"reference.features=[{', '.join(OF_THE_REFERENCE)}]"
        recipe = recipe_in(tmp_path / layout, option, names, paths=paths)
        found = stored(recipe, OF_THE_REFERENCE)
        for name in OF_THE_REFERENCE:
            torch.testing.assert_close(getattr(found, name), expected[name], atol=1e-5, rtol=1e-3)
        outputs = Run(recipe).record(REFERENCE).manifest()["outputs"]
        assert {name: outputs[name] for name in kept} == kept, "nothing was scored again"
    for kind, name in (("entropy", "reference_entropy"), ("saliency", "saliency")):
        beside = ("objective.name=weighted", f"mask.kind={kind}", "reference.mode=online")
        recipe = recipe_in(tmp_path / kind, *beside, paths=paths)
        assert recipe.stored_features() == ({"saliency"} if kind == "saliency" else frozenset())
        run_stages(recipe, (REFERENCE,), silent)
        pairs = open_pairs(Run(recipe))
        source = feature_source(run_facts(Run(recipe)), pairs, CPU)
        read = source.features("train", ROWS, padded_layout(pairs.pairs("train", ROWS)))
        torch.testing.assert_close(getattr(read, name), expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_one_scorer_alone_is_compared_with_the_reference(
    side: str, scored: Recipe, recipe_in: MakeRecipe, scorer: Path, tmp_path: Path
) -> None:
    """One store holds both log-probabilities and their difference; another pair is refused."""
    names = f"reference.features=[{', '.join(OF_SCORERS)}]"
    options = (names, f"model.{side}_scorer={scorer}")
    paths = {"pairs": f"{scored.run_dir}/pairs"}
    other = "negative" if side == "positive" else "positive"
    reference = f"model.{other}_scorer={scored.model.name_or_path}"
    found = stored(
        recipe_in(tmp_path, "objective.name=tis_dpo", *options, reference, paths=paths), OF_SCORERS
    )
    tuned, frozen = (
        expected_of(scored, AutoModelForCausalLM.from_pretrained(folder))["logps"]
        for folder in (scorer, scored.model.name_or_path)
    )
    by_side = {f"{side}_logps": tuned, f"{other}_logps": frozen}
    for name, expected in by_side.items():
        torch.testing.assert_close(getattr(found, name), expected, atol=1e-5, rtol=0)
    ratios = found.positive_logps - found.negative_logps
    torch.testing.assert_close(found.scorer_log_ratios, ratios, atol=1e-6, rtol=0)
    alone = recipe_in(tmp_path / "alone", "objective.name=tis_dpo", options[1], paths=paths)
    once = stored(alone, OF_SCORERS[:1])
    assert torch.equal(once.scorer_log_ratios, found.scorer_log_ratios)
    pairs = open_pairs(Run(alone))
    source = feature_source(run_facts(Run(alone)), pairs, CPU)
    inputs = padded_layout(pairs.pairs("train", ROWS))
    read = source.features("train", ROWS, inputs).scorer_log_ratios
    assert torch.equal(read, found.scorer_log_ratios)
    both = recipe_in(
        tmp_path / "alone", "objective.name=tis_dpo", options[1], reference, paths=paths
    )
    with pytest.raises(UserError, match="holds scorer_log_ratios made with .*reference"):
        run_stages(both, (REFERENCE,), silent)


def test_a_reference_without_a_gradient_is_refused_before_a_row_is_tried(
    scored: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """States of zero: every logit is the same whatever is read."""
    model = AutoModelForCausalLM.from_pretrained(scored.model.name_or_path)
    model.model.norm.weight.data.zero_()
    model.save_pretrained(tmp_path / "flat")
    recipe = recipe_in(
        tmp_path / "run",
        f"model.reference={tmp_path / 'flat'}",
        "reference.features=[saliency]",
        paths={"pairs": f"{scored.run_dir}/pairs"},
    )
    with pytest.raises(UserError, match="flat: saliency: gradients of .* finite and > 0") as error:
        run_stages(recipe, (REFERENCE,), silent)
    assert "\n" not in str(error.value)
    assert not list((Path(recipe.run_dir) / "reference").rglob("*.parquet"))


def test_plan_counts_the_backward_and_both_scorers(
    scored: Recipe, recipe_in: MakeRecipe, scorer: Path, tmp_path: Path
) -> None:
    """Saliency takes three forwards beside the one of all others, two scorers one each."""

    def forecast(*options: str) -> dict[str, Any]:
        paths = {"pairs": f"{scored.run_dir}/pairs"}
        found: dict[str, Any] = run_plan(recipe_in(tmp_path, *options, paths=paths))["reference"]
        return found

    plain = forecast()
    backward = forecast("reference.features=[saliency]")
    assert backward["hours_stored"] == pytest.approx(4 * plain["hours_stored"])
    assert backward["bytes_per_token_by_feature"]["saliency"] == 4
    assert backward["memory_gib"] > plain["memory_gib"]
    scorers = forecast("objective.name=tis_dpo", f"model.positive_scorer={scorer}")
    assert scorers["hours_stored"] == pytest.approx(3 * plain["hours_stored"])
    weights = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(scorer).parameters())
    assert scorers["memory_gib"] - plain["memory_gib"] == pytest.approx(weights / 2**30)
