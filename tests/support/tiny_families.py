"""Configurations of tiny models of many families, and pairs of random tokens for them."""

import random
from typing import Any

from sparsepo import TokenizedPair

SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT_SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "n_inner": 24,
}
# With a table of hook points, and packed.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
    | {"use_parallel_residual": False},
    "gpt2": GPT_SIZES,
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": {k: v for k, v in SIZES.items() if k != "head_dim"},
    "qwen3": SIZES,
    "gemma2": SIZES | {"query_pre_attn_scalar": 4},
    "gemma3_text": SIZES
    | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3},
    "phi3": {k: v for k, v in SIZES.items() if k != "head_dim"},
    "olmo2": {k: v for k, v in SIZES.items() if k != "head_dim"},
    "gptj": GPT_SIZES | {"rotary_dim": 2},
    "gpt_bigcode": GPT_SIZES | {"multi_query": True},
    "gpt_bigcode-multi_head": GPT_SIZES | {"multi_query": False},
}
# More with a table: heads wider than the states where the family allows it, every form of a family
# that has its own points, multipliers other than 1, clipped projections.
_WIDE = SIZES | {"head_dim": 8}
_NARROW = {k: v for k, v in SIZES.items() if k != "head_dim"}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
_MOE = _WIDE | _EXPERTS | {"num_local_experts": 4}
_MULTIPLIED = {"residual_multiplier": 0.3, "embedding_multiplier": 2.0}
_ROUTED = _EXPERTS | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = _NARROW | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 6,
    "q_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 6,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 2,
    "max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_SHORT_YARN = _YARN | {"factor": 2.0, "original_max_position_embeddings": 16}
_BLOOM = {"vocab_size": 19, "hidden_size": 16, "n_layer": 2, "n_head": 4}
_FALCON_GROUPS = _NARROW | {"new_decoder_architecture": True, "num_kv_heads": 2}
_OPT = _NARROW | {"ffn_dim": 24, "word_embed_proj_dim": 8}
_ERNIE = _WIDE | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12}
MORE_HOOKED: dict[str, dict[str, Any]] = {
    "apertus": _NARROW | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "arcee": _WIDE,
    "biogpt": _NARROW,
    "bitnet": _NARROW,
    "bloom": _BLOOM,
    "bloom-in_slices": _BLOOM | {"pretraining_tp": 2, "slow_but_exact": True},
    "bloom-normed_stream": _BLOOM | {"apply_residual_connection_post_layernorm": True},
    "codegen": GPT_SIZES | {"n_embd": 32, "n_head": 8, "n_ctx": 32, "rotary_dim": 2},
    "cohere": _NARROW,
    "cohere-normed": _NARROW | {"use_qk_norm": True},
    "cohere2": _WIDE | _WINDOWS,
    "cwm": _WIDE | _WINDOWS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "deepseek_v2": _LATENT | _ROUTED,
    "deepseek_v3": _LATENT | _ROUTED,
    "deepseek_v3-mixtures": _LATENT | _ROUTED | {"first_k_dense_replace": 0},
    "dots1": _WIDE | _ROUTED,
    "ernie4_5": _WIDE,
    "ernie4_5_moe": _ERNIE | {"moe_layer_start_index": 1},
    "ernie4_5_moe-every_second": _ERNIE | {"moe_layer_start_index": 0, "moe_layer_interval": 2},
    "ernie4_5_moe-first": _ERNIE | {"moe_layer_start_index": 0, "moe_layer_end_index": 0},
    "exaone4": _WIDE | _WINDOWS,
    "exaone4-full": _WIDE | {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "falcon": _FALCON_GROUPS | {"multi_query": False},
    "falcon-one_norm": _FALCON_GROUPS | {"num_ln_in_parallel_attn": 1},
    "falcon-multi_query": _NARROW | {"multi_query": True},
    "falcon-sequential": _NARROW
    | {"multi_query": False, "parallel_attn": False, "num_ln_in_parallel_attn": 1},
    "falcon-groups_alibi": _FALCON_GROUPS | {"alibi": True},
    "falcon-multi_query_alibi": _NARROW | {"multi_query": True, "alibi": True},
    "falcon-alibi": _NARROW | {"multi_query": False, "alibi": True},
    "flex_olmo": _MOE,
    "gemma": _WIDE,
    "glm": _WIDE,
    "glm4": _WIDE,
    "glm4_moe": _WIDE | _ROUTED | {"use_qk_norm": True},
    "glm4_moe-unnormed": _WIDE | _ROUTED | {"use_qk_norm": False},
    "glm4_moe_lite": _LATENT | _ROUTED | {"mlp_layer_types": ["dense", "sparse"]},
    "gpt_neo": {
        "vocab_size": 19,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 32,
    },
    "gpt_neox-parallel": {
        k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")
    },
    "gpt_oss": _MOE | _WINDOWS | {"rope_parameters": _SHORT_YARN},
    "granite": _NARROW | _MULTIPLIED,
    "granitemoe": _NARROW | _MULTIPLIED | _EXPERTS | {"num_local_experts": 4},
    "helium": SIZES,
    "hunyuan_v1_dense": _WIDE,
    "hunyuan_v1_moe": _MOE | {"moe_topk": 2},
    "hyperclovax": _WIDE | _MULTIPLIED | {"use_post_norm": True},
    "hyperclovax-unnormed": _WIDE | _MULTIPLIED | {"use_post_norm": False},
    "internlm3": _WIDE,
    "iquestcoder": _WIDE,
    "jais2": _WIDE,
    "mellum": _MOE | {"mlp_layer_types": ["sparse", "dense"]},
    "minimax_m2": _MOE,
    "ministral": _WIDE | {"sliding_window": 3},
    "ministral3": _WIDE | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}},
    "mixtral": _MOE,
    "mpt": {
        "vocab_size": 19,
        "d_model": 16,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 32,
        "attn_config": {"clip_qkv": 0.3},
    },
    "nanochat": _NARROW,
    "nemotron": _WIDE,
    "olmo": _NARROW | {"clip_qkv": 0.3},
    "olmo3": _NARROW | _WINDOWS,
    "olmoe": _NARROW | _EXPERTS | {"num_local_experts": 4, "clip_qkv": 0.3},
    "opt": _OPT,
    "opt-not_normed": _OPT | {"_remove_final_layer_norm": True},
    "opt-normed_after": _OPT | {"do_layer_norm_before": False},
    "persimmon": _NARROW | {"qk_layernorm": True, "partial_rotary_factor": 0.5},
    "persimmon-unnormed": _NARROW | {"qk_layernorm": False, "partial_rotary_factor": 0.5},
    "phi": _NARROW,
    "phi-normed": _NARROW | {"qk_layernorm": True},
    "phimoe": _MOE,
    "qwen2_moe": _MOE | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 12},
    "qwen3_moe": _MOE | {"decoder_sparse_step": 2},
    "qwen3_moe-dense": _WIDE | {"num_experts": 0},
    "seed_oss": _WIDE,
    "smollm3": _NARROW | {"no_rope_layers": [1, 0]},
    "smollm3-unturned": _NARROW | {"no_rope_layers": [0, 0]},
    "solar_open": _WIDE | _ROUTED,
    "stablelm": _NARROW | {"use_parallel_residual": False, "partial_rotary_factor": 0.5},
    "stablelm-parallel": _NARROW
    | {"use_parallel_residual": True, "qk_layernorm": True, "partial_rotary_factor": 0.5},
    "starcoder2": _NARROW,
    "vaultgemma": _WIDE | _WINDOWS,
    "xglm": {
        "vocab_size": 19,
        "d_model": 16,
        "attention_heads": 4,
        "num_layers": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 32,
    },
    "youtu": _LATENT,
}
MORE_HOOKED |= {
    f"{case}-{name}": MORE_HOOKED[case] | form
    for case in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu")
    for name, form in {
        "whole_q": {"q_lora_rank": None},
        "halves": {"rope_interleave": False},
        "whole_q_halves": {"q_lora_rank": None, "rope_interleave": False},
    }.items()
    if case != "deepseek_v2" or name == "whole_q"
}


def draw_pairs(
    count: int, seed: int = 0, vocabulary: int = 19, has_single: bool = False
) -> list[TokenizedPair]:
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(1, most))]

    return [
        TokenizedPair(ids(9), ids(7), None if has_single and i == 2 else ids(7))
        for i in range(count)
    ]
