"""A model with rows of embeddings that no token uses, beside one without: as without padding."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sparsepo import (
    PolicyModel,
    ReferenceModel,
    TokenizedPair,
    UniformMask,
    head_of,
    padded_layout,
    verify_head,
)
from sparsepo.compression import unpack_topk
from sparsepo.kernels.token_scoring import LMHead
from sparsepo.masks import LearnedMasks
from sparsepo.model import cut_vocabulary
from sparsepo.objectives import DPO, TDPO2, SparsePO
from sparsepo.scorers import scorer_log_ratios

PAIRS = [TokenizedPair([1, 5, 9], [3, 4, 2], [7, 2]), TokenizedPair([6], [8], [9, 3, 1, 5, 2])]
TOKENS = 11
SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
# A head of its own, the table as a head, a soft-cap, a scale, a bias.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": SIZES | {"tie_word_embeddings": True, "head_dim": 4},
    "gemma2": SIZES | {"head_dim": 4, "query_pre_attn_scalar": 4, "final_logit_softcapping": 3.0},
    "cohere": SIZES | {"logit_scale": 0.3},
    "gptj": {
        "vocab_size": TOKENS,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "rotary_dim": 2,
        "initializer_range": 0.3,
    },
}


def model_of(family: str, seed: int) -> Any:
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **FAMILIES[family]), dtype=torch.float32
    )
    head = made.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return made.eval()


def padded(model: Any, rows: int) -> Any:
    """A copy with embeddings and a head of so many rows; the new ones take a good part of the
    probability.
    """
    found = copy.deepcopy(model)
    found.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (found.get_input_embeddings(), found.get_output_embeddings()):
            torch.nn.init.normal_(layer.weight[TOKENS:], std=0.8)
        bias = getattr(found.get_output_embeddings(), "bias", None)
        if bias is not None:
            bias[TOKENS:] = 1.0
    return found.eval()


def by_hand(
    policy: Any, reference: Any, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probabilities of both, KL(reference || policy)) over the first rows, from the models'
    own logits of every response alone.
    """
    ours, theirs, kl = [], [], []
    for pair in PAIRS:
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            at = slice(len(pair.prompt) - 1, -1)
            one, other = (
                model(input_ids=ids).logits[0, at, :rows].float().log_softmax(-1)
                for model in (policy, reference)
            )
            labels = torch.tensor(list(response))[:, None]
            ours.append(one.gather(1, labels).squeeze(1))
            theirs.append(other.gather(1, labels).squeeze(1).detach())
            kl.append((other.detach().exp() * (other.detach() - one)).sum(-1))
    return torch.cat(ours), torch.cat(theirs), torch.cat(kl)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("of_policy", "of_reference"), [(16, 11), (11, 16), (16, 13)])
def test_scores_and_gradients_are_those_without_padding(
    family: str, of_policy: int, of_reference: int
) -> None:
    """Where both have padding, what they have in common stays: it cannot be told from tokens."""
    plain, other = model_of(family, 0), model_of(family, 1)
    policy, frozen = padded(plain, of_policy), padded(other, of_reference)
    rows = min(of_policy, of_reference)
    logps, reference_logps, kl = by_hand(policy, frozen, rows)
    upstream = torch.linspace(-1, 2, len(logps))
    (logps @ upstream + kl @ upstream.flip(0)).backward()
    wanted = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    cut_vocabulary(frozen, rows)
    reference = ReferenceModel(frozen)
    inputs = padded_layout(PAIRS)
    features = reference.features(inputs, {"reference_logps", "reference_hidden"})
    scores = PolicyModel(policy, UniformMask(), reference.head, rows)(inputs, features)
    assert scores.token_kl is not None and features.reference_logps is not None
    close = {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(scores.policy_logps, logps, **close)
    torch.testing.assert_close(features.reference_logps, reference_logps, **close)
    torch.testing.assert_close(scores.token_kl, kl, **close)
    (scores.policy_logps @ upstream + scores.token_kl @ upstream.flip(0)).backward()
    for name, parameter in policy.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-4, rtol=1e-4)
    gradient = policy.get_output_embeddings().weight.grad
    assert gradient is not None and not gradient[rows:].any(), "padding is pushed nowhere"


@pytest.mark.parametrize("objective", [DPO(0.3), TDPO2(0.3, 0.5), SparsePO(0.3, 0.01, 0.01)])
def test_objectives_and_top_k_are_those_of_the_pair_cut(objective: Any) -> None:
    plain, other = model_of("qwen3", 0), model_of("qwen3", 1)
    inputs = padded_layout(PAIRS)
    masks = LearnedMasks("simple_all", "independent", 16, 2, initializer_range=0.5)
    for wanted in ("reference_hidden", "reference_topk"):
        found = []
        for policy, frozen in ((plain, other), (padded(plain, 64), padded(other, 16))):
            policy.zero_grad()
            cut_vocabulary(frozen, TOKENS)
            reference = ReferenceModel(frozen, topk=4)
            names = {"reference_logps", "reference_layers", wanted}
            features = reference.features(inputs, names)
            head = reference.head if wanted == "reference_hidden" else None
            scores = PolicyModel(policy, masks, head, TOKENS)(inputs, features)
            losses = objective(scores).losses
            losses.sum().backward()
            table = policy.get_input_embeddings().weight.grad[:TOKENS].clone()
            topk = None if features.reference_topk is None else unpack_topk(features.reference_topk)
            found.append(
                [losses, scores.token_kl, table, *([] if topk is None else [topk.ids, topk.logps])]
            )
            masks.zero_grad()
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_cut_is_the_one_without_padding(family: str) -> None:
    plain = model_of(family, 0)
    found = padded(plain, 64)
    ids = torch.tensor([[1, 5, 9, 3]])
    cut_vocabulary(found, TOKENS)
    torch.testing.assert_close(found(input_ids=ids).logits, plain(input_ids=ids).logits)
    verify_head(found)
    assert found.config.vocab_size == TOKENS
    before = found.get_input_embeddings().weight
    cut_vocabulary(found, TOKENS + 5)
    assert found.get_input_embeddings().weight is before, "one that has no more stays as it is"


def test_scorers_are_compared_over_the_rows_that_both_have() -> None:
    positive, negative = model_of("llama", 1), model_of("llama", 2)
    inputs = padded_layout(PAIRS)
    expected = scorer_log_ratios(positive, negative, inputs)
    found = scorer_log_ratios(padded(positive, 16), negative, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found = scorer_log_ratios(positive, padded(negative, 64), inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    beyond = padded_layout([TokenizedPair([1, 5, TOKENS], [3], [7])])
    with pytest.raises(ValueError, match=f"token {TOKENS} is beyond a scorer's vocabulary of 11"):
        scorer_log_ratios(positive, padded(negative, 64), beyond)


def test_heads_are_cut_with_their_bias_and_no_further_than_they_go() -> None:
    head = head_of(model_of("gptj", 0))
    assert head.bias is not None
    torch.testing.assert_close(head.cut(4).logits(torch.eye(16)), head.logits(torch.eye(16))[:, :4])
    assert head.cut(4).weight.is_contiguous(), "the kernels read rows of a matrix"
    assert head.cut(None) is head and head.cut(TOKENS) is head
    with pytest.raises(ValueError, match="a head of 3 rows cannot be cut to 5"):
        LMHead(torch.eye(3)).cut(5)
