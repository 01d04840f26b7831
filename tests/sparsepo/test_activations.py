"""Hook tables: on a tiny model of every family, recorded means equal what the model's own
functions were given.
"""

import contextlib
import sys
from typing import Any

import pytest
import torch
from tiny_families import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, GPTNeoXConfig

from sparsepo.activations import (
    FAMILIES,
    ActivationRecorder,
    available_hooks,
    family_of,
    select_hooks,
)

IDS = torch.tensor([[1, 5, 9, 3, 7, 2], [4, 4, 8, 1, 6, 0]])


def build(case: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.split("-")[0], **CONFIGS[case])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # norms that start as 1 or 0 would hide a wrong hook
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def record(model: Any) -> dict[str, dict[int, torch.Tensor]]:
    with (
        ActivationRecorder(model.base_model, available_hooks(model.config)) as recorder,
        torch.no_grad(),
    ):
        model.base_model(input_ids=IDS)
    return recorder.recorded


def test_every_family_has_a_case() -> None:
    assert {name for family in FAMILIES for name in family.model_types} == {
        case.split("-")[0] for case in CONFIGS
    }


@pytest.mark.parametrize("case", CONFIGS)
def test_queries_keys_and_values_are_those_of_the_attention(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the attention function and the rotary embedding were called with, against the hooks."""
    model = build(case)
    module = sys.modules[type(model).__module__]
    seen: list[tuple[torch.Tensor, ...]] = []
    before_rotary: list[torch.Tensor] = []
    has_rotary = hasattr(module, "apply_rotary_pos_emb")
    if case == "gptj":
        attend = module.GPTJAttention._attn
        rotate = module.apply_rotary_pos_emb

        def spy_attn(
            self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any = None
        ) -> Any:
            seen.append((query, key, value))
            return attend(self, query, key, value, mask)

        monkeypatch.setattr(module.GPTJAttention, "_attn", spy_attn)
    else:
        attend = module.eager_attention_forward

        def spy(
            owner: Any,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            seen.append((query, key, value))
            return attend(owner, query, key, value, *args, **kwargs)

        monkeypatch.setattr(module, "eager_attention_forward", spy)
        if has_rotary:
            rotate = module.apply_rotary_pos_emb

            def spy_rotary(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                before_rotary.extend((q, k))
                return rotate(q, k, *args, **kwargs)

            monkeypatch.setattr(module, "apply_rotary_pos_emb", spy_rotary)
    with torch.no_grad():
        model.base_model(input_ids=IDS)
    monkeypatch.undo()
    recorded = record(model)

    def mean(
        heads: torch.Tensor,
    ) -> torch.Tensor:  # [batch, heads, time, features] -> [batch, time]
        return heads.float().mean((1, 3))

    assert len(seen) == 2
    for layer, (query, key, value) in enumerate(seen):
        names = (
            ("attn.post_rota_emb_q", "attn.post_rota_emb_k") if has_rotary else ("attn.q", "attn.k")
        )
        for name, expected in zip((*names, "attn.v"), (query, key, value), strict=True):
            torch.testing.assert_close(
                recorded[name][layer], mean(expected), atol=1e-5, rtol=0, msg=f"{name} {layer}"
            )
    for at, expected in enumerate(before_rotary):
        torch.testing.assert_close(
            recorded[("attn.q", "attn.k")[at % 2]][at // 2], mean(expected), atol=1e-5, rtol=0
        )
    assert bool(before_rotary) == (has_rotary and case != "gptj")


@pytest.mark.parametrize("case", CONFIGS)
def test_the_residual_stream_adds_up(case: str) -> None:
    """Means are linear: stream before + attention + MLP = stream after, against transformers'
    own hidden states.
    """
    model = build(case)
    recorded = record(model)
    with torch.no_grad():
        states = model.base_model(input_ids=IDS, output_hidden_states=True)
    close = torch.testing.assert_close
    close(recorded["resid.post_emb"][0], states.hidden_states[0].mean(-1), atol=1e-5, rtol=0)
    close(recorded["resid.post_ln_f"][0], states.last_hidden_state.mean(-1), atol=1e-5, rtol=0)
    close(recorded["resid.torso.post_mlp"][0], states.hidden_states[1].mean(-1), atol=1e-5, rtol=0)
    before = recorded["resid.post_emb"][0]
    for layer in range(2):
        attention, mlp = (
            recorded["resid.torso.delta_attn"][layer],
            recorded["resid.torso.delta_mlp"][layer],
        )
        after_attention = recorded.get("resid.torso.post_attn", {}).get(layer)
        if case.startswith(
            ("gpt2", "gpt_bigcode")
        ):  # the release's name for the stream after attention
            after_attention, attention = attention, attention - before
        if after_attention is not None:
            close(before + attention, after_attention, atol=1e-5, rtol=0)
        before = before + attention + mlp
        close(before, recorded["resid.torso.post_mlp"][layer], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CONFIGS)
def test_inner_points_are_those_of_the_modules(case: str) -> None:
    """v_out, post_act and the norms, computed by hand from their neighbours in the first block."""
    model = build(case)
    recorded = record(model)
    backbone, family = model.base_model, family_of(model.config.model_type)
    block = backbone.get_submodule(f"{family.blocks}.0")
    attention = block.get_submodule(family.attention)
    caught: dict[str, torch.Tensor] = {}
    output = next(
        m for n, m in attention.named_children() if n in ("o_proj", "dense", "out_proj", "c_proj")
    )
    act = model.config.get_text_config()
    handles = [
        output.register_forward_pre_hook(lambda m, args: caught.__setitem__("v_out", args[0])),
        block.mlp.register_forward_pre_hook(lambda m, args: caught.__setitem__("mlp", args[0])),
    ]
    with torch.no_grad():
        backbone(input_ids=IDS)
        inner = _activation(block.mlp, caught["mlp"])
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(
        recorded["attn.v_out"][0], caught["v_out"].flatten(2).mean(-1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(recorded["mlp.post_act"][0], inner.mean(-1), atol=1e-5, rtol=0)
    assert set(recorded) == set(available_hooks(act)) - {"logits"}


def _activation(mlp: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """The MLP's inner activation from its own weights."""
    children = dict(mlp.named_children())
    act = children.get("act") or children.get("act_fn") or children["activation_fn"]
    if "gate_up_proj" in children:
        gate, up = children["gate_up_proj"](states).chunk(2, dim=-1)
        return up * act(gate)
    if "gate_proj" in children:
        return act(children["gate_proj"](states)) * children["up_proj"](states)
    first = next(children[n] for n in ("dense_h_to_4h", "c_fc", "fc_in") if n in children)
    return act(first(states))


def test_hooks_do_not_outlive_the_recorder() -> None:
    model = build("gemma3_text")

    def num_hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model.base_model(
        input_ids=IDS, output_hidden_states=True
    )  # transformers keeps hooks of its own for the hidden states
    before = num_hooks()
    with (
        contextlib.suppress(RuntimeError),
        ActivationRecorder(model.base_model, available_hooks(model.config)),
    ):
        assert num_hooks() > before
        raise RuntimeError("an error on the way must not leave hooks behind")
    assert num_hooks() == before


def test_selection_by_type_and_by_name() -> None:
    config = GPTNeoXConfig(use_parallel_residual=False)
    assert "resid.torso.post_attn" in select_hooks(config, "resid")
    assert "resid.torso.post_attn" not in select_hooks(GPTNeoXConfig(), "all")
    assert select_hooks(config, ["attn.q", "logits"]) == ("attn.q", "logits")
    with pytest.raises(ValueError, match=r"\['attn.nothing'\].*attn.v_out"):
        select_hooks(config, ["attn.nothing"])


def test_an_unknown_family_says_what_to_add() -> None:
    with pytest.raises(
        ValueError,
        match=r"'bert' \(known: gpt_neox.*Family.*activations.py.*HookPoint\('attn.v_out'",
    ):
        family_of(BertConfig().model_type)


def test_a_table_that_does_not_fit_names_the_module() -> None:
    model = build("llama")
    del model.base_model.layers[1].self_attn.o_proj
    with pytest.raises(
        ValueError,
        match=r"'llama': module 'layers.1.self_attn.o_proj' for attn.v_out not found in LlamaModel",
    ):
        ActivationRecorder(model.base_model, available_hooks(model.config)).__enter__()
