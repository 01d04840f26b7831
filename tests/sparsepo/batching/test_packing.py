"""Packed rows (prompt shared, several pairs a row) against the padded layout, on a tiny model of
every family.
"""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_families import CONFIGS, draw_pairs
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
)

from sparsepo import (
    LearnedMasks,
    PolicyModel,
    ReferenceModel,
    SparsePO,
    TokenizedPair,
    enable_packing,
    packed_layout,
    padded_layout,
)
from sparsepo.backbone import attention_argument, attention_as_trained
from sparsepo.records import ModelInputs

# Windows shorter than the sequences, so that positions and not places in the row must be counted.
WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 5},
    "phi3": {"sliding_window": 4},
    "gemma2": {"sliding_window": 3},
}
FEATURES = ("reference_logps", "reference_hidden", "reference_layers", "activation_mask")


def build(case: str) -> Any:
    torch.manual_seed(1)
    config = AutoConfig.for_model(case.split("-")[0], **CONFIGS[case], **WINDOWS.get(case, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def with_context(pair: TokenizedPair) -> TokenizedPair:
    """Its first token and some in the middle are not scored where there are enough."""
    chosen, rejected = pair.responses()
    return replace(
        pair,
        chosen_context=(0, 1, 3, 5) if len(chosen) > 5 else (),
        rejected_context=(1, 2) if len(rejected) > 2 else (),
    )


@pytest.mark.parametrize("case", CONFIGS)
def test_features_and_gradients_equal_the_padded_layout(case: str) -> None:
    """Each layout is its own computation; float64 leaves no room for a leak between responses or
    pairs.
    """
    pairs = [with_context(pair) for pair in draw_pairs(7)]
    assert any(pair.chosen_context for pair in pairs) and not all(p.chosen_context for p in pairs)
    # transformers' own eager mask overflows to NaN in float64 where a padding row's window holds
    # padding alone.
    dtype, tolerance = (torch.float32, 1e-4) if case == "gemma2" else (torch.float64, 1e-6)
    assert enable_packing(build(case)) is None
    layouts = [
        padded_layout(pairs),
        packed_layout(pairs),
        packed_layout(pairs, row_tokens=40, pad_multiple=8),
    ]
    assert (
        layouts[2].input_ids.shape[0]
        < layouts[1].input_ids.shape[0]
        == 7
        < layouts[0].input_ids.shape[0]
    )
    results = []
    for inputs in layouts:
        reference = ReferenceModel(build(case).to(dtype))
        features = reference.features(inputs, FEATURES)
        torch.manual_seed(2)
        policy = build(case).to(dtype)
        policy.get_input_embeddings().weight.data += 0.01
        masks = LearnedMasks("simple_last", "independent", 16, 2).to(dtype)
        model = PolicyModel(policy, masks, reference.head)
        output = SparsePO(0.5)(model(inputs, features))
        output.losses.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([*(getattr(features, name) for name in FEATURES), output.losses, *gradients])
    for other in results[1:]:
        assert len(other) == len(results[0])
        for value, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(value, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "mistral"])
def test_block_mask_attends_to_what_the_dense_mask_allows(case: str) -> None:
    """FlexAttention's own (uncompiled) kernel with the BlockMask against softmax under the dense
    mask; rows over many blocks.
    """
    from torch.nn.attention.flex_attention import flex_attention

    rng = random.Random(3)
    pairs = [
        TokenizedPair([1] * rng.randint(1, 150), [2] * rng.randint(1, 90), [3] * rng.randint(1, 90))
        for _ in range(9)
    ]
    inputs = packed_layout(pairs, row_tokens=700, pad_multiple=128)
    model = build(case)
    model.config._attn_implementation = "sdpa"
    dense = attention_argument(model, inputs)
    model.config._attn_implementation = "flex_attention"
    blocks = attention_argument(model, inputs)
    rows, width = inputs.input_ids.shape
    torch.manual_seed(0)
    query, key, value = (torch.randn(rows, 2, width, 16) for _ in range(3))
    for kind in dense if isinstance(dense, dict) else [None]:
        allowed, block = (dense[kind], blocks[kind]) if kind else (dense, blocks)
        expected = (
            torch.softmax((query @ key.transpose(-1, -2) / 4).masked_fill(~allowed, -torch.inf), -1)
            @ value
        )
        torch.testing.assert_close(
            flex_attention(query, key, value, block_mask=block), expected, atol=1e-5, rtol=0
        )
    share = float(block.kv_num_blocks.sum()) / (rows * (width // 128) ** 2)
    assert share < 0.5, "blocks of other pairs are skipped"


def test_positions_and_predicting_rows_are_those_of_single_sequences() -> None:
    """Two pairs by hand: [a b | c d | e] and [f | g | h i] in one row of eleven."""
    pairs = [TokenizedPair([1, 2], [3, 4], [5]), TokenizedPair([6], [7], [8, 9])]
    inputs = packed_layout(pairs, row_tokens=9, pad_multiple=11)
    assert inputs.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1, 2, 0, 0]]
    assert inputs.attention_mask.tolist() == [[1] * 9 + [0] * 2]
    assert inputs.labels.tolist() == [3, 4, 5, 7, 8, 9]
    assert inputs.score_rows.tolist() == [1, 2, 1, 5, 5, 7]
    assert inputs.response_index.tolist() == [0, 0, 1, 2, 3, 3]
    pairs = [replace(pairs[0], chosen_context=(0, 1)), replace(pairs[1], rejected_context=(1, 2))]
    scored = packed_layout(pairs, row_tokens=9, pad_multiple=11)
    for same in ("input_ids", "position_ids", "attention_mask", "segments"):
        assert torch.equal(getattr(scored, same), getattr(inputs, same))
    assert scored.labels.tolist() == [4, 5, 7, 8]
    assert scored.score_rows.tolist() == [2, 1, 5, 5]
    assert scored.response_index.tolist() == [0, 1, 2, 3]
    padded = padded_layout(pairs)
    assert padded.labels.tolist() == [4, 5, 7, 8]
    assert padded.score_rows.tolist() == [2, 4 + 1, 8 + 0, 12 + 0]
    assert [pair.num_scored() for pair in pairs] == [(1, 1), (1, 1)]
    with pytest.raises(ValueError, match="0 scored response tokens"):
        padded_layout([replace(pairs[0], rejected_context=(0, 1))])


def test_a_pair_that_does_not_fit_a_row_is_named() -> None:
    with pytest.raises(ValueError, match="pair 1 has 6 tokens, a row has 5"):
        packed_layout(
            [TokenizedPair([1], [2], [3]), TokenizedPair([1, 2], [3, 4], [5, 6])], row_tokens=5
        )
    with pytest.raises(ValueError, match="pair 0 has 0 prompt and 1 scored response tokens"):
        packed_layout([TokenizedPair([], [1], [2])])


def test_models_that_packing_would_change_are_refused() -> None:
    """ALiBi is made from the padding mask; a position table that is not asked counts places;
    states of a layer cannot be masked.
    """
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=19, hidden_size=16, n_layer=2, n_head=4)).eval()
    assert "it does not take a mask of its own" in str(enable_packing(bloom))
    deaf = build("llama")
    forward = deaf.model.forward
    deaf.model.forward = lambda **inputs: forward(**{**inputs, "position_ids": None})
    assert "it ignores positions or masks" in str(enable_packing(deaf))
    mixed = build("llama")
    mixed.config.layer_types = ["full_attention", "linear_attention"]
    assert enable_packing(mixed) == "it has layers of kind linear_attention"


def test_pairs_without_rejected_responses_pack_too() -> None:
    pairs = draw_pairs(5, has_single=True)
    model = ReferenceModel(build("llama").double())
    apart, packed = (
        model.features(f(pairs), ["reference_logps"]).reference_logps
        for f in (padded_layout, packed_layout)
    )
    torch.testing.assert_close(packed, apart, atol=1e-6, rtol=0)


def test_one_leaking_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the equality above: a rejected response that sees the chosen one
    changes its states.
    """
    pairs = draw_pairs(4)
    model = build("llama").double()
    right = (
        ReferenceModel(model).features(packed_layout(pairs), ["reference_hidden"]).reference_hidden
    )
    inputs = packed_layout(pairs)
    assert inputs.segments is not None
    leaking = ModelInputs(
        **{
            **inputs.__dict__,
            "segments": torch.where(inputs.segments % 4 == 1, inputs.segments - 1, inputs.segments),
        }
    )
    wrong = ReferenceModel(model).features(leaking, ["reference_hidden"]).reference_hidden
    assert right is not None
    assert wrong is not None
    assert float((right - wrong).abs().max()) > 1e-3


def test_attention_without_gradients_is_that_of_training() -> None:
    """torch compiles a form per grad mode; where there is only one, a training builds one less.

    Another attention has FlexAttention's name here, which has no gradients on CPUs.
    """
    model = build("llama")
    inputs = packed_layout(draw_pairs(6, seed=2), row_tokens=128)
    model.config._attn_implementation = "sdpa"
    mask = attention_argument(model, inputs)
    model.config._attn_implementation = "flex_attention"
    attend, flex = AttentionInterface()["sdpa"], AttentionInterface()["flex_attention"]
    modes: list[bool] = []

    def recorded(module: Any, query: Any, *given: Any, **options: Any) -> Any:
        modes.append(torch.is_grad_enabled() and query.requires_grad)
        return attend(module, query, *given, **options)

    def states() -> tuple[Any, set[bool]]:
        modes.clear()
        found = model.model(
            input_ids=inputs.input_ids,
            attention_mask=mask,
            position_ids=inputs.position_ids,
            use_cache=False,
        )
        return found.last_hidden_state, set(modes)

    AttentionInterface.register("flex_attention", recorded)
    try:
        with torch.no_grad():
            before, modes_before = states()
            with attention_as_trained():
                within, modes_within = states()
            after, modes_after = states()
        with attention_as_trained():
            trained, modes_trained = states()
        assert AttentionInterface()["flex_attention"] is recorded
    finally:
        AttentionInterface.register("flex_attention", flex)
    assert (modes_before, modes_within, modes_after) == ({False}, {True}, {False})
    assert modes_trained == {True} and trained.requires_grad and not within.requires_grad
    for other in (before, after, trained.detach()):
        assert torch.equal(within, other)
