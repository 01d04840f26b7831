"""Model families without a table of hook points: scores and gradients against transformers' own
logits, sequence by sequence.
"""

import re
from typing import Any

import pytest
import torch
from families import matrix, tiny_model
from tiny_families import draw_pairs
from torch.nn.functional import logsigmoid

from pipelines.models.families import STREAMS
from sparsepo import (
    DPO,
    PolicyModel,
    ReferenceModel,
    TokenizedPair,
    enable_packing,
    packed_layout,
    padded_layout,
)
from sparsepo.activations import FAMILIES as TABLES, select_hooks
from sparsepo.backbone import (
    backbone_of,
    decoder_layers,
    freeze_other_parts,
    has_decoder_layers,
    reads_more_than_text,
)
from sparsepo.masks import UniformMask
from sparsepo.model import head_of, verify_head
from sparsepo.records import Features, ModelInputs

BETA = 0.5
# Families whose rows are not packed, and what is said of it; the table of docs/families.md has all.
NOT_PACKED = {
    "bloom": "it does not take a mask of its own",
    "gpt_neo": r"it masks by the place in the row \(transformer.h.0.attn.attention.bias",
    "llama4_text": "it has layers of kind chunked_attention",
    "mamba": "it has layers of kind linear_attention|ignores positions or masks",
    "mpt": "it does not take a mask of its own",
    "recurrent_gemma": "linear_attention|ignores positions",
    "rwkv": "it ignores positions or masks",
}


def plain_logps(model: Any, pairs: list[TokenizedPair]) -> list[torch.Tensor]:
    """Log-probabilities of every response's tokens by the model's own logits, one sequence at a
    time.
    """
    found = []
    for pair in pairs:
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            logits = (
                model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1].float()
            )
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    return found


def layouts(model: Any, pairs: list[TokenizedPair]) -> list[ModelInputs]:
    """The layouts that `auto` may choose for a model."""
    found = [padded_layout(pairs)]
    if enable_packing(model) is None:
        found += [packed_layout(pairs), packed_layout(pairs, row_tokens=150)]
    return found


@pytest.mark.parametrize("family", matrix())
def test_scores_and_gradients_of_dpo_are_those_of_plain_transformers(family: str) -> None:
    """-log sigmoid(beta * margin) written out with log_softmax; another seed of the same model
    is the reference. Rows are padded, and packed where `auto` would pack them.
    """
    pairs = draw_pairs(5, vocabulary=29)
    policy, reference = tiny_model(family), tiny_model(family, seed=2)
    verify_head(policy)
    with torch.no_grad():
        expected_reference = plain_logps(reference, pairs)
    expected = plain_logps(policy, pairs)
    ratios = torch.stack(
        [(mine - theirs).sum() for mine, theirs in zip(expected, expected_reference, strict=True)]
    ).view(-1, 2)
    losses = -logsigmoid(BETA * (ratios[:, 0] - ratios[:, 1]))
    losses.sum().backward()
    gradients = {
        name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None
    }
    for inputs in layouts(policy, pairs):
        features = ReferenceModel(reference).features(inputs, ["reference_logps"])
        torch.testing.assert_close(
            features.reference_logps, torch.cat(expected_reference), atol=1e-5, rtol=1e-4
        )
        policy.zero_grad()
        scores = PolicyModel(policy, UniformMask())(inputs, features)
        torch.testing.assert_close(scores.policy_logps, torch.cat(expected), atol=1e-5, rtol=1e-4)
        output = DPO(BETA)(scores)
        output.losses.sum().backward()
        torch.testing.assert_close(output.losses, losses, atol=1e-5, rtol=1e-4)
        for name, gradient in gradients.items():
            found = dict(policy.named_parameters())[name].grad
            torch.testing.assert_close(
                found, gradient, atol=1e-4, rtol=2e-3, msg=lambda line, at=name: f"{at}: {line}"
            )
    assert len(gradients) > 5


@pytest.mark.parametrize("family", NOT_PACKED)
def test_what_stands_against_packed_rows_is_said(family: str) -> None:
    assert re.search(NOT_PACKED[family], str(enable_packing(tiny_model(family))))


@pytest.mark.parametrize("family", matrix())
def test_states_of_all_layers_are_those_of_transformers(family: str) -> None:
    """Where a family has one state per token and layer; the others are refused by name."""
    model = tiny_model(family)
    inputs = padded_layout(draw_pairs(3, vocabulary=29))
    reference = ReferenceModel(model)
    if family in STREAMS:
        with pytest.raises(ValueError, match="states of layers: a layer gives"):
            reference.features(inputs, ["reference_layers"])
        return
    if not has_decoder_layers(model):
        assert family in ("hrm_text", "longcat_flash")
        return
    found = reference.features(inputs, ["reference_layers"]).reference_layers
    with torch.no_grad():
        states = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    assert found is not None and found.shape[1] == len(decoder_layers(model))
    # Before all layers come the embeddings; what comes before a layer stands there in some.
    first = 0 if family in ("falcon_mamba", "mamba", "mamba2", "rwkv") else 1
    for layer in range(found.shape[1] - 1):
        expected = states[first + layer].flatten(0, 1)[inputs.score_rows]
        torch.testing.assert_close(found[:, layer], expected, atol=1e-5, rtol=1e-4)
    if family != "opt":  # whose last states are projected
        last = states[-1].flatten(0, 1)[inputs.score_rows]
        torch.testing.assert_close(found[:, -1], last, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "window"),
    [
        ("doge", {"keep_window_size": 150}),
        ("gpt_neo", {"window_size": 150}),
        ("moshi", {"sliding_window": 150}),
    ],
)
def test_a_window_that_masks_do_not_follow_is_found_however_long(
    case: str, window: dict[str, int]
) -> None:
    """Doge keeps the heaviest of a row's places, GPT-Neo those near in the row, Moshi has no
    window where transformers builds its mask.
    """
    model = tiny_model(case, **{**window, "max_position_embeddings": 512})
    for name, buffer in list(model.named_buffers()):
        if (
            buffer.dtype == torch.bool
        ):  # GPT-Neo's triangle gives it away; the probe has to find it without
            parent = model.get_submodule(name.rpartition(".")[0])
            parent.register_buffer(
                name.rpartition(".")[2], buffer.to(torch.int32), persistent=False
            )
            parent.forward = _with_boolean_mask(parent)
    pairs = [TokenizedPair([3, 4, 5], [i % 23 + 3 for i in range(200)], [7, 8])]
    if case != "doge":  # before transformers 5.23 Doge may count padding among the places it keeps
        with torch.no_grad():
            expected = torch.cat(plain_logps(model, pairs))
        found = (
            ReferenceModel(model)
            .features(padded_layout(pairs), ["reference_logps"])
            .reference_logps
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert "it ignores positions or masks" in str(enable_packing(model))


def _with_boolean_mask(attention: Any) -> Any:
    forward = attention.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        attention.bias = attention.bias.bool()
        try:
            return forward(*args, **kwargs)
        finally:
            attention.bias = attention.bias.to(torch.int32)

    return run


def test_a_window_longer_than_the_probe_is_named() -> None:
    model = tiny_model("doge", keep_window_size=9000, max_position_embeddings=20000)
    assert "keep_window_size = 9000 may be a window, and only 4096 tokens are probed" in str(
        enable_packing(model)
    )


def test_the_window_of_a_config_is_the_same_after_the_probe() -> None:
    model = tiny_model("starcoder2", sliding_window=37)
    assert enable_packing(model) is None and model.config.sliding_window == 37
    windows = tiny_model("starcoder2", sliding_window=37)
    vars(windows.config)["sliding_window"] = [
        4,
        37,
    ]  # as a configuration class of the model's own may say
    assert "windows of several lengths" in str(enable_packing(windows))


def test_encoders_that_see_what_follows_are_refused() -> None:
    with pytest.raises(ValueError, match="BertGenerationDecoder is no causal model here"):
        verify_head(tiny_model("bert-generation", is_decoder=False))
    verify_head(tiny_model("bert-generation", is_decoder=True))


@pytest.mark.parametrize("case", ["llama4_text", "mamba"])
def test_hook_points_are_asked_for_by_who_needs_them_alone(case: str) -> None:
    """The logits are every family's; states of all layers are too; any other point needs the
    table.
    """
    model = tiny_model(case)
    assert model.config.model_type not in [name for table in TABLES for name in table.model_types]
    assert (
        select_hooks(model.config, "logits")
        == select_hooks(model.config, ["logits"])
        == ("logits",)
    )
    inputs = padded_layout(draw_pairs(3, vocabulary=29))
    features = ReferenceModel(model, hooks="logits").features(
        inputs, ["activation_mask", "reference_layers", "reference_hidden"]
    )
    assert (
        features.reference_layers is not None
        and features.reference_hidden is not None
        and features.activation_mask is not None
    )
    with torch.no_grad():
        # Before all layers come the embeddings, in every family but Mamba.
        states = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            output_hidden_states=True,
        ).hidden_states
    first = states[0 if case == "mamba" else 1].flatten(0, 1)[inputs.score_rows]
    torch.testing.assert_close(features.reference_layers[:, 0], first, atol=1e-5, rtol=1e-4)
    assert len(decoder_layers(model)) == 2
    with pytest.raises(ValueError, match=rf"no activation hook table for model type '{case}'"):
        ReferenceModel(model, hooks="mlp").features(inputs, ["activation_mask"])


LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [4.0, 8.0],
    "original_max_position_embeddings": 12,
}


@pytest.mark.parametrize("family", ["phi3", "llama", "phimoe", "minicpm3"])
def test_rows_of_longrope_models_do_not_see_each_other(family: str) -> None:
    """Short rows beside long ones have the scores and gradients that they have alone."""
    more = {
        "phi3": {"original_max_position_embeddings": 12},
        "phimoe": {"rope_parameters": {**LONG, "short_mscale": 1.1, "long_mscale": 1.3}},
        "minicpm3": {"rope_parameters": {**LONG, "factor": 4.0}},
    }.get(family, {})
    options = {"rope_parameters": LONG, **more}
    pairs = [
        TokenizedPair([3, 4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [7, 8]),
        TokenizedPair([9, 3], [5, 6, 7], [4] * 20),
        TokenizedPair([9, 3], [5, 6], [4]),
    ]
    model = tiny_model(family, **options)
    expected = plain_logps(model, pairs)
    torch.cat(expected).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    inputs = padded_layout(pairs)
    found = PolicyModel(model, UniformMask())(inputs, Features()).policy_logps
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-4)
    found.sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            dict(model.named_parameters())[name].grad, gradient, atol=1e-4, rtol=1e-3
        )
    with torch.no_grad():  # it matters: one set of frequencies for all rows is another result
        fresh = tiny_model(family, **options)
        mixed = fresh(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
    mixed = mixed.log_softmax(-1).flatten(0, 1)[inputs.score_rows, inputs.labels]
    assert float((mixed - found.detach()).abs().max()) > 1e-3


def test_packed_rows_of_a_longrope_model_hold_while_all_sequences_are_short() -> None:
    model = tiny_model("llama", rope_parameters={**LONG, "original_max_position_embeddings": 64})
    refused = "sequences beyond 64 tokens have other rotary features (longrope)"
    assert enable_packing(model) == enable_packing(model, longest=65) == refused
    assert enable_packing(model, longest=64) is None
    pairs = draw_pairs(5, vocabulary=29)
    with torch.no_grad():
        expected = torch.cat(plain_logps(model, pairs))
        found = PolicyModel(model, UniformMask())(packed_layout(pairs, 150), Features())
    torch.testing.assert_close(found.policy_logps, expected, atol=1e-5, rtol=1e-4)


def test_rows_of_the_head_beyond_the_vocabulary_are_left_out() -> None:
    """Inkling's head has more rows than its logits have tokens."""
    model = tiny_model("inkling_text", vocabulary=32, unpadded_vocab_size=29)
    assert head_of(model).weight.shape[0] == 29
    pairs = draw_pairs(3, vocabulary=29)
    with torch.no_grad():
        found = PolicyModel(model, UniformMask())(padded_layout(pairs), Features()).policy_logps
        expected = torch.cat(plain_logps(model, pairs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "fuyu", "gemma4"])
def test_the_language_model_of_a_composite_one_is_run(family: str) -> None:
    model = tiny_model(family)
    assert reads_more_than_text(model)
    text = backbone_of(model)
    assert text.config.model_type in ("gemma3_text", "persimmon", "gemma4_text")
    layers = decoder_layers(model)
    assert all(any(layer is part for part in text.modules()) for layer in layers)
    freeze_other_parts(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not [name for name in trained if "vision" in name or "embed_vision" in name]
    pairs = draw_pairs(3, vocabulary=29)
    scores = PolicyModel(model, UniformMask())(padded_layout(pairs), Features())
    scores.policy_logps.sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == trained
