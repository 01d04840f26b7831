"""Masks beside a policy that peft has wrapped: trained, saved, and the adapter's base left
alone.
"""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsepo import (
    LearnedMasks,
    PolicyModel,
    ReferenceModel,
    SparsePO,
    TokenizedPair,
    padded_layout,
)

peft = pytest.importorskip("peft")
PAIRS = [TokenizedPair([1, 5, 9], [3, 4, 2], [7, 2]), TokenizedPair([6], [8], [9, 3, 1, 5, 2])]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=17,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def test_masks_train_under_lora_and_are_saved(tmp_path: Path) -> None:
    """The released code freezes them silently.

    Scores at the start equal those of the model without an adapter.
    """
    inputs, reference = padded_layout(PAIRS), ReferenceModel(llama())
    masks = LearnedMasks("simple_all", "independent", 16, 2, initializer_range=0.5)
    features = reference.features(inputs, SparsePO.requires | masks.requires)
    bare = PolicyModel(llama(), masks, reference.head)(inputs, features)
    adapted = peft.get_peft_model(
        llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    policy = PolicyModel(adapted.eval(), masks, reference.head)
    torch.testing.assert_close(policy(inputs, features).policy_logps, bare.policy_logps)

    trainable = [p for p in policy.parameters() if p.requires_grad]
    names = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert any("lora_A" in n for n in names) and any(n.startswith("masks.") for n in names)
    assert not any("embed_tokens" in n for n in names)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        SparsePO(0.5, 0.01, 0.01)(policy(inputs, features)).losses.mean().backward()
        optimizer.step()
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert {"masks.reward.scores.weight", "masks.kl.scores.weight"} <= moved
    assert moved <= names
    masks.save_pretrained(tmp_path)
    again = LearnedMasks.from_pretrained(tmp_path)
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in masks.state_dict().items()
    )


def test_adapters_that_would_be_ignored_are_refused() -> None:
    inputs = padded_layout(PAIRS)
    masks = LearnedMasks("simple_last", "common", 16, 2)
    features = ReferenceModel(llama()).features(inputs, {"reference_hidden", "reference_logps"})
    prompt = peft.get_peft_model(
        llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(
        ValueError, match="adapter 'default' is PROMPT_TUNING: only methods without virtual tokens"
    ):
        PolicyModel(prompt, masks)(inputs, features)
    head = peft.get_peft_model(
        llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    )
    with pytest.raises(
        ValueError,
        match="LM head of LlamaForCausalLM is a Linear: leave it out of peft's target modules",
    ):
        PolicyModel(head, masks)(inputs, features)
