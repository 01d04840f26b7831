"""What is declared of objectives and masks without torch is what they do."""

from dataclasses import fields, replace

import pytest
import torch
from pair_records import PLAIN, random_scores

from sparsepo import FEATURES, OBJECTIVES, Features
from sparsepo.masks import LEARNED_MASKS, MASKS, LearnedMasks
from sparsepo.objectives import DPO, Objective

# Fields of the record that a feature fills.
FIELDS = {"reference_hidden": ("token_kl",)}


@pytest.mark.parametrize("name", PLAIN)
def test_an_objective_is_what_its_declaration_says(name: str) -> None:
    """Measured on losses: what changes them, and what is not missed."""
    declared = OBJECTIVES[name]
    objective = declared()
    assert type(objective) is declared.load()
    assert objective.requires == declared.requires
    assert (objective.name, objective.uses_rejected) == (name, declared.uses_rejected)
    record = random_scores([3, 2, 4, 5], seed=1)
    losses = objective(record).losses

    def changes(**changed: torch.Tensor) -> bool:
        return not torch.equal(objective(replace(record, **changed)).losses, losses)

    reads_mask = changes(reward_mask=record.reward_mask / 2, kl_mask=record.kl_mask / 2)
    assert reads_mask == (declared.mask_kinds != {"none"})
    is_rejected = (record.response_index % 2).bool()
    less = torch.where(is_rejected, record.policy_logps - 1, record.policy_logps)
    assert changes(policy_logps=less) == declared.uses_rejected
    unread = {
        field
        for feature in FEATURES.keys() - declared.requires - {"policy_logps"}
        for field in FIELDS.get(feature, (feature,))
        if field in {item.name for item in fields(record)}
    }
    assert torch.equal(objective(replace(record, **dict.fromkeys(unread))).losses, losses)


def test_declarations_name_what_there_is() -> None:
    assert list(OBJECTIVES) == [declared.name for declared in OBJECTIVES.values()]
    for declared in OBJECTIVES.values():
        assert declared.requires <= FEATURES.keys()
        assert declared.mask_kinds <= MASKS.keys()
        assert declared.default_mask in declared.mask_kinds | {"none"}
    assert {item.name for item in fields(Features)} == set(FEATURES)


def test_an_undeclared_objective_says_it_itself() -> None:
    """And a subclass of a declared one that names nothing is that one."""

    class Own(Objective):
        name = "own"
        uses_rejected = False

        def __call__(self, scores: object) -> None:  # type: ignore[override]
            raise NotImplementedError

    class MyDPO(DPO):
        pass

    assert (Own.name, Own.uses_rejected, Own.requires) == ("own", False, {"reference_logps"})
    assert (MyDPO.name, MyDPO.requires) == ("dpo", OBJECTIVES["dpo"].requires)
    with pytest.raises(KeyError, match="nowhere"):
        type("Lost", (Objective,), {}, name="nowhere")


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_reads_what_its_declaration_says(kind: str) -> None:
    index = torch.tensor([0, 0, 0, 1, 1])
    everything = Features(
        reference_hidden=torch.randn(5, 8),
        reference_layers=torch.randn(5, 2, 8),
        activation_mask=torch.rand(5),
        external_weights=torch.rand(5),
        discriminator_values=torch.rand(5),
        pair_keys=torch.tensor([7]),
        policy_logps=-3 * torch.rand(5),
        reference_logps=-3 * torch.rand(5),
        scorer_log_ratios=torch.randn(5),
        positive_logps=-3 * torch.rand(5),
        negative_logps=-3 * torch.rand(5),
        reference_entropy=torch.rand(5),
        saliency=torch.rand(5),
        policy_hidden=torch.randn(5, 16),
        epoch=torch.tensor([1]),
    )
    for architecture, form in LEARNED_MASKS.items() if kind == "learned" else [("", None)]:
        if form is None:
            mask, reads = MASKS[kind](), MASKS[kind].requires
        else:
            mask = LearnedMasks(architecture, "common", hidden_size=8, num_layers=2)
            reads = frozenset({form.feature})
        assert type(mask) is MASKS[kind].load()
        assert mask.requires == reads
        if kind == "learned":  # a partition of the tokens reads the epoch in training alone
            mask.eval()
        found = mask(everything, index, 1).reward
        others = {item.name for item in fields(Features)} - reads
        alone = replace(everything, **dict.fromkeys(others))
        assert torch.equal(mask(alone, index, 1).reward, found)
        for feature in reads:
            with pytest.raises(ValueError, match=f"the mask needs the feature '{feature}'"):
                mask(replace(everything, **{feature: None}), index, 1)
