"""weigh: a run's mask on one response gives what the evaluation shows of the same pair."""

import json
from pathlib import Path

import pytest
from runs import MakeRecipe, run_here

from pipelines.commands.cli import main
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.errors import UserError
from pipelines.evaluate.response_weights import response_weights, weight_lines
from pipelines.recipe.run_paths import TOKENS, RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(
    scope="module",
    params=[
        ("objective.alpha=0.5", "mask.kind=learned", "mask.architecture=simple_last"),
        ("objective.reference_free=true", "objective.reduction=mean_kept", "mask.kind=confidence"),
    ],
    ids=["learned", "confidence"],
)
def evaluated(
    request: pytest.FixtureRequest, recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """One mask that reads the reference, and one that reads the policy."""
    recipe: Recipe = recipe_in(
        tmp_path_factory.mktemp("weigh"), "objective.name=weighted", *request.param,
        "mask.terms=reward", "train.max_steps=3", "train.checkpoint_every=2",
        "evaluate.benchmarks=[masks]",
    )  # fmt: skip
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE))
    return recipe


def test_weights_are_those_that_the_evaluation_shows(
    evaluated: Recipe, rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shown = [
        json.loads(line)
        for line in (Path(RunPaths.of(evaluated).evaluation.root) / TOKENS).read_text().splitlines()
    ]
    texts = {row[side]: (row["prompt"], side) for row in rows for side in ("chosen", "rejected")}
    compared = 0
    for response in shown[:4]:
        said = "".join(response["tokens"]).replace("</s>", "").strip()
        matching = [text for text in texts if text.strip() == said]
        if not matching:
            continue
        prompt, side = texts[matching[0]]
        found = response_weights(Run(evaluated), prompt, matching[0], side=side)  # type: ignore[arg-type]
        assert found.reward.tolist() == pytest.approx(response["reward_mask"], abs=1e-5)
        assert found.tokens == response["tokens"]
        assert response["prompt"] == prompt
        assert found.kl.tolist() == [1.0] * len(found.tokens)
        compared += 1
    assert compared >= 2, [response["tokens"] for response in shown[:4]]

    lines = list(weight_lines(found))
    given = ["weigh", f"{evaluated.run_dir}/config.yaml", prompt, matching[0]]
    with pytest.raises(SystemExit) as ended:
        main([*given, *(["--rejected"] if side == "rejected" else [])])
    assert not ended.value.code
    assert capsys.readouterr().out.splitlines() == lines
    assert not any("\x1b" in line for line in lines), "a pipe gets no colours"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for variable, first in ((None, found.text(colours=True).splitlines()), ("NO_COLOR", [])):
        if variable is not None:
            monkeypatch.setenv(variable, "1")
        with pytest.raises(SystemExit):
            main([*given, *(["--rejected"] if side == "rejected" else [])])
        said = capsys.readouterr().out.splitlines()
        assert said == ([*first, "", *lines] if first else lines)
    older = response_weights(Run(evaluated), prompt, matching[0], side=side, step=2)  # type: ignore[arg-type]
    assert older.tokens == found.tokens
    if evaluated.mask.kind == "learned":
        assert older.reward.tolist() != found.reward.tolist()


def test_what_cannot_be_weighed_is_one_line(evaluated: Recipe, make_recipe: MakeRecipe) -> None:
    run = Run(evaluated)
    with pytest.raises(UserError, match="has no checkpoint of step 7: there are 2, 3"):
        response_weights(run, "a", "b", step=7)
    for options, message in (
        ((), "objective.name=dpo with mask.kind=none: this run has no mask"),
        (("objective.name=mapo", "mask.kind=external"), "mask.kind=external reads external_weig"),
        (("objective.name=mapo",), "has no trained model: run `sparsepo train` to its end"),
    ):
        with pytest.raises(UserError, match=message):
            response_weights(Run(make_recipe(*options)), "a", "b")
    with pytest.raises(UserError, match="these texts make no pair: .*"):
        response_weights(run, "a", "same", other="same")
