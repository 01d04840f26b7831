"""Hook tables: on a tiny model of every family and of each of its forms, recorded means equal what
hooks written here see.
"""

import contextlib
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from checkout import ROOT
from matrices import members
from tiny_families import CONFIGS, MORE_HOOKED, draw_pairs
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    GPTNeoXConfig,
    MixtralConfig,
    OPTConfig,
    SmolLM3Config,
)

from sparsepo import ReferenceModel, enable_packing, packed_layout, padded_layout
from sparsepo.activations import ActivationRecorder, available_hooks, family_of, select_hooks
from sparsepo.backbone import run_backbone, scored_rows
from sparsepo.hook_tables import FAMILIES

IDS = torch.tensor([[1, 5, 9, 3, 7, 2], [4, 4, 8, 1, 6, 0]])
HOOKED = CONFIGS | MORE_HOOKED
CASES = [case for case in HOOKED if case.split("-")[0] in CONFIG_MAPPING]
# The first tables, and of the others one of each kind: slices, latent attention, projected states,
# experts, blocks side by side without a rotary embedding, clipped projections.
QUICK = (
    *CONFIGS, "bloom-in_slices", "deepseek_v3", "opt", "mixtral", "falcon-alibi", "mpt", "glm4",
)  # fmt: skip
# Attention and MLP side by side.
PARALLEL = {
    *("gptj", "codegen", "phi", "phi-normed", "cohere", "cohere-normed", "cohere2"),
    *("stablelm-parallel", "gpt_neox-parallel", "falcon", "falcon-one_norm", "falcon-multi_query"),
    *("falcon-alibi", "falcon-groups_alibi", "falcon-multi_query_alibi"),
}
# Where the residual stream after attention is the input, if not of post_attention_layernorm.
AFTER_ATTENTION = {
    "gemma2": "pre_feedforward_layernorm",
    "gemma3_text": "pre_feedforward_layernorm",
    "vaultgemma": "pre_feedforward_layernorm",
    "apertus": "feedforward_layernorm",
    "mpt": "norm_2",
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo"), "ln_2"),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4", "flex_olmo"), "mlp"),
    **dict.fromkeys(("opt", "xglm", "biogpt"), "final_layer_norm"),
    "opt-normed_after": "self_attn_layer_norm",
}
ROTARY_FUNCTIONS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave", "apply_rotary_emb")


def build(case: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(case.split("-")[0], **HOOKED[case])
    # Falcon's eager attention calls no function that could be asked.
    kind = "sdpa" if case.startswith("falcon") else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kind).eval()
    for parameter in model.parameters():  # norms that start as 1 or 0 would hide a wrong hook
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def record(model: Any) -> dict[str, dict[int, Tensor]]:
    with (
        ActivationRecorder(model.base_model, available_hooks(model.config)) as recorder,
        torch.no_grad(),
    ):
        model.base_model(input_ids=IDS)
    return recorder.recorded


def test_every_family_has_a_case() -> None:
    types = [name for family in FAMILIES for name in family.model_types]
    assert sorted(types) == sorted({case.split("-")[0] for case in HOOKED})
    assert len(types) >= 12 + 25
    listed = (ROOT / "docs" / "method.md").read_text().split("The model types are")[1]
    assert re.findall(r"`(\w+)`", listed.split("`mask.hooks`")[0]) == sorted(types)


@dataclass
class Call:
    """q, k and v [batch, heads, time, features] of one layer's attention.

    before: what its rotary embedding was given of q and k; None if it has none.
    turned: what that gave back.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    before: tuple[Tensor, ...] | None
    turned: tuple[Tensor, ...] | None


def attention_calls(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the function at the heart of each layer's attention is called with."""
    module: Any = sys.modules[type(model).__module__]
    model_type = model.config.model_type
    calls: list[Call] = []
    before: list[Tensor] = []
    turned: list[Tensor] = []

    def keep(query: Tensor, key: Tensor, value: Tensor) -> None:
        found = (tuple(before), tuple(turned)) if before else (None, None)
        calls.append(Call(query, key, value, *found))
        before.clear()
        turned.clear()

    def spy(owner: Any, name: str, see: Any) -> None:
        original = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            see(args, output)
            return output

        monkeypatch.setattr(owner, name, run)

    with_own_attention = [c for c in vars(module).values() if hasattr(c, "_attn")]
    for name in ROTARY_FUNCTIONS:
        if not hasattr(module, name):
            continue
        if with_own_attention:  # one tensor at a time, first k and then q, heads behind time

            def see_one(args: Any, output: Tensor) -> None:
                before.insert(0, args[0].transpose(1, 2))
                turned.insert(0, output.transpose(1, 2))

            spy(module, name, see_one)
        else:
            spy(module, name, lambda args, out: (before.extend(args[:2]), turned.extend(out)))
    halves: list[Tensor] = []

    def see_product(args: Any, output: Tensor) -> None:
        """q and k transposed, then weights and v; heads may be folded into the batch."""
        if args[0].ndim < 3:
            return
        halves.extend(args)
        if len(halves) == 4:
            query, key, _, value = (x.view(2, -1, *x.shape[-2:]) for x in halves)
            keep(query, key.transpose(-1, -2), value)
            halves.clear()

    if model_type == "bloom":
        spy(module.BloomAttention, "_reshape", lambda args, out: keep(*out))
    elif model_type == "falcon":
        spy(nn.functional, "scaled_dot_product_attention", lambda args, out: keep(*args[:3]))
    elif model_type == "xglm":
        spy(torch, "bmm", see_product)
    elif model_type == "mpt":
        spy(torch, "matmul", see_product)
    elif with_own_attention:
        spy(with_own_attention[0], "_attn", lambda args, out: keep(*args[1:4]))
    else:
        spy(module, "eager_attention_forward", lambda args, out: keep(*args[1:4]))
    with torch.no_grad():
        model.base_model(input_ids=IDS)
    monkeypatch.undo()
    if model_type in ("opt", "xglm"):  # they scale q, and not the scores
        for call in calls:
            call.query = call.query * call.query.shape[-1] ** 0.5
    return calls


def unturned(turned: Tensor, part: Tensor, last: bool) -> Tensor:
    """All of q or k before rotary embedding, given the part that it turned."""
    part = part.expand(-1, turned.shape[1], -1, -1)
    width = part.shape[-1]
    if last:
        return torch.cat([turned[..., :-width], part], dim=-1)
    return torch.cat([part, turned[..., width:]], dim=-1)


@pytest.mark.parametrize("case", members(CASES, QUICK))
def test_queries_keys_and_values_are_those_of_the_attention(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the attention function and the rotary embedding were called with, against the hooks."""
    model = build(case)
    calls = attention_calls(model, monkeypatch)
    assert len(calls) == 2
    expected: dict[str, dict[int, Tensor]] = {}
    for layer, call in enumerate(calls):
        query, key = call.query, call.key
        if call.before is not None and call.turned is not None:
            if case == "ministral3":  # its q has a temperature of the position, as part of scores
                torch.testing.assert_close(
                    query[:, :, :2], call.turned[0][:, :, :2], atol=1e-6, rtol=0
                )
                query = call.turned[0]
            expected.setdefault("attn.post_rota_emb_q", {})[layer] = query.mean((1, 3))
            expected.setdefault("attn.post_rota_emb_k", {})[layer] = key.mean((1, 3))
            last = hasattr(model.config, "kv_lora_rank")
            query, key = (
                unturned(whole, part, last)
                for whole, part in zip((query, key), call.before, strict=True)
            )
        expected.setdefault("attn.q", {})[layer] = query.mean((1, 3))
        expected.setdefault("attn.k", {})[layer] = key.mean((1, 3))
        expected.setdefault("attn.v", {})[layer] = call.value.mean((1, 3))
    compare({k: v for k, v in record(model).items() if k in ATTENTION}, expected)


ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.post_rota_emb_q", "attn.post_rota_emb_k")


def compare(found: dict[str, dict[int, Tensor]], expected: dict[str, dict[int, Tensor]]) -> None:
    assert {name: sorted(layers) for name, layers in found.items()} == {
        name: sorted(layers) for name, layers in expected.items()
    }
    for name, layers in expected.items():
        for layer, value in layers.items():
            torch.testing.assert_close(
                found[name][layer], value, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


def child(module: nn.Module, *names: str) -> nn.Module:
    """The first module below this one that has one of the names."""
    return next(m for path, m in module.named_modules() if path.rpartition(".")[2] in names)


class Ends:
    """Inputs and outputs of modules in one forward, [batch, time, features] each."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        self._handles: list[Any] = []

    def watch(self, module: nn.Module) -> None:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            self.inputs[module] = value.reshape(*IDS.shape, -1).clone()
            value = output[0] if isinstance(output, tuple) else output
            self.outputs[module] = value.reshape(*IDS.shape, -1).clone()

        self._handles.append(module.register_forward_hook(keep, with_kwargs=True))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("case", members(CASES, QUICK))
def test_the_residual_stream_and_the_mlp_are_those_of_the_model(case: str) -> None:
    """What is added is the stream after less the stream before; norms are what attention and MLP
    are given; the MLP's activation is computed from its weights.
    """
    model = build(case)
    recorded = record(model)
    backbone = model.base_model
    layers = next(m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    ends = Ends()
    for layer in layers:
        for module in (layer, *layer.modules()):
            ends.watch(module)
    with torch.no_grad():
        states = backbone(input_ids=IDS, output_hidden_states=True)
    ends.close()
    expected: dict[str, dict[int, Tensor]] = {}

    def expect(name: str, layer: int, value: Tensor) -> None:
        expected.setdefault(name, {})[layer] = value.float().mean(-1)

    expect("resid.post_emb", 0, states.hidden_states[0])
    if case not in ("opt-normed_after", "opt-not_normed"):
        last = states.last_hidden_state
        if case == "opt":  # its last states are projected, after the last norm
            normed = backbone.decoder.final_layer_norm(ends.outputs[layers[1]])
            torch.testing.assert_close(backbone.decoder.project_out(normed), last)
            last = normed
        expect("resid.post_ln_f", 0, last)
    for index, layer in enumerate(layers):
        before, after = ends.inputs[layer], ends.outputs[layer]
        if index == 0:
            torch.testing.assert_close(after, states.hidden_states[1])
        expect("resid.torso.post_mlp", index, after)
        attention = child(layer, "self_attn", "attn", "attention", "self_attention")
        mlp = child(layer, "mlp", "ffn", "block_sparse_moe", "fc1")
        attention_input, mlp_input = ends.inputs[attention], ends.inputs[mlp]
        if not torch.equal(attention_input, before):
            expect("resid.torso.input_ln_attn", index, attention_input)
        output = child(attention, "o_proj", "dense", "out_proj", "c_proj")
        if output in ends.inputs:
            expect("attn.v_out", index, ends.inputs[output])
        if case in PARALLEL:
            expect("resid.torso.delta_attn", index, ends.outputs[attention])
            expect("resid.torso.delta_mlp", index, after - before - ends.outputs[attention])
            if not torch.equal(mlp_input, attention_input):
                expect("resid.torso.post_ln_attn", index, mlp_input)
        else:
            name = AFTER_ATTENTION.get(case, AFTER_ATTENTION.get(case.split("-")[0]))
            between = ends.inputs[child(layer, name or "post_attention_layernorm")]
            is_normed = not torch.equal(mlp_input, between)
            if is_normed:
                expect("resid.torso.post_ln_attn", index, mlp_input)
            added, onto = between - before, between
            if case == "bloom-normed_stream":
                added, onto = between - attention_input, mlp_input
            if case == "opt-normed_after":
                onto, after = mlp_input, ends.inputs[child(layer, "final_layer_norm")]
            if case.startswith(("gpt2", "gpt_bigcode")):
                expect("resid.torso.delta_attn", index, between)  # as the release calls it
            else:
                expect("resid.torso.post_attn", index, between)
                expect("resid.torso.delta_attn", index, added)
            expect("resid.torso.delta_mlp", index, after - onto)
        if not hasattr(mlp, "experts"):
            owner = layer if hasattr(layer, "fc1") else mlp
            expect("mlp.post_act", index, activation(owner, mlp_input))
    if case == "bloom-in_slices":  # nothing but the residual stream is a module's
        assert "attn.v_out" not in expected
        for name in ("resid.torso.delta_attn", "mlp.post_act", "resid.torso.delta_mlp"):
            del expected[name]
    compare({k: v for k, v in recorded.items() if k not in ATTENTION}, expected)
    assert sorted([*recorded, "logits"]) == sorted(available_hooks(model.config))
    if "mlp.post_act" not in expected:
        reason = "slow_but_exact=True" if case == "bloom-in_slices" else "its experts have an act"
        with pytest.raises(ValueError, match=rf"hooks='mlp' \(mlp.post_act: {reason}"):
            select_hooks(model.config, "mlp")


def activation(owner: nn.Module, states: Tensor) -> Tensor:
    """An MLP's activation from its weights, and its norm in front of the last projection."""
    modules = dict(owner.named_children())
    act: Any = next(
        modules[name] for name in ("act", "act_fn", "activation_fn", "gelu_impl") if name in modules
    )
    with torch.no_grad():
        if "gate_up_proj" in modules:
            gate, up = modules["gate_up_proj"](states).chunk(2, dim=-1)
            return up * act(gate)
        if "gate_proj" in modules:
            inner = act(modules["gate_proj"](states)) * modules["up_proj"](states)
            return modules["ffn_sub_norm"](inner) if "ffn_sub_norm" in modules else inner
        firsts = ("dense_h_to_4h", "c_fc", "fc_in", "fc1", "up_proj")
        first = next(modules[name] for name in firsts if name in modules)
        return act(first(states))


PACKED = [case for case in CASES if not re.match("bloom|mpt|gpt_neo$|falcon.*alibi", case)]


@pytest.mark.parametrize("case", members(PACKED, set(QUICK).intersection(PACKED)))
def test_packed_rows_record_what_padded_rows_do(case: str) -> None:
    """At the scored tokens. Models of ALiBi and GPT-Neo are not packed."""
    model = build(case)
    assert enable_packing(model) is None
    pairs = draw_pairs(4)
    found = []
    for inputs in (padded_layout(pairs), packed_layout(pairs, row_tokens=60)):
        with (
            ActivationRecorder(model.base_model, available_hooks(model.config)) as recorder,
            torch.no_grad(),
        ):
            run_backbone(model, inputs)
        found.append(
            {
                name: {layer: scored_rows(value, inputs) for layer, value in layers.items()}
                for name, layers in recorder.recorded.items()
            }
        )
    compare(found[1], found[0])


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
    of_text = available_hooks(CONFIG_MAPPING["gemma3_text"]())
    assert select_hooks(Gemma3Config(), "all") == of_text  # of more than text: its text part


@pytest.mark.parametrize(
    ("config", "hooks", "message"),
    [
        (
            MixtralConfig(),
            "mlp",
            r"hooks='mlp' \(mlp.post_act: its experts have an activation each\): model type "
            r"'mixtral' offers resid.post_emb",
        ),
        (MixtralConfig(), ["attn.q", "mlp.post_act"], r"\['mlp.post_act'\] \(mlp.post_act: its ex"),
        (FalconConfig(alibi=True), ["attn.post_rota_emb_q"], r"_q: alibi=True\): model type 'fal"),
        (
            FalconConfig(),
            ["resid.torso.post_attn"],
            r"\(resid.torso.post_attn: parallel_attn=True\)",
        ),
        (
            SmolLM3Config(no_rope_layers=[0] * 36),
            ["attn.post_rota_emb_k"],
            r"\(attn.post_rota_emb_k: no layer has a rotary embedding\)",
        ),
        (
            OPTConfig(do_layer_norm_before=False),
            ["resid.post_ln_f"],
            r"\(resid.post_ln_f: do_layer_norm_before=False\)",
        ),
        (BloomConfig(slow_but_exact=True), ["attn.v_out"], r"\(attn.v_out: slow_but_exact=True\)"),
        (OPTConfig(), ["attn.post_rota_emb_q"], r"hooks \['attn.post_rota_emb_q'\]: model type"),
    ],
)
def test_points_that_a_config_lacks_are_refused_with_the_reason(
    config: Any, hooks: Any, message: str
) -> None:
    """All of a family's points that it has are still there for "all"."""
    with pytest.raises(ValueError, match=message):
        select_hooks(config, hooks)
    assert "logits" in select_hooks(config, "all")


def test_points_of_some_layers_weigh_tokens_as_those_of_all() -> None:
    """Qwen2-MoE's only dense layer alone makes the weights of `mlp`: its means rescaled."""
    model = build("qwen2_moe")
    inputs = padded_layout(draw_pairs(3))
    reference = ReferenceModel(model, hooks="mlp")
    weights = reference.features(inputs, ["activation_mask"]).activation_mask
    seen: list[Tensor] = []
    handle = model.base_model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].mean(-1))
    )
    with torch.no_grad():
        run_backbone(model, inputs)
    handle.remove()
    values = scored_rows(seen[0], inputs)
    for response in inputs.response_index.unique():
        of_response = values[inputs.response_index == response]
        low, high = of_response.min(), of_response.max()
        expected = (
            (of_response - low) / (high - low) if high > low else torch.ones_like(of_response)
        )
        torch.testing.assert_close(
            weights[inputs.response_index == response], expected, atol=1e-4, rtol=0
        )


def test_an_unknown_family_says_what_to_add() -> None:
    with pytest.raises(
        ValueError,
        match=r"'bert' \(known: gpt_neox.*Family.*hook_tables.py.*HookPoint\('attn.v_out'",
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
