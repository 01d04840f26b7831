"""Models of a known shape with random weights, for benchmarks where speed matters and text does
not.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "pythia-1.4b": {
        "model_type": "gpt_neox",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 50304,
        "rotary_pct": 0.25,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}


def model_directory(model: str, tokenizer: str, work: Path) -> Path:
    """A model directory: `model` itself if it is one, else a random model of that shape with the
    named tokenizer.

    Raises: SystemExit naming the shapes if it is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    if model not in SHAPES:
        raise SystemExit(f"--model {model}: neither a directory nor one of {', '.join(SHAPES)}")
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = work / model
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = dict(SHAPES[model])
        with torch.device(device):
            built = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=torch.bfloat16
            )
        built.save_pretrained(folder)
        del built
        if device == "cuda":
            torch.cuda.empty_cache()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (Path(tokenizer) / name).is_file():
                shutil.copy(Path(tokenizer) / name, folder / name)
    return folder
