"""Layouts, activations, masks and the policy's forward on real (tiny) transformers models."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from sparsepo import (
    FEATURES,
    PolicyModel,
    ReferenceModel,
    SparsePO,
    TokenizedPair,
    UniformMask,
    head_of,
    padded_layout,
    verify_head,
)
from sparsepo.activations import ActivationRecorder, available_hooks
from sparsepo.masks import FrozenMask
from sparsepo.records import Features

PAIRS = [TokenizedPair([1, 5, 9], [3, 4, 2], [7, 2]), TokenizedPair([6], [8], [9, 3, 1, 5, 2])]


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def test_layout_scores_what_single_sequences_score() -> None:
    """Against one unpadded forward per response and torch's own log_softmax."""
    model = llama()
    inputs = padded_layout(PAIRS, pad_multiple=8)
    assert inputs.input_ids.shape == (4, 8)
    scores = PolicyModel(model, UniformMask())(inputs, Features())
    expected = []
    for pair in PAIRS:
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
            expected += [
                log_probs[len(pair.prompt) - 1 + t, token] for t, token in enumerate(response)
            ]
    torch.testing.assert_close(scores.policy_logps, torch.stack(expected), atol=1e-5, rtol=0)
    assert inputs.response_index.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3]


def test_what_lies_in_the_padding_changes_neither_loss_nor_gradient() -> None:
    gradients = []
    for pad_multiple, filler in ((1, 0), (16, 11)):
        model = llama()
        reference = ReferenceModel(llama(1))
        inputs = padded_layout(PAIRS, pad_multiple)
        inputs.input_ids[inputs.attention_mask == 0] = filler
        features = reference.features(inputs, {"reference_logps", "reference_hidden"})
        output = SparsePO(0.5)(PolicyModel(model, UniformMask(), reference.head)(inputs, features))
        output.losses.sum().backward()
        gradients.append((output.losses, model.model.layers[0].mlp.up_proj.weight.grad))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_a_mask_that_reads_the_policy_gets_what_the_step_knows_without_gradient() -> None:
    """Only what it requires: another mask is given none of it."""
    seen: list[Features] = []

    class Watching(FrozenMask):
        def weights(self, features: Features, response_index: Any, num_responses: int) -> Any:
            seen.append(features)
            return torch.ones(len(response_index))

    model, inputs = llama(), padded_layout(PAIRS)
    for requires in (frozenset(), {"policy_logps"}, {"policy_logps", "policy_hidden"}):
        mask = Watching()
        mask.requires = frozenset(requires)
        scores = PolicyModel(model, mask)(inputs, Features())
        given = {name for name in FEATURES if getattr(seen[-1], name) is not None}
        assert given == requires
    assert torch.equal(seen[-1].policy_logps, scores.policy_logps)
    assert scores.policy_logps.requires_grad and not seen[-1].policy_logps.requires_grad
    head = head_of(model)
    own = head.logits(seen[-1].policy_hidden).log_softmax(-1).gather(1, inputs.labels[:, None])
    torch.testing.assert_close(own.squeeze(1), scores.policy_logps)
    assert not seen[-1].policy_hidden.requires_grad
    with pytest.raises(ValueError, match="'policy_square_sum' is not computed"):
        PolicyModel(model, UniformMask(), requires={"policy_square_sum"})


def test_empty_responses_and_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="pair 0 has 1 prompt and 0 scored response tokens"):
        padded_layout([TokenizedPair([1], [], [2])])
    with pytest.raises(ValueError, match="at least one pair"):
        padded_layout([])


def test_llama_hooks_by_hand() -> None:
    """post-rotary q from the definition of rotary embedding (rotate pairs (x_i, x_{i+h/2}) by
    position * theta_i), the rest from modules.
    """
    model = llama()
    ids = torch.tensor([[1, 5, 9, 3]])

    def num_hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model.model(
        input_ids=ids, output_hidden_states=True
    )  # transformers keeps hooks of its own for the hidden states
    before = num_hooks()
    with (
        ActivationRecorder(model.model, available_hooks(model.config)) as recorder,
        torch.no_grad(),
    ):
        states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    layer = model.model.layers[0]
    with torch.no_grad():
        normed = layer.input_layernorm(states[0])
        q = layer.self_attn.q_proj(normed).view(4, 4, 4)  # time, heads, head_dim
        theta = 10000.0 ** (-torch.arange(0, 4, 2) / 4)
        angles = torch.arange(4)[:, None, None] * theta
        a, b = q[..., :2], q[..., 2:]
        rotated = torch.cat(
            [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1
        )
    close = torch.testing.assert_close
    close(
        recorder.recorded["attn.post_rota_emb_q"][0][0],
        rotated.flatten(1).mean(-1),
        atol=1e-6,
        rtol=0,
    )
    close(recorder.recorded["attn.q"][0][0], q.flatten(1).mean(-1), atol=1e-6, rtol=0)
    close(recorder.recorded["resid.post_emb"][0][0], states[0][0].mean(-1), atol=1e-6, rtol=0)
    close(recorder.recorded["resid.torso.post_mlp"][0][0], states[1][0].mean(-1), atol=1e-6, rtol=0)
    close(recorder.recorded["resid.post_ln_f"][0][0], states[2][0].mean(-1), atol=1e-6, rtol=0)
    assert set(recorder.recorded) == set(available_hooks(model.config)) - {"logits"}
    assert num_hooks() == before, "hooks must not outlive the recorder"


SMALL: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize(
    ("config", "field", "neutral"),
    [
        (
            Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.05),
            "final_logit_softcapping",
            None,
        ),
        (CohereConfig(**SMALL, logit_scale=0.25), "logit_scale", 1.0),
        (GraniteConfig(**SMALL, logits_scaling=3.0), "logits_scaling", 1.0),
    ],
)
def test_head_scaling_is_honoured_not_ignored(
    config: Any, field: str, neutral: float | None
) -> None:
    """Our log-probabilities equal those of the model's own logits; without the field they do
    not.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    verify_head(model)
    inputs = padded_layout(PAIRS[:1])
    ours = PolicyModel(model, UniformMask())(inputs, Features()).policy_logps
    log_probs = (
        model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        .logits.log_softmax(-1)
        .flatten(0, 1)
    )
    torch.testing.assert_close(ours, log_probs[inputs.score_rows, inputs.labels], atol=1e-5, rtol=0)
    setattr(config, field, neutral)
    assert not torch.allclose(
        ours, PolicyModel(model, UniformMask())(inputs, Features()).policy_logps, atol=1e-4
    )


def test_a_head_with_a_bias_keeps_it() -> None:
    """GPT-J's head has one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        GPTJConfig(vocab_size=17, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=32)
    ).eval()
    model.lm_head.bias.data.normal_()
    verify_head(model)
    inputs = padded_layout(PAIRS[:1])
    ours = PolicyModel(model, UniformMask())(inputs, Features()).policy_logps
    log_probs = (
        model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        .logits.log_softmax(-1)
        .flatten(0, 1)
    )
    torch.testing.assert_close(ours, log_probs[inputs.score_rows, inputs.labels], atol=1e-5, rtol=0)


def test_logits_changed_in_an_unknown_way_are_refused() -> None:
    model = llama()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.5)
    with pytest.raises(
        ValueError,
        match="LlamaForCausalLM changes its logits beyond head bias, soft-cap .* and scale .*: "
        "add its rule to head_of",
    ):
        verify_head(model)
