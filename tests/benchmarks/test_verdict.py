"""What README and docs/results.md say of sparsity, against the numbers in docs."""

import json
from typing import Any

import pytest
from checkout import ROOT


def numbers(name: str) -> Any:
    return json.loads((ROOT / "docs" / name).read_text())


FRONTS = numbers("frontier-sparsity.json")["fronts"]
DENSE = ("tdpo1", "sparsepo-common", "sparsepo-independent")
SPARSE = ("sparsepo-common-0.5", "sparsepo-independent-0.5", "random-0.75")


def less_dpo(name: str) -> dict[str, dict[str, float]]:
    """At the distances that a method reached on every seed."""
    return {at: found for at, found in FRONTS[name]["less_dpo"].items() if found}


def test_dense_methods_are_on_one_front() -> None:
    found = [one for name in DENSE for one in less_dpo(name).values()]
    assert len(found) == 9  # three methods at 1, 2 and 4 nats
    assert max(abs(one["mean"]) for one in found) <= 0.0065
    unseen = [one for name in DENSE for one in FRONTS[name]["less_dpo_unseen"].values() if one]
    assert all(one["low"] <= 0 for one in unseen)


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_methods_are_below_it_by_their_whole_intervals(name: str) -> None:
    found = less_dpo(name)
    assert "1 nats" in found
    assert all(one["high"] < 0 for one in found.values())


def test_no_mask_gains_more_than_dpo_at_equal_distance_where_the_truth_is_known() -> None:
    worlds = numbers("worlds.json")
    assert len(worlds) == 12
    found = {
        (world, name): one
        for world, of in worlds.items()
        for name, one in of["at equal distance"].items()
        if one is not None
    }
    assert len(found) > 40
    assert [key for key, one in found.items() if one["low"] > 0] == []
    best = worlds["asides 70%"]["with each one's best beta"]
    assert best["oracle"]["low"] > 0.1  # further away it does
    assert abs(best["sparsepo-quickstart"]["mean"]) < 0.05


def test_learned_masks_find_the_words_that_carry_the_reward() -> None:
    methods = numbers("quickstart-methods.json")
    for name in ("learned", "sparsepo-quickstart", "sparsepo-half"):
        assert methods[name]["auc"]["low"] > 0.8
