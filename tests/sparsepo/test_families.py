"""Model families without a table of hook points: scores and gradients against transformers' own
logits, sequence by sequence.
"""

import re
from typing import Any

import pytest
import torch
from tiny_families import draw_pairs
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

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
from sparsepo.backbone import decoder_layers
from sparsepo.masks import UniformMask
from sparsepo.model import verify_head
from sparsepo.records import ModelInputs

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 29, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
BETA = 0.5
# Case -> (options beside SIZES, why its rows are not packed).
FAMILIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "granite": (
        {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
        None,
    ),
    "mixtral": ({"num_local_experts": 2, "sliding_window": 4}, None),
    "opt": ({"ffn_dim": 24, "word_embed_proj_dim": 8}, None),
    "falcon": ({}, None),
    "falcon-alibi": ({"alibi": True}, "it does not take a mask of its own"),
    "starcoder2": ({"sliding_window": 4}, None),
    "phi": ({}, None),
    "gemma": ({"head_dim": 4}, None),
    "cohere": ({"logit_scale": 0.5}, None),
    "cohere2": ({"sliding_window": 4}, None),
    "stablelm": ({}, None),
    "gpt_oss": ({"num_local_experts": 4, "sliding_window": 4, "head_dim": 4}, None),
    "xglm": ({"d_model": 16, "attention_heads": 4, "num_layers": 2, "ffn_dim": 24}, None),
    "llama4_text": (
        {"intermediate_size_mlp": 24, "num_local_experts": 2, "attention_chunk_size": 4,
         "head_dim": 4},
        "it has layers of kind chunked_attention",
    ),
    "gpt_neo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
         "window_size": 4},
        r"it masks by the place in the row \(transformer.h.0.attn.attention.bias \[1, 1, 64, "
        r"64\]\)",
    ),
    "bloom": ({"n_layer": 2, "n_head": 4}, "it does not take a mask of its own"),
    "mpt": ({"d_model": 16, "n_heads": 4, "n_layers": 2}, "it ignores positions or masks"),
    "mamba": ({"state_size": 4}, "it has layers of kind linear_attention"),
    "rwkv": ({"attention_hidden_size": 16}, "it ignores positions or masks"),
    "recurrent_gemma": (
        {"lru_width": 16, "num_key_value_heads": 1, "logits_soft_cap": 3.0},
        "linear_attention|ignores positions",
    ),
}  # fmt: skip


def build(case: str, seed: int = 1, **more: Any) -> Any:
    torch.manual_seed(seed)
    options = FAMILIES[case][0] if case in FAMILIES else {}
    config = AutoConfig.for_model(case.removesuffix("-alibi"), **{**SIZES, **options, **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


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


@pytest.mark.parametrize("case", FAMILIES)
def test_scores_and_gradients_of_dpo_are_those_of_plain_transformers(case: str) -> None:
    """-log sigmoid(beta * margin) written out with log_softmax; another seed of the same model
    is the reference.
    """
    pairs = draw_pairs(5, vocabulary=29)
    policy, reference = build(case), build(case, seed=2)
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
            torch.testing.assert_close(
                dict(policy.named_parameters())[name].grad, gradient, atol=1e-4, rtol=1e-3, msg=name
            )
    assert len(gradients) > 5


@pytest.mark.parametrize("case", FAMILIES)
def test_rows_are_packed_where_that_changes_nothing(case: str) -> None:
    expected, obstacle = FAMILIES[case][1], enable_packing(build(case))
    assert obstacle is None if expected is None else re.search(expected, str(obstacle)), obstacle


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
    options = FAMILIES[case][0] if case in FAMILIES else {"ffn_dim": 24} if case == "moshi" else {}
    model = build(case, **{**options, **window, "max_position_embeddings": 512})
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
    model = build("doge", keep_window_size=9000, max_position_embeddings=20000)
    assert "keep_window_size = 9000 may be a window, and only 4096 tokens are probed" in str(
        enable_packing(model)
    )


def test_the_window_of_a_config_is_the_same_after_the_probe() -> None:
    model = build("starcoder2", sliding_window=37)
    assert enable_packing(model) is None and model.config.sliding_window == 37
    windows = build("starcoder2", sliding_window=37)
    vars(windows.config)["sliding_window"] = [
        4,
        37,
    ]  # as a configuration class of the model's own may say
    assert "windows of several lengths" in str(enable_packing(windows))


def test_encoders_that_see_what_follows_are_refused() -> None:
    with pytest.raises(ValueError, match="BertGenerationDecoder is no causal model here"):
        verify_head(build("bert-generation", is_decoder=False))
    verify_head(build("bert-generation", is_decoder=True))


@pytest.mark.parametrize("case", ["llama4_text", "mamba"])
def test_hook_points_are_asked_for_by_who_needs_them_alone(case: str) -> None:
    """The logits are every family's; states of all layers are too; any other point needs the
    table.
    """
    model = build(case)
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
