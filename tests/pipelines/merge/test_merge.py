"""merge from two finished runs to samples, numbers, figure and page; a second call draws only what
is missing.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evaluation.intervals import rate_interval
from evaluation.metrics.vader_sentiment import vader_scores
from pipelines.errors import UserError
from pipelines.merge.schema import Merge
from pipelines.merge.stage import run_merge
from pipelines.models.generation import generate
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.response_ends import response_ends
from pipelines.pairs.table import read_pairs
from pipelines.recipe.schema import Recipe
from pipelines.storage.store import RunStore
from pipelines.storage.task_results import TaskResults
from sparsepo.merging import WeightMap

MakeMerge = Callable[..., Merge]
NAMES = ["model-1", "model-2", "mixture-0.5-0.5", "product-0.5-0.5"]


def samples(merge: Merge, point: str) -> list[dict[str, Any]]:
    text = Path(merge.run_dir, "points", point, "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def results(merge: Merge) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(merge.run_dir, "results.json").read_text())
    return found


def merged(merge: Merge, said: list[str] | None = None) -> str:
    return run_merge(merge, (said if said is not None else []).append, quiet=True)


def drawn_alone(merge: Merge, run: Recipe, seed: int = 0) -> list[str]:
    """Texts of the published model's own samples for the merge's prompts, by `generate`."""
    model = f"{run.run_dir}/train/model"
    table = read_pairs(RunStore(f"{run.paths.pairs or run.run_dir + '/pairs'}"))
    rows = range(table.num_rows("test"))
    prompts = dict.fromkeys(tuple(map(int, pair.prompt)) for pair in table.pairs("test", rows))
    asked, ends = list(prompts)[:6], response_ends(model)
    causal_lm, tokenizer = load_causal_lm(model, torch.float32), load_tokenizer(model)
    return [
        ends.text(tokenizer, ids)
        for at in (0, 4)
        for ids in generate(
            causal_lm, ends, asked[at : at + 4], merge.generation, seed * 1_000_003 + at, 2
        )
    ]


@pytest.mark.slow
@pytest.mark.actors
def test_a_merge_on_ray_from_runs_to_the_frontier(
    make_merge: MakeMerge, learned_run: Recipe, adapter_run: Recipe
) -> None:
    """The ends are the single models' own samples, rewards are those of the texts, intervals are
    those of the rewards by prompt.
    """
    merge = make_merge("generation.temperature=0.9", "generation.top_p=0.95", "seed=3")
    said: list[str] = []
    page = merged(merge, said)
    found = results(merge)
    assert [point["name"] for point in found["points"]] == NAMES
    for name, run in (("model-1", learned_run), ("model-2", adapter_run)):
        assert [s["text"] for s in samples(merge, name)] == drawn_alone(merge, run, 3)
    for point in found["points"]:
        drawn = samples(merge, point["name"])
        prompts, texts = [s["prompt"] for s in drawn], [s["text"] for s in drawn]
        assert len(drawn) == 12 and prompts[::2] == prompts[1::2] and len(set(prompts)) == 6
        scores = {
            "vader": (vader_scores(texts), (-1.0, 1.0)),
            "brevity": ([-min(6, len(text.split())) / 6 for text in texts], (-1.0, 0.0)),
        }
        for reward, (values, span) in scores.items():
            assert [s["rewards"][reward] for s in drawn] == pytest.approx(values)
            expected = rate_interval(values, prompts, span).as_dict()
            assert point["rewards"][reward] == pytest.approx(expected)
    means = {
        p["name"]: (p["rewards"]["vader"]["mean"], p["rewards"]["brevity"]["mean"])
        for p in found["points"]
    }
    for point in found["points"]:
        own = means[point["name"]]
        beaten = any(
            other != own and other[0] >= own[0] and other[1] >= own[1] for other in means.values()
        )
        assert point["on_front"] == (not beaten)
    assert sum(point["is_knee"] for point in found["points"]) == 1
    assert Path(merge.run_dir, "frontier.png").read_bytes()[:4] == b"\x89PNG"
    drawing = ElementTree.parse(Path(merge.run_dir, "frontier.svg")).getroot()
    assert drawing.tag.endswith("svg")
    html = Path(page).read_text()
    assert all(f'id="{name}"' in html for name in NAMES) and "0.5 : 0.5" in html
    assert any("models 1, 2: weights of their own" in line for line in said)


@pytest.mark.slow
def test_a_second_call_draws_nothing_and_more_weights_draw_only_theirs(
    make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    class Notes(TaskResults):
        def add(self, tasks, results):  # type: ignore[no-untyped-def]
            drawn.extend(f"{task.kind} {task.number}" for task in tasks)
            super().add(tasks, results)

    monkeypatch.setattr("pipelines.merge.stage.TaskResults", Notes)
    merge, said = make_merge(), []
    merged(merge)
    assert drawn == [f"{name}-by4 {at}" for name in NAMES for at in (0, 4)]
    numbers, first = results(merge), samples(merge, "mixture-0.5-0.5")
    drawn.clear()
    merged(merge, said)
    assert drawn == [] and "merge: every point is there already, none is drawn again" in said
    assert results(merge) == numbers
    more = make_merge("weights=[[1,0],[0.5,0.5],[0.25,0.75]]", "forms=[mixture]")
    merged(more)
    assert drawn == ["mixture-0.25-0.75-by4 0", "mixture-0.25-0.75-by4 4"]
    assert [p["name"] for p in results(more)["points"]] == [
        "model-1", "mixture-0.5-0.5", "mixture-0.25-0.75",
    ]  # fmt: skip
    assert samples(more, "mixture-0.5-0.5") == first
    shutil.rmtree(Path(merge.run_dir, "points", "model-1"))
    drawn.clear()
    merged(merge)
    assert drawn == ["model-1-by4 0", "model-1-by4 4"] and results(merge) == numbers


@pytest.mark.slow
def test_a_killed_merge_goes_on_to_the_same_samples(
    make_merge: MakeMerge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed after five of eight tasks: two points are done, and half of a third."""
    whole = make_merge(run_dir=str(tmp_path / "whole"))
    merged(whole)
    drawn: list[str] = []

    class Dies(TaskResults):
        def add(self, tasks, results):  # type: ignore[no-untyped-def]
            if len(drawn) == 5:
                raise KeyboardInterrupt
            drawn.append(tasks[0].kind)
            super().add(tasks, results)

    merge = make_merge(run_dir=str(tmp_path / "killed"))
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.merge.stage.TaskResults", Dies)
        with pytest.raises(KeyboardInterrupt):
            merged(merge)
    half = Path(merge.run_dir, "points", "mixture-0.5-0.5")
    assert len(list((half / "parts").iterdir())) == 1 and not (half / "samples.jsonl").exists()
    kept = (half / "parts").iterdir().__next__().read_bytes()
    merged(merge)
    assert not (half / "parts").exists() and kept
    for name in NAMES:
        assert samples(merge, name) == samples(whole, name)
    assert results(merge)["points"] == results(whole)["points"]


@pytest.mark.slow
def test_another_seed_in_the_same_place_is_refused_and_draws_others_elsewhere(
    make_merge: MakeMerge, tmp_path: Path
) -> None:
    merge = make_merge()
    merged(merge)
    with pytest.raises(UserError, match="holds another run's merge stage: setting seed was 0, now"):
        merged(make_merge("seed=1"))
    other = make_merge("seed=1", run_dir=str(tmp_path / "other"))
    merged(other)
    assert samples(other, "mixture-0.5-0.5") != samples(merge, "mixture-0.5-0.5")


@pytest.mark.slow
def test_weights_of_each_prompt(
    make_merge: MakeMerge, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    """A prompt with all weight on one model is drawn as by that model among others. The weights of
    a row are divided by their sum.
    """
    texts = list(dict.fromkeys(row["prompt"] for row in rows))[:4]
    file = tmp_path / "prompts.jsonl"

    def write(weights: list[list[float]]) -> None:
        lines = [{"prompt": text, "lambda": own} for text, own in zip(texts, weights, strict=True)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def asked(name: str, *overrides: str) -> Merge:
        merge = make_merge(*overrides, prompts={"path": str(file)}, run_dir=str(tmp_path / name))
        merged(merge)
        return merge

    write([[0, 5], [0, 1], [0, 1], [0, 1]])
    column = ("weights_column=lambda", "steps=0", "forms=[product]")
    by_prompt = asked("prompt", *column)
    fixed = asked("fixed", "weights=[[0,1]]")
    assert [s["text"] for s in samples(by_prompt, "product-prompt")] == [
        s["text"] for s in samples(fixed, "model-2")
    ]
    write([[1, 0], [3, 1], [0, 1], [1, 0]])
    mixed = asked("mixed", *column)
    found = samples(mixed, "product-prompt")
    assert [s["weights"] for s in found[::2]] == [[1, 0], [0.75, 0.25], [0, 1], [1, 0]]
    write([[0.75, 0.25]] * 4)
    same = asked("same", *column)
    equal = asked("equal", "weights=[[0.75,0.25]]", "forms=[product]")
    assert [s["text"] for s in samples(same, "product-prompt")] == [
        s["text"] for s in samples(equal, "product-0.75-0.25")
    ]


@pytest.mark.slow
def test_a_map_is_fitted_saved_read_again_and_drawn_with(
    make_merge: MakeMerge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss begins at ln 2 and falls; another start with the same seed has the same bits."""
    wanted = ("steps=0", "map={num_pairs: 40, steps: 30, batch_pairs: 8, learning_rate: 0.02}")
    merge = make_merge(*wanted)
    merged(merge)
    for form in ("mixture", "product"):
        folder = Path(merge.run_dir, "maps", form)
        counts = json.loads((folder / "manifest.json").read_text())["counts"]
        losses = counts["losses"]
        assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and len(losses) == 30
        assert np.mean(losses[-5:]) < np.log(2) - 0.01
        assert counts["train_pairs"] == 40 and counts["held_out"]["pairs"] == 10
        tensors = load_file(folder / "map.safetensors")
        weight_map = WeightMap(tensors["linear.weight"].shape[1], 2)
        weight_map.load_state_dict(tensors)
        drawn = samples(merge, f"{form}-map")
        used = np.array([sample["weights"] for sample in drawn])
        np.testing.assert_allclose(used.sum(1), 1, atol=1e-5)
        assert np.ptp(used[:, 0]) > 1e-4, "the state chooses"
    again = make_merge(*wanted, run_dir=str(tmp_path / "again"))
    merged(again)
    for file in ("maps/mixture/map.safetensors", "maps/product/map.safetensors"):
        assert Path(again.run_dir, file).read_bytes() == Path(merge.run_dir, file).read_bytes()
    assert samples(again, "product-map") == samples(merge, "product-map")
    shutil.rmtree(Path(merge.run_dir, "points"))  # read again, not fitted again
    monkeypatch.setattr("pipelines.merge.fit.MapFitter.__call__", None)
    merged(merge)
    assert samples(again, "mixture-map") == samples(merge, "mixture-map")
