"""Where each family of transformers models shows MaPO's hook points.

A family is a declarative table: every named tensor in terms of the family's own modules. Another
family is another entry of `FAMILIES`, and nothing else. `sparsepo/activations.py` reads them.
Source: hook names and types as in the released SparsePO code (arXiv:2410.05102).
"""

from dataclasses import replace
from typing import Any

from sparsepo.hook_points import (
    DENSE_BY_INTERVAL,
    DENSE_BY_NAME,
    DENSE_BY_STEP,
    FIRST,
    FIRST_DENSE,
    NEVER_DENSE,
    OWN,
    ROTARY_BY_LIST,
    ROTARY_IN_WINDOWS,
    ROTARY_IN_WINDOWS_IF_ANY,
    WHOLE,
    Condition,
    Family,
    HookPoint,
    Layers,
    Points,
    Rotary,
    after_rotary,
    below,
    either,
    fused,
    llama_like,
    projections,
)

# q and k are last normalised in these modules: split into heads or not, or with heads before time.
_NORMED = projections("q_norm", "k_norm")
_NORMED_HEADS = projections("q_norm", "k_norm", "heads_first")
_NORMED_IF_ASKED = either(
    "qk_layernorm", projections("q_layernorm", "k_layernorm", "heads_first"), projections()
)
# Outputs of attention and MLP are normalised before they join the stream.
_NORMED_OUTPUTS: dict[str, Any] = {
    "delta_attn": "post_attention_layernorm",
    "delta_mlp": "post_feedforward_layernorm",
}
# Only they are: attention and MLP read the stream as it is.
_ONLY_NORMED_OUTPUTS: dict[str, Any] = _NORMED_OUTPUTS | {"input_norm": None, "mlp_norm": None}
_PERSIMMON_QKV = fused("self_attn.query_key_value", "heads")


def _turned_then_normed(q: str, k: str) -> Points:
    """q and k after rotary embedding where they are normalised after it."""
    return (
        HookPoint("attn.post_rota_emb_q", f"self_attn.{q}", part="heads_first"),
        HookPoint("attn.post_rota_emb_k", f"self_attn.{k}", part="heads_first"),
    )


def _gpt2(model_type: str, qkv: Points) -> Family:
    return Family(
        model_types=(model_type,),
        blocks="h",
        attention="attn",
        points=(
            HookPoint("resid.post_emb", "drop"),
            *below(
                "h.{i}",
                (
                    HookPoint("resid.torso.input_ln_attn", "ln_1"),
                    *qkv,
                    HookPoint("attn.v_out", "attn.c_proj", side="input"),
                    # The release names the residual stream after attention "delta_attn" here.
                    HookPoint("resid.torso.delta_attn", "ln_2", side="input"),
                    HookPoint("resid.torso.post_ln_attn", "ln_2"),
                    HookPoint("mlp.post_act", "mlp.c_proj", side="input"),
                    HookPoint("resid.torso.delta_mlp", "mlp"),
                ),
            ),
            HookPoint("resid.torso.post_mlp", "h.{i}"),
            HookPoint("resid.post_ln_f", "ln_f"),
        ),
    )


def _gptj(model_type: str, qkv: Points) -> Family:
    """Attention and MLP side by side behind one normalisation.

    The release takes v_out after the output projection and post_ln_f before the final
    normalisation in GPT-J; here both mean what they mean elsewhere.
    """
    return llama_like(
        model_type,
        qkv=qkv,
        rotary=OWN,
        blocks="h",
        attention="attn",
        input_norm="ln_1",
        output="attn.out_proj",
        delta_attn="attn",
        down="mlp.fc_out",
        final_norm="ln_f",
        sequential=False,
    )


def _latent(
    *model_types: str, rotaries: tuple[tuple[Rotary, Condition], ...], dense: Layers | None = None
) -> Family:
    """Attention over a latent (DeepSeek): q and k as they are after their up-projections.

    A head has features without a position and then features that are turned; the latter of k are
    one vector for all heads.

    Args:
        rotaries: how they are turned, and the config that makes it so.
    """
    latent = "self_attn.kv_a_proj_with_mqa"
    qkv = (
        HookPoint("attn.q", "self_attn.q_proj", part="per_head", when={"q_lora_rank": None}),
        HookPoint("attn.q", "self_attn.q_b_proj", part="per_head", unless={"q_lora_rank": None}),
        HookPoint("attn.k", "self_attn.kv_b_proj", part="latent_1", beside=latent),
        HookPoint("attn.v", "self_attn.kv_b_proj", part="latent_2"),
    )
    turned = tuple(
        replace(point, when={**point.when, **when})
        for rotary, when in rotaries
        for point in after_rotary(qkv, rotary)
    )
    return llama_like(*model_types, qkv=qkv, turned=turned, dense=dense)


_INTERLEAVED_OR_NOT: tuple[tuple[Rotary, Condition], ...] = (
    (Rotary("apply_rotary_pos_emb_interleave", "last"), {"rope_interleave": True}),
    (Rotary(features="last"), {"rope_interleave": False}),
)

# Normalised before attention and MLP, or after each was added. Then the attention reads the stream
# as it is, and post_attn is, as elsewhere, what the normalisation after attention is given.
_BEFORE: Condition = {"do_layer_norm_before": True}
_AFTER: Condition = {"do_layer_norm_before": False}
_OPT = Family(
    model_types=("opt",),
    blocks="decoder.layers",
    attention="self_attn",
    points=(
        HookPoint("resid.post_emb", "decoder.layers.0", side="input"),
        *below(
            "decoder.layers.{i}",
            (
                HookPoint("resid.torso.input_ln_attn", "self_attn_layer_norm", when=_BEFORE),
                *projections(),
                HookPoint("attn.v_out", "self_attn.out_proj", side="input"),
                HookPoint("resid.torso.delta_attn", "self_attn"),
                HookPoint(
                    "resid.torso.post_attn", "self_attn_layer_norm", side="input", when=_AFTER
                ),
                HookPoint("resid.torso.post_ln_attn", "self_attn_layer_norm", when=_AFTER),
                HookPoint("resid.torso.post_attn", "final_layer_norm", side="input", when=_BEFORE),
                HookPoint("resid.torso.post_ln_attn", "final_layer_norm", when=_BEFORE),
                HookPoint("mlp.post_act", "fc2", side="input"),
                HookPoint("resid.torso.delta_mlp", "fc2"),
            ),
        ),
        HookPoint("resid.torso.post_mlp", "decoder.layers.{i}"),
        HookPoint(
            "resid.post_ln_f",
            "decoder.final_layer_norm",
            when=_BEFORE,
            unless={"_remove_final_layer_norm": True},
        ),
    ),
)

# The MLP follows the attention, or reads beside it what the attention reads, or has a norm there.
_OLD: Condition = {"new_decoder_architecture": False}
_NEW: Condition = {"new_decoder_architecture": True}
_ONE_NORM: Condition = {"num_ln_in_parallel_attn": 1}
_SEQUENTIAL: Condition = {**_OLD, "parallel_attn": False}
_FALCON_QKV = (
    *fused("self_attention.query_key_value", "groups", when=_NEW),
    *fused("self_attention.query_key_value", "qkv", when={**_OLD, "multi_query": True}),
    *fused("self_attention.query_key_value", "heads", when={**_OLD, "multi_query": False}),
)
_FALCON = Family(
    model_types=("falcon",),
    blocks="h",
    attention="self_attention",
    points=(
        HookPoint("resid.post_emb", "h.0", side="input"),
        *below(
            "h.{i}",
            (
                HookPoint("resid.torso.input_ln_attn", "input_layernorm", when=_OLD),
                HookPoint(
                    "resid.torso.input_ln_attn", "input_layernorm", when={**_NEW, **_ONE_NORM}
                ),
                HookPoint("resid.torso.input_ln_attn", "ln_attn", when=_NEW, unless=_ONE_NORM),
                *_FALCON_QKV,
                *(
                    replace(point, when={**point.when, "alibi": False})
                    for point in after_rotary(_FALCON_QKV, WHOLE)
                ),
                HookPoint("attn.v_out", "self_attention.dense", side="input"),
                HookPoint("resid.torso.delta_attn", "self_attention"),
                HookPoint(
                    "resid.torso.post_attn",
                    "post_attention_layernorm",
                    side="input",
                    when=_SEQUENTIAL,
                ),
                HookPoint("resid.torso.post_ln_attn", "post_attention_layernorm", when=_SEQUENTIAL),
                HookPoint("resid.torso.post_ln_attn", "ln_mlp", when=_NEW, unless=_ONE_NORM),
                HookPoint("mlp.post_act", "mlp.dense_4h_to_h", side="input"),
                HookPoint("resid.torso.delta_mlp", "mlp"),
            ),
        ),
        HookPoint("resid.torso.post_mlp", "h.{i}"),
        HookPoint("resid.post_ln_f", "ln_f"),
    ),
)

_IN_SLICES: Condition = {"slow_but_exact": True}
_BLOOM = llama_like(
    "bloom",
    qkv=fused("self_attention.query_key_value", "heads"),
    rotary=None,
    blocks="h",
    attention="self_attention",
    output="self_attention.dense",
    delta_attn="self_attention.dense",
    down="mlp.dense_4h_to_h",
    delta_mlp="mlp.dense_4h_to_h",
    final_norm="ln_f",
)
# Weights applied in slices leave these modules out.
_BLOOM = replace(
    _BLOOM,
    points=tuple(
        replace(point, unless=_IN_SLICES)
        if point.module.endswith(("attention.dense", "dense_4h_to_h"))
        else point
        for point in _BLOOM.points
    ),
)

FAMILIES: tuple[Family, ...] = (
    llama_like(
        "gpt_neox",
        qkv=fused("attention.query_key_value", "heads"),
        attention="attention",
        output="attention.dense",
        delta_attn="attention",
        down="mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        sequential={"use_parallel_residual": False},
        own_norm=True,
    ),
    _gpt2("gpt2", fused("attn.c_attn", "qkv")),
    _gpt2(
        "gpt_bigcode",
        fused("attn.c_attn", "qkv", when={"multi_query": True})
        + fused("attn.c_attn", "heads", when={"multi_query": False}),
    ),
    _gptj("gptj", projections(attention="attn")),
    _gptj("codegen", fused("attn.qkv_proj", "shards")),
    llama_like(
        *("llama", "mistral", "qwen2", "arcee", "bitnet", "cwm", "ernie4_5", "gemma", "glm"),
        *("helium", "internlm3", "iquestcoder", "jais2", "ministral", "ministral3", "nemotron"),
        "seed_oss",
    ),
    llama_like("qwen3", qkv=_NORMED),
    llama_like("smollm3", rotary_layers=ROTARY_BY_LIST),
    llama_like("starcoder2", down="mlp.c_proj"),
    llama_like("phi3", qkv=fused("self_attn.qkv_proj", "qkv")),
    llama_like("olmo", qkv=projections(clip="clip_qkv")),
    llama_like("olmo2", "olmo3", qkv=_NORMED, **_ONLY_NORMED_OUTPUTS),
    llama_like(
        "exaone4",
        qkv=_NORMED_HEADS,
        rotary_layers=ROTARY_IN_WINDOWS_IF_ANY,
        **_ONLY_NORMED_OUTPUTS,
    ),
    llama_like("gemma2", mlp_norm="pre_feedforward_layernorm", **_NORMED_OUTPUTS),
    llama_like(
        "gemma3_text",
        qkv=_NORMED_HEADS,
        mlp_norm="pre_feedforward_layernorm",
        **_NORMED_OUTPUTS,
    ),
    llama_like("vaultgemma", mlp_norm="pre_feedforward_layernorm"),
    llama_like("glm4", delta_attn="post_self_attn_layernorm", delta_mlp="post_mlp_layernorm"),
    llama_like("granite", scale="residual_multiplier"),
    llama_like(
        "hyperclovax", delta_attn="post_norm1", delta_mlp="post_norm2", scale="residual_multiplier"
    ),
    llama_like(
        "apertus",
        qkv=_NORMED_HEADS,
        input_norm="attention_layernorm",
        mlp_norm="feedforward_layernorm",
    ),
    llama_like("hunyuan_v1_dense", turned=_turned_then_normed("query_layernorm", "key_layernorm")),
    llama_like("nanochat", turned=_turned_then_normed("q_norm", "k_norm"), down="mlp.fc2"),
    llama_like(
        "stablelm",
        qkv=_NORMED_IF_ASKED,
        rotary=FIRST,
        sequential={"use_parallel_residual": False},
    ),
    llama_like(
        "persimmon",
        qkv=either("qk_layernorm", projections("q_layernorm", "k_layernorm"), _PERSIMMON_QKV),
        rotary=FIRST,
        output="self_attn.dense",
        down="mlp.dense_4h_to_h",
        final_norm="final_layernorm",
    ),
    llama_like(
        "phi",
        qkv=_NORMED_IF_ASKED,
        rotary=FIRST,
        output="self_attn.dense",
        down="mlp.fc2",
        final_norm="final_layernorm",
        sequential=False,
    ),
    llama_like("cohere", qkv=either("use_qk_norm", _NORMED, projections()), sequential=False),
    llama_like("cohere2", rotary_layers=ROTARY_IN_WINDOWS, sequential=False),
    # Attention over a latent.
    _latent("deepseek_v3", rotaries=_INTERLEAVED_OR_NOT, dense=FIRST_DENSE),
    _latent("glm4_moe_lite", rotaries=_INTERLEAVED_OR_NOT, dense=DENSE_BY_NAME),
    _latent("youtu", rotaries=_INTERLEAVED_OR_NOT),
    _latent("deepseek_v2", rotaries=((Rotary("apply_rotary_emb", "last"), {}),), dense=FIRST_DENSE),
    # Mixtures of experts, in all layers or in some.
    llama_like("mixtral", "gpt_oss", "phimoe", "solar_open", dense=NEVER_DENSE),
    llama_like("qwen2_moe", dense=DENSE_BY_STEP),
    llama_like("qwen3_moe", qkv=_NORMED, dense=DENSE_BY_STEP),
    llama_like("mellum", qkv=_NORMED, dense=DENSE_BY_NAME),
    llama_like("dots1", qkv=_NORMED, dense=FIRST_DENSE),
    llama_like("glm4_moe", qkv=either("use_qk_norm", _NORMED, projections()), dense=FIRST_DENSE),
    llama_like("minimax_m2", qkv=_NORMED, dense=NEVER_DENSE),
    llama_like("ernie4_5_moe", dense=DENSE_BY_INTERVAL),
    llama_like(
        "hunyuan_v1_moe",
        turned=_turned_then_normed("query_layernorm", "key_layernorm"),
        dense=NEVER_DENSE,
    ),
    llama_like("olmoe", qkv=projections("q_norm", "k_norm", clip="clip_qkv"), dense=NEVER_DENSE),
    llama_like("flex_olmo", qkv=_NORMED, dense=NEVER_DENSE, **_ONLY_NORMED_OUTPUTS),
    llama_like(
        "granitemoe",
        mlp="block_sparse_moe",
        delta_mlp="block_sparse_moe",
        scale="residual_multiplier",
        dense=NEVER_DENSE,
    ),
    # Absolute positions, or ALiBi: no rotary embedding.
    _OPT,
    _FALCON,
    llama_like(
        "gpt_neo",
        qkv=projections(attention="attn.attention"),
        rotary=None,
        blocks="h",
        attention="attn.attention",
        input_norm="ln_1",
        output="attn.attention.out_proj",
        delta_attn="attn",
        mlp_norm="ln_2",
        down="mlp.c_proj",
        final_norm="ln_f",
    ),
    llama_like(
        *("xglm", "biogpt"),
        rotary=None,
        input_norm="self_attn_layer_norm",
        output="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        down="fc2",
        delta_mlp="fc2",
        final_norm="layer_norm",
    ),
    # Attention and MLP of MPT and BLOOM give the stream back: what is added leaves a projection.
    llama_like(
        "mpt",
        qkv=fused("attn.Wqkv", "qkv", clip="attn_config.clip_qkv"),
        rotary=None,
        blocks="blocks",
        attention="attn",
        input_norm="norm_1",
        output="attn.out_proj",
        delta_attn="attn.out_proj",
        mlp_norm="norm_2",
        down="ffn.down_proj",
        delta_mlp="ffn.down_proj",
        final_norm="norm_f",
    ),
    _BLOOM,
)
