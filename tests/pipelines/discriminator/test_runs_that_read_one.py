"""Runs whose tokens a discriminator weighs, alone or by segments: trained, evaluated, shown."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from runs import MakeRecipe, run_here

from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, REPORT, TRAIN
from pipelines.evaluate.response_weights import response_weights, weight_lines
from pipelines.pairs.table import open_pairs
from pipelines.recipe.run_paths import TOKENS, RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def segmented(
    judged: Recipe, recipe_in: MakeRecipe, liked_options: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Recipe:  # fmt: skip
    """Two steps with segments of a discriminator's values."""
    recipe: Recipe = recipe_in(
        tmp_path_factory.mktemp("segmented") / "run", *liked_options, "objective.name=weighted",
        "mask={kind: segment, value: discriminator, theta: 0.4}", "train.max_steps=2",
        f"model.discriminator={judged.run_dir}/discriminator/head",
        "evaluate.benchmarks=[preference, masks]", "evaluate.split=test",
        paths={"pairs": f"{judged.run_dir}/pairs"},
    )  # fmt: skip
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE, REPORT))
    return recipe


def test_segments_of_the_evaluation_are_cut_where_stored_values_jump(segmented: Recipe) -> None:
    """And a whole segment counts, or none of it: by the sum of 2 D - 1 on the response's side."""
    import pyarrow.parquet as pq

    folder = Path(segmented.run_dir, "reference", "discriminator_values")
    stored = pq.read_table(sorted(folder.glob("test-*"))[0])
    lines = (Path(RunPaths.of(segmented).evaluation.root) / TOKENS).read_text().splitlines()
    seen: set[float] = set()
    for number, shown in enumerate(map(json.loads, lines[:12])):
        side = ("chosen", "rejected")[number % 2]
        assert shown["side"] == side
        values = 2 * np.array(stored[side][number // 2].as_py()) - 1
        jumps = np.abs(np.diff(values)) > 0.4
        assert shown["segment"] == [0, *np.cumsum(jumps).tolist()]
        for segment in set(shown["segment"]):
            own = np.array(shown["segment"]) == segment
            agrees = values[own].sum() * (1 if side == "chosen" else -1) > 0
            assert set(np.array(shown["reward_mask"])[own]) == {float(agrees)}
            seen.add(float(agrees))
    assert seen == {0.0, 1.0} and max(json.loads(lines[0])["segment"]) >= 2


def test_the_report_has_the_discriminators_figures_and_bars_between_segments(
    segmented: Recipe, judged: Recipe
) -> None:
    head = Path(judged.run_dir, "discriminator", "head")
    figures = json.loads((head / "figures.json").read_text())
    page = Path(segmented.run_dir, "report", "index.html").read_text()
    section = page.split('id="discriminator"')[1].split("</details>")[0]
    for key in ("accuracy", "auc", "ece"):
        assert f"{figures[key]['mean']:.3f} [" in section, key
    assert "discriminator-reliability" in section
    lines = (Path(RunPaths.of(segmented).evaluation.root) / TOKENS).read_text().splitlines()
    begins = sum(max(json.loads(line)["segment"]) for line in lines)
    assert len(re.findall(r'class="token[ a-z]* begins"', page)) == begins > 0
    assert "A bar stands where a" in page
    results = json.loads(Path(segmented.run_dir, "report", "results.json").read_text())
    (found,) = results.values()
    assert found["discriminator"]["auc"] == figures["auc"]


def test_weigh_shows_the_same_segments(segmented: Recipe) -> None:
    lines = (Path(RunPaths.of(segmented).evaluation.root) / TOKENS).read_text().splitlines()
    shown = json.loads(lines[0])
    texts = open_pairs(Run(segmented)).values("test", [0], ("prompt", "chosen"))
    found = response_weights(Run(segmented), *texts[0])
    assert found.segments == shown["segment"]
    assert found.reward.tolist() == shown["reward_mask"]
    told = list(weight_lines(found))
    assert sum("a segment begins" in line for line in told) == max(shown["segment"])


def test_training_reads_stored_values(segmented: Recipe) -> None:
    """At step 1 the policy is the reference, and weights are the zeros and ones of segments."""
    first, last = (r for r in read_metrics(RunPaths.of(segmented).train) if "kind" not in r)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["masks/reward_max"] == 1 and 0 < first["masks/reward_zero_fraction"] < 1
    assert last["loss"] < first["loss"]
