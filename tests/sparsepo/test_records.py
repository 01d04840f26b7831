"""Records of a batch from those of its parts."""

from dataclasses import fields

import pytest
import torch
from pair_records import random_scores

from sparsepo import FEATURES, OBJECTIVES, Features
from sparsepo.masks import MASKS
from sparsepo.records import add_metrics


def test_metrics_add_up_sums_and_counts() -> None:
    """Means over three pairs and one are the mean over four; a part may lack a metric."""
    one = {"loss": (6.0, 3.0), "a": (1.0, 2.0)}
    two = {"loss": (1.0, 1.0), "b": (5.0, 1.0)}
    assert add_metrics(one, two) == {"loss": (7.0, 4.0), "a": (1.0, 2.0), "b": (5.0, 1.0)}
    assert add_metrics({}, two) == two == add_metrics(two, {})
    assert one == {"loss": (6.0, 3.0), "a": (1.0, 2.0)}, "the parts stay as they were"


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "learned"])
def test_every_producer_and_loss_works_on_plain_tensors(kind: str) -> None:
    """The weights of a record are those that the producer gives its features."""
    record = random_scores([3, 2, 4, 3], seed=3)
    mask = MASKS[kind]()
    generator = torch.Generator().manual_seed(1)
    tokens = {
        name: torch.rand(12, generator=generator) * (-1 if name.endswith("logps") else 1)
        for name, feature in FEATURES.items()
        if feature.per == "token" and name not in {item.name for item in fields(record)}
    }
    tokens["policy_hidden"] = torch.rand(12, 3, generator=generator)
    given = {**tokens, "epoch": torch.tensor([0, 1])}
    found = record.weighed(mask, **given)
    own = {name: getattr(record, name) for name in FEATURES if hasattr(record, name)}
    features = Features(**given, **own, pair_keys=torch.arange(2))
    expected = mask(features, record.response_index, 2)
    assert torch.equal(found.reward_mask, expected.reward)
    assert torch.equal(found.kl_mask, expected.kl)
    assert (found.signed_masks, found.empty_sides) == (mask.signed, mask.may_be_empty)
    for name, objective in OBJECTIVES.items():
        if "desirable" in objective.requires or name == "sum":  # rows with labels; needs terms
            continue
        assert objective()(found).losses.isfinite().all(), name
    if mask.requires - set(own) - {"pair_keys"}:
        with pytest.raises(ValueError, match="the mask needs the feature"):
            record.weighed(mask)
