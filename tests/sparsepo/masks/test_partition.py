"""A part of the tokens per epoch: a partition, the same everywhere."""

from dataclasses import replace

import pytest
import torch
from pair_records import gradient_of, random_scores
from producers import index_of, random_features, weights_by_response

from sparsepo import PartitionMask, Weighted


def at(epoch: int, lengths: list[int], seed: int = 0) -> object:
    return replace(random_features(lengths, seed), epoch=torch.full((len(lengths) // 2,), epoch))


def test_over_the_epochs_every_token_counts_alike() -> None:
    """Each epoch's weights are 0 or K; over K epochs they sum to K, then they come again."""
    lengths = [70, 50, 1, 90]
    epochs = [
        weights_by_response(PartitionMask(3), at(epoch, lengths), lengths) for epoch in range(4)
    ]
    for response, n in enumerate(lengths):
        parts = torch.tensor([epochs[epoch][response] for epoch in range(3)])
        assert set(parts.flatten().tolist()) <= {0.0, 3.0}
        assert parts.sum(0).tolist() == [3.0] * n
    assert epochs[3] == epochs[0] != epochs[1]
    kept = [sum(map(sum, epoch)) / 3 / sum(lengths) for epoch in epochs[:3]]
    assert all(0.2 < share < 0.47 for share in kept), kept


def test_k_parts_over_k_epochs_sum_to_the_unweighted_gradient() -> None:
    """Where the loss is linear in the weights: at the reference, as its slope there is 1/2."""
    lengths, parts = [30, 20, 25, 10], 4
    record = random_scores(lengths)
    record = replace(record, policy_logps=record.reference_logps)
    summed = torch.zeros_like(record.policy_logps)
    for epoch in range(parts):
        mask = PartitionMask(parts, seed=7)
        weights = mask(at(epoch, lengths), index_of(lengths), 2).reward
        summed += gradient_of(Weighted(0.3), replace(record, reward_mask=weights), "policy_logps")
    plain = replace(record, reward_mask=torch.ones_like(record.reward_mask))
    torch.testing.assert_close(summed / parts, gradient_of(Weighted(0.3), plain, "policy_logps"))


def test_parts_follow_the_pair_not_the_batch_and_pairs_have_epochs_of_their_own() -> None:
    lengths = [40, 30, 20, 35]
    features, index = random_features(lengths), index_of(lengths)
    mixed = PartitionMask(5)(replace(features, epoch=torch.tensor([1, 3])), index, 2).reward
    for pair, epoch in ((0, 1), (1, 3)):
        alone = replace(
            features, pair_keys=features.pair_keys[pair : pair + 1], epoch=torch.tensor([epoch])
        )
        of_pair = index // 2 == pair
        found = PartitionMask(5)(alone, index[of_pair] - 2 * pair, 1).reward
        assert torch.equal(found, mixed[of_pair])
    other = PartitionMask(5, seed=1)(replace(features, epoch=torch.tensor([1, 3])), index, 2)
    assert not torch.equal(other.reward, mixed)


def test_validation_weighs_every_token_by_one() -> None:
    lengths = [5, 4]
    features = random_features(lengths)
    assert weights_by_response(PartitionMask(3).eval(), features, lengths) == [[1.0] * 5, [1.0] * 4]
    with pytest.raises(ValueError, match="needs the feature 'epoch'.*from the training loop"):
        PartitionMask(3)(features, index_of(lengths), 1)


def test_one_part_weighs_all_and_none_is_refused() -> None:
    lengths = [5, 4]
    assert weights_by_response(PartitionMask(1), at(2, lengths), lengths) == [[1.0] * 5, [1.0] * 4]
    with pytest.raises(ValueError, match="parts=0: must be at least 1"):
        PartitionMask(0)
