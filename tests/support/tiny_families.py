"""Configurations of tiny models of many families, and pairs of random tokens for them."""

import random
from typing import Any

from sparsepo import TokenizedPair

# With a table of hook points.
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
# Without one, and their sizes.
PLAIN_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
PLAIN: dict[str, dict[str, Any]] = {
    "granite": {"num_key_value_heads": 2, "logits_scaling": 3.0},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 2},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 8},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4},
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
