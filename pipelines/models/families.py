"""Families of models by what `config.json` calls them: those that are refused, and what some lack.

No library is imported.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

from pipelines.models.directories import model_config

_ENCODER = "they are encoders, and their head reads other states than the last layer's"
_ALONE = "transformers does not load their language model again once it is saved alone"
# Families that transformers loads as causal language models and that are not tuned here.
REFUSED = {
    **dict.fromkeys(
        (
            "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
            "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
            "xlm-roberta-xl", "xmod",
        ),
        _ENCODER,
    ),
    "xlm": "they are encoders",
    "cpmant": "a token sees what follows it in the prompt",
    "xlnet": "a token sees what follows it",
    "prophetnet": "they predict several tokens at once",
    "reformer": "a sequence is cut into chunks of one length, and gradients exist while they train "
    "alone",
    "blt": "they read bytes in patches of a model of its own",
    "gemma4_assistant": "they draft tokens for another model",
    "gemma4_unified_assistant": "they draft tokens for another model",
    "git": "they are captioners of images",
    "phi4_multimodal": "their parts for images and sound lie within the language model",
    "emu3": _ALONE,
    "mllama": _ALONE,
    "musicgen": "their tokens are sound",
    "musicgen_melody": "their tokens are sound",
}  # fmt: skip
ENCODERS_UNLESS_SAID = ("bert-generation",)
# Refused before this version of transformers.
REFUSED_BEFORE = {"doge": ("5.23", "padding counts among the places that a token keeps")}
# Rows of the embeddings beyond vocab_size, by family.
MORE_ROWS = {"moshi": 1}
# Families whose layers hand on several states per token.
STREAMS = frozenset(
    ("deepseek_v4", "gemma3n", "gemma3n_text", "hy_v4", "qwen4_exp", "qwen4_exp_text")
)
# What configurations call the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def refusal_of(directory: Path) -> str | None:
    """Why models of a directory's family are not tuned; None if they are, or it is unknown."""
    family = family_of(directory)
    reason = REFUSED.get(family)
    if family in ENCODERS_UNLESS_SAID and not model_config(directory).get("is_decoder"):
        reason = "they are encoders unless their configuration says is_decoder"
    elif family in REFUSED_BEFORE:
        since, why = REFUSED_BEFORE[family]
        installed = metadata.version("transformers")
        if Version(installed) < Version(since):
            reason = f"{why} in transformers {installed}; {since} mends it"
    return f"models of type {family!r} are not tuned: {reason}" if reason else None


def num_experts(config: Any) -> int:
    """Experts of a feed-forward layer, as a transformers configuration says; 0 without any."""
    text = config.get_text_config()
    parts = (text, getattr(text, "ffn_config", None))
    found = [getattr(part, name, None) for part in parts for name in _EXPERTS]
    return max((count for count in found if isinstance(count, int)), default=0)


def family_of(directory: Path) -> str:
    """The model type of a model directory, of the base for an adapter; "" if it says none."""
    return str(model_config(directory).get("model_type") or "")
