"""The margins that a map is fitted on, against whole forwards and the formula in float64; points
and their weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import UserError
from pipelines.merge.fit import FitFacts, MapFitter
from pipelines.merge.map_weights import map_of, numbers_of, read_map, write_map
from pipelines.merge.points import Point, fixed_point, points_of
from pipelines.merge.schema import MapSection, Merge
from pipelines.models.loading import load_causal_lm
from pipelines.pairs.table import read_pairs
from pipelines.recipe.schema import Recipe
from pipelines.storage.store import RunStore
from sparsepo.merging import Form, WeightMap


@torch.no_grad()
def whole(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> tuple[np.ndarray, Any]:
    """Probabilities [n, V] of every answer token's place, and the states there, in float64."""
    ids = torch.tensor([[*prompt, *answer]])
    places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    output = model(input_ids=ids, output_hidden_states=True)
    logits = output.logits[0, places]
    states = model.model(input_ids=ids).last_hidden_state[0, places]
    return np.exp((logits - logits.logsumexp(-1, keepdim=True)).numpy()), states.numpy()


@pytest.mark.parametrize("form", ["mixture", "product"])
def test_margins_are_those_of_the_merged_policies_log_ratios(
    form: Form, learned_run: Recipe, adapter_run: Recipe
) -> None:
    models = tuple(f"{run.run_dir}/train/model" for run in (learned_run, adapter_run))
    pairs = f"{learned_run.run_dir}/pairs"
    fitter = MapFitter(FitFacts(MapSection(num_pairs=8), models, pairs, 256))
    fitter._run_models()
    known = fitter._known["train"]
    weight_map = WeightMap(known[0].chosen.states[0].shape[1], 2)
    torch.manual_seed(0)
    for parameter in weight_map.parameters():
        parameter.data.copy_(5 * torch.randn_like(parameter))
    with torch.no_grad():
        found = fitter._margins(weight_map, known[:3], form)
    loaded = [load_causal_lm(model, torch.float32).double() for model in models]
    w, b = (parameter.detach().double().numpy() for parameter in weight_map.parameters())
    expected = []
    for pair in read_pairs(RunStore(pairs)).pairs("train", range(3)):
        ratios = []
        for answer in (pair.chosen, pair.rejected):
            said = [whole(model, pair.prompt, answer) for model in loaded]
            h = said[0][1] / np.linalg.norm(said[0][1], axis=1, keepdims=True)
            scores = np.exp(h @ w.T + b)
            own = scores / scores.sum(1, keepdims=True)
            both = []
            for weights in (own, np.full_like(own, 0.5)):
                parts = [(weights[:, k, None], p) for k, (p, _) in enumerate(said)]
                merged = (
                    sum(lam * p for lam, p in parts)
                    if form == "mixture"
                    else np.prod([p**lam for lam, p in parts], axis=0)
                )
                merged /= merged.sum(1, keepdims=True)
                both.append(np.log(merged[np.arange(len(answer)), list(answer)]).sum())
            ratios.append(both[0] - both[1])
        expected.append(ratios[0] - ratios[1])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(expected).max() > 0.01


def test_a_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight_map = WeightMap(5, 3)
    torch.nn.init.normal_(weight_map.linear.weight)
    torch.nn.init.normal_(weight_map.linear.bias)
    write_map(numbers_of(weight_map), tmp_path / "map", {"form": "mixture"})
    store = RunStore(str(tmp_path))
    again = map_of(read_map(store, "map", store.checksum("map")))
    assert torch.equal(again.linear.weight, weight_map.linear.weight)
    assert torch.equal(again.linear.bias, weight_map.linear.bias)


def merge_of(**keys: Any) -> Merge:
    return Merge.model_validate({"run_dir": "/m", "models": ("/a", "/b"), **keys})


def test_the_points_of_a_merge() -> None:
    """Ends are shared by both forms and stand first; K models have all multiples of 1/steps."""
    two = [point.name for point in points_of(merge_of(steps=2))]
    assert two == ["model-1", "model-2", "mixture-0.5-0.5", "product-0.5-0.5"]
    three = points_of(merge_of(models=("/a", "/b", "/c"), steps=3, forms=("product",)))
    weights = {point.weights for point in three}
    assert len(three) == len(weights) == 10 and all(abs(sum(w) - 1) < 1e-12 for w in weights)
    assert {w for w in weights if max(w) == 1} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert Point(None, "fixed", (0.0, 1.0)).alone == 1
    others = points_of(merge_of(steps=0, map=MapSection(), weights_column="w"))
    assert [point.name for point in others] == [
        "mixture-prompt", "mixture-map", "product-prompt", "product-map",
    ]  # fmt: skip


def test_weights_that_are_divided_are_said_once() -> None:
    said: list[str] = []
    tell: Callable[[str], None] = said.append
    found = points_of(merge_of(weights=((3.0, 1.0), (0.0, 2.0), (0.5, 0.5))), tell)
    assert said == [
        "merge: weights [3.0, 1.0] are divided by their sum: 0.75 : 0.25",
        "merge: weights [0.0, 2.0] are divided by their sum: 0 : 1",
    ]
    assert {point.weights for point in found} == {(0.75, 0.25), (0.0, 1.0), (0.5, 0.5)}
    with pytest.raises(UserError, match=r"weights \[2.0, -1.0\]: a mixture takes none below 0"):
        fixed_point((2.0, -1.0), 2, "mixture")
    assert fixed_point((2.0, -1.0), 2, "product")[0].name == "product-2--1"
