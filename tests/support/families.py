"""Every family of transformers' causal language models, and a tiny random model of each.

A tiny configuration is the family's own with its sizes made small by what their fields are called
(SIZES), one layer of each kind that it has, and what a family needs besides (FAMILIES). Families
that are left out are named with the reason (LEFT_OUT).
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipelines.models.families import STREAMS
from sparsepo.activations import available_hooks
from sparsepo.backbone import enable_packing, has_decoder_layers

# What a field of a configuration is called -> what it is in a tiny model; the first that fits.
SIZES: tuple[tuple[str, int], ...] = (
    (r"^(hidden_size|d_model|n_embd|embedding_size|emb_dim)$", 16),
    (r"^(input_embedding_size|output_embedding_size|attention_hidden_size)$", 16),
    (
        r"^(?!vision).*intermediate_size|ffn_dim|n_inner|ffn_hidden_size|^dff$|^d_inner$|dim_ff|feed_forward_size",
        24,
    ),
    (
        r"^(num_hidden_layers|n_layers?|num_layers|num_decoder_layers|decoder_layers|encoder_layers)$",
        2,
    ),
    (
        r"^(num_attention_heads|n_heads?|num_heads|attention_heads|decoder_attention_heads|num_decoder_attention_heads)$",
        4,
    ),
    (r"^(swa_num_attention_heads)$", 4),
    (r"^(num_key_value_heads|swa_num_key_value_heads|n_kv_heads)$", 2),
    (
        r"^(head_dim|swa_head_dim|attention_head_dim|dim_head|d_head|v_head_dim|qk_nope_head_dim)$",
        4,
    ),
    (r"^(qk_rope_head_dim|rotary_dim|q_lora_rank|kv_lora_rank|o_lora_rank|laurel_rank)$", 4),
    (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts|zero_expert_num)$", 4),
    (r"experts_per_tok|moe_top_?k|num_selected_experts|moe_k|top_k_experts", 2),
    (r"^(n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups|o_groups)$", 1),
    (r"^(linear_.*head_dim|linear_head_dim|mamba_d_state|ssm_state_size|state_size)$", 4),
    (r"^(linear_num_.*heads|linear_num_heads)$", 4),
    (r"^(mamba_d_head|mamba_headdim|mamba_head_dim)$", 8),
    (r"^(mamba_n_heads|n_mamba_heads|mamba_num_heads)$", 4),
    (r"^(mamba_d_ssm)$", 32),
    (r"^(mamba_chunk_size|chunk_size)$", 8),
    (r"^(mamba_dt_rank|time_step_rank|d_rel|index_head_dim|router_hidden_size)$", 4),
    (r"^(hidden_size_per_layer_input)$", 4),
    (r"^(index_n_heads)$", 2),
    (r"^(max_position_embeddings|n_positions|max_seq_len|model_max_length)$", 128),
    (
        r"^(sliding_window|sliding_window_size|attention_window|window_size|attention_chunk_size)$",
        4,
    ),
)

# Multi-head latent attention: the width of a head follows from its parts, each has keys of its own.
_MLA: dict[str, Any] = {"head_dim": None, "num_key_value_heads": 4}
_SWA = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 4,
    "swa_kv_lora_rank": 4, "swa_head_dim": 8, "swa_qk_nope_head_dim": 4, "swa_v_head_dim": 4,
    "head_dim": 8,
}  # fmt: skip
_ROPE_BY_KIND = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}

# Family -> what its tiny model needs besides; None takes back a size.
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {}, "apertus": {}, "arcee": {}, "aria_text": {}, "axk1": _MLA, "axk2": _MLA,
    "bailing_hybrid": _MLA, "bamba": {"attn_layer_indices": [1]}, "bart": {}, "beam": {},
    "bert-generation": {"is_decoder": True}, "bigbird_pegasus": {}, "biogpt": {}, "bitnet": {},
    "blenderbot": {}, "blenderbot-small": {}, "bloom": {}, "codegen": {},
    "cohere": {"logit_scale": 0.5}, "cohere2": {"logit_scale": 0.5},
    "cohere2_moe": {"logit_scale": 0.5},
    "cohere_compass_text": {"rope_parameters": _ROPE_BY_KIND}, "ctrl": {}, "cwm": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 16,
        },
    },
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v3": _MLA, "deepseek_v32": _MLA, "deepseek_v4": {}, "diffllama": {}, "doge": {},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {**_MLA, **_SWA}, "ernie4_5": {}, "ernie4_5_moe": {}, "exaone4": {},
    "exaone_moe": {}, "falcon": {}, "falcon_h1": {}, "falcon_mamba": {}, "flex_olmo": {},
    "flint": {}, "gemma": {}, "gemma2": {}, "gemma3_text": {},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 24},
    "gemma4_text": {"per_layer_config": {}},
    "gemma4_unified_text": {}, "glm": {}, "glm4": {}, "glm4_moe": {}, "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA, "gpt-sw3": {}, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]}, "gpt_neox": {},
    "gpt_neox_japanese": {}, "gpt_oss": {}, "gptj": {},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granite_swa": {"logits_scaling": 3.0}, "granitemoe": {"logits_scaling": 3.0},
    "granitemoe_swa": {}, "granitemoehybrid": {}, "granitemoeshared": {}, "helium": {},
    "hrm_text": {}, "hunyuan_v1_dense": {"head_dim": 4}, "hunyuan_v1_moe": {"head_dim": 4},
    "hy_v3": {}, "hy_v4": {}, "hyperclovax": {"logits_scaling": 3.0}, "inkling2_text": {},
    "inkling_text": {}, "internlm3": {}, "iquestcoder": {}, "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1}, "jetmoe": {"kv_channels": 4},
    "kimi_linear": _MLA, "kolibri1": {}, "laguna": {}, "lfm2": {},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]}, "lfm3": {}, "llama": {},
    "llama4_text": {}, "longcat_flash": {**_MLA, "head_dim": 4}, "mamba": {},
    "mamba2": {"head_dim": 8}, "marian": {}, "mbart": {}, "mellum": {}, "mimo_v2_flash": {},
    "minicpm3": _MLA, "minimax": {}, "minimax_m2": {}, "minimax_m3_vl_text": {},
    "ministral": {"head_dim": 4}, "ministral3": {}, "mistral": {}, "mixtral": {},
    "modernbert-decoder": {}, "moshi": {}, "mpt": {}, "mvp": {}, "nanochat": {},
    "nemotron": {"num_key_value_heads": 2}, "nemotron_h": {}, "olmo": {}, "olmo2": {},
    "olmo3": {}, "olmo_hybrid": {}, "olmoe": {}, "openai-gpt": {},
    "opt": {"word_embed_proj_dim": 8}, "pegasus": {}, "persimmon": {}, "phi": {}, "phi3": {},
    "phimoe": {}, "plbart": {}, "qwen2": {}, "qwen2_moe": {}, "qwen3": {}, "qwen3_5_moe_text": {},
    "qwen3_5_text": {}, "qwen3_moe": {}, "qwen3_next": {},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 4, "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"lru_width": 16, "num_key_value_heads": 1, "logits_soft_cap": 3.0},
    "rwkv": {}, "seed_oss": {}, "smollm3": {}, "solar_open": {}, "stablelm": {}, "starcoder2": {},
    "trocr": {}, "vaultgemma": {}, "whisper": {}, "xglm": {}, "xlstm": {}, "youtu": _MLA,
    "zamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 2,
        "attention_hidden_size": 32, "attention_head_dim": 8, "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 32, "attention_head_dim": 8, "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Configurations with parts for images or sound, and the family of their text part. AutoModel makes
# the whole model of some, the text part alone of the others.
COMPOSITES: dict[str, dict[str, Any]] = {
    "fuyu": {}, "gemma3": {}, "gemma4": {}, "gemma4_unified": {}, "got_ocr2": {},
    "llama4": {}, "moss_transcribe_diarize": {}, "qwen3_5": {}, "qwen3_5_moe": {},
    "qwen4_exp": {},
}  # fmt: skip
# Whose configurations have little in common: other names, a scaled head, experts, projected states.
UNLIKE = ("granite", "mixtral", "opt", "gpt_neo", "bloom", "mamba", "cohere", "llama4_text")
# Those that the suite has in its usual form: of kinds that share their code one or two, all others
# in `make test-exhaustive`.
IN_THE_SUITE = (
    "bitnet", "bloom", "cohere", "cohere2", "dbrx", "deepseek_v3", "falcon_h1", "gemma3n_text",
    "gpt_neo", "gpt_oss", "gptj", "granite", "hyperclovax", "inkling_text",
    "jamba", "llama4_text", "mamba", "mamba2", "minimax", "mixtral", "modernbert-decoder", "mpt",
    "opt", "phimoe", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rwkv", "xglm", "zamba2",
    "gemma3", "llama4", "qwen3_5",
)  # fmt: skip
# Of those, one of each kind: ALiBi, latent attention and experts, a composite, a state space,
# projected states, a mixed stack.
QUICK = ("bloom", "deepseek_v3", "gemma3", "mamba2", "opt", "qwen3_next")
# Left out of the matrix: what is refused, by the package's own list, and these.
LEFT_OUT = {
    "dots3_note": "the whole of dots3_note_text's, which is in the matrix",
    "gemma3n": "its part for images needs the package timm; gemma3n_text is in the matrix",
}
# Families that need a later transformers than the oldest that is supported, and why.
SINCE = {
    "cohere_compass_text": ("5.23", "its configuration had another form"),
    "doge": ("5.23", "padding counted among the places that a token keeps; refused by name"),
}


def tiny_config(family: str, vocabulary: int = 29, **more: Any) -> Any:
    """A configuration of the family with small sizes and a layer of each kind that it has.

    Args:
        more: fields set besides.
    """
    whole = AutoConfig.for_model(family)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family in COMPOSITES:
        parts = {
            name: (
                tiny_config(part.model_type, vocabulary).to_dict()
                if part.model_type in FAMILIES
                else _small(part)
            )
            for name, part in vars(whole).items()
            if name.endswith("_config") and hasattr(part, "to_dict")
        }
        return AutoConfig.for_model(family, **{**parts, **ends, **COMPOSITES[family], **more})
    found: dict[str, Any] = {**_small(whole), **ends}
    found |= {name: vocabulary for name in vars(whole) if name.startswith("vocab_size")}
    kinds = {n: list(dict.fromkeys(getattr(whole, n) or ())) for n in _kinds_of_layers(whole)}
    kinds = {n: each for n, each in kinds.items() if each}
    count = max([2, *(len(each) for each in kinds.values())])
    for name, each in kinds.items():
        found[name] = [each[i % len(each)] for i in range(count)]
    depths = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if depth := next((name for name in depths if name in found), None):
        found[depth] = count
    for name, value in {**FAMILIES[family], **more}.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return AutoConfig.for_model(family, **found)


def _small(config: Any) -> dict[str, int]:
    """Sizes of a configuration by what their fields are called."""
    return {
        name: size
        for name, value in vars(config).items()
        if isinstance(value, int) and not isinstance(value, bool)
        for size in [next((size for form, size in SIZES if re.search(form, name)), None)]
        if size is not None
    }


def _kinds_of_layers(config: Any) -> list[str]:
    """Fields that say of which kind every layer is; those that follow from others are left out."""
    names = ("layer_types", "layers_block_type", "mlp_layer_types")
    fields = dict.fromkeys(type(config).attribute_map.get(name, name) for name in names)
    return [
        name
        for name in fields
        if hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)
    ]


def tiny_model(family: str, seed: int = 1, vocabulary: int = 29, **more: Any) -> Any:
    """A random model of the family, in eval mode: norms that start as 1 or 0 moved."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, vocabulary, **more)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def matrix() -> list[Any]:
    """The families of the installed transformers as parameters of a test: quick, slow, and
    exhaustive ones.
    """
    marks = {
        **{family: [pytest.mark.slow] for family in IN_THE_SUITE},
        **{family: [] for family in QUICK},
    }
    return [
        pytest.param(family, marks=marks.get(family, pytest.mark.exhaustive))
        for family in (*FAMILIES, *COMPOSITES)
        if is_here(family)
    ]


def is_here(family: str) -> bool:
    """Whether the installed transformers has the family, and in a form that is in the matrix."""
    since = Version(SINCE.get(family, ("0", ""))[0])
    return (
        family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and Version(transformers.__version__) >= since
    )


def row_of(family: str) -> tuple[str, str, str, str]:
    """A row of the table in docs/families.md: family, rows, hook points, states of all layers."""
    model = tiny_model(family)
    obstacle = enable_packing(model)
    # What torch says of a mask that does not fit is another text in every version.
    reason = re.sub(r"(a mask of its own) \(.*", r"\1", obstacle or "", flags=re.DOTALL)
    rows = "packed" if obstacle is None else f"padded: {_in_short(reason)}"
    try:
        hooks = str(len(available_hooks(model.config.get_text_config())))
    except ValueError:
        hooks = "logits alone"
    layers = "yes"
    if family in STREAMS:
        layers = "no: several states per token"
    elif not has_decoder_layers(model):
        layers = "no: no plain list of layers"
    return family, rows, hooks, layers


def _in_short(reason: str) -> str:
    reason = re.sub(
        r"its states in packed rows differ by .*", "it ignores positions or masks", reason
    )
    return re.sub(r" \(.*", "", reason, flags=re.DOTALL)


def documented(page: Path) -> dict[str, tuple[str, ...]]:
    """Family -> its row of the table in a page."""
    rows = re.findall(r"^\| (`.*) \|$", page.read_text(), re.MULTILINE)
    cells = [tuple(cell.strip(" `") for cell in row.split("|")) for row in rows]
    return {row[0]: row for row in cells}


if __name__ == "__main__":
    for parameters in matrix():
        found = row_of(parameters.values[0])
        print(f"| `{found[0]}` | {found[1]} | {found[2]} | {found[3]} |", flush=True)
