"""What other frozen models say of pairs, against plain forwards of single sequences."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsepo import TokenizedPair, padded_layout
from sparsepo.scorers import Pooling, pooled_states, scorer_log_ratios


def build(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=19, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_is_in_no_pooled_state(pooling: Pooling) -> None:
    model, texts = build(0), [[5, 2, 7, 11], [3], [17, 4]]
    found = pooled_states(model, texts, pooling)
    for vector, ids in zip(found, texts, strict=True):
        with torch.no_grad():
            states = model.model(torch.tensor([ids])).last_hidden_state[0]
        expected = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at least one token"):
        pooled_states(model, [[1], []], pooling)


def test_a_ratio_is_the_positive_scorers_less_the_negative_ones() -> None:
    positive, negative = build(1), build(2)
    pair = TokenizedPair([5, 2], [7, 11, 3], [4])
    expected = []
    for response in pair.responses():
        ids = torch.tensor([[*pair.prompt, *response]])
        with torch.no_grad():
            one, other = (
                model(ids).logits[0, 1:-1].log_softmax(-1) for model in (positive, negative)
            )
        labels = torch.tensor(list(response))[:, None]
        expected.append((one - other).gather(1, labels).squeeze(1))
    found = scorer_log_ratios(positive, negative, padded_layout([pair]))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
