"""Load models and tokenizers from their directories (directories.py).

Weights are read from safetensors only; code that a model brings runs only if it is trusted
(trusted_code.py). Importing this module imports no library; its functions do.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.models.accelerator import device_kind, dtype_name
from pipelines.models.contents import tokenizer_contents
from pipelines.models.directories import base_dir, tokenizer_home
from pipelines.models.quick_imports import quick_imports
from pipelines.models.tensors import check_adapter
from pipelines.models.trusted_code import refuse_foreign_code, refused_code, trusted_copy
from pipelines.storage import CACHE, digest, spent

if TYPE_CHECKING:
    import torch


def from_directory(auto_class: Any, directory: Path, what: str = "", **settings: Any) -> Any:
    """`auto_class.from_pretrained` without network; code of the model's own runs only if trusted.

    Raises: UserError naming the directory, `what` is wrong and why.
    """
    try:
        refuse_foreign_code(directory)
        code = trusted_copy(directory, CACHE)
        with quick_imports(), spent("load"):
            return auto_class.from_pretrained(
                code or directory,
                local_files_only=True,
                trust_remote_code=code is not None,
                **settings,
            )
    except Exception as error:  # a family's own configuration or tokenizer may raise anything
        refused = refused_code(directory) if "trust_remote_code" in str(error) else None
        raise UserError(f"model directory {directory}: {what}{refused or _line(error)}") from error


def _line(error: Exception) -> str:
    """An error in one line; of torch's heads with a colon, with what stands below."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    head = lines[0] if lines else type(error).__name__
    return f"{head} {lines[1]}" if head.endswith(":") and len(lines) > 1 else head


def load_tokenizer(directory: str) -> Any:
    """The fast tokenizer of a local directory; UserError if it has none or no EOS token.

    A process that asks again for the same files gets the same object.
    """
    return _loaded_tokenizer(directory, digest(tokenizer_contents(Path(directory))))


@lru_cache(maxsize=4)
def _loaded_tokenizer(directory: str, contents: str) -> Any:
    return fresh_tokenizer(directory)


def fresh_tokenizer(directory: str) -> Any:
    """As `load_tokenizer`, an object that nobody has used or changed."""
    with quick_imports():
        from transformers import AutoTokenizer

    tokenizer = from_directory(
        AutoTokenizer, tokenizer_home(Path(directory)), "no usable tokenizer: "
    )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {directory} has no EOS token: a response could not be ended; set "
            "eos_token in its tokenizer_config.json"
        )
    return tokenizer


@spent("load")
def load_causal_lm(
    directory: str,
    dtype: "torch.dtype",
    device: "torch.device | str" = "cpu",
    num_gpus: int = 1,
    vocabulary: int | None = None,
) -> Any:
    """A causal language model in eval mode, without gradient checkpointing; an adapter is merged.

    Args:
        num_gpus: more than one spreads the layers over the first GPUs that this process sees.
        vocabulary: embeddings beyond so many are left out; of a model with soft tokens, which it
            reads and never predicts, rows of the head alone.
    """
    with quick_imports():
        import torch
        from transformers import AutoModelForCausalLM

        from pipelines.models.control import recorded_control
        from sparsepo.model import cut_head, cut_vocabulary, verify_head

    base = base_dir(Path(directory))
    is_adapter = base != Path(directory)
    check_adapter(Path(directory))
    spread = {"device_map": "balanced"} if num_gpus > 1 else {}
    # An adapter is added in float32, or its update would be rounded to the base's precision.
    model, found = from_directory(
        AutoModelForCausalLM,
        base,
        dtype=torch.float32 if is_adapter else dtype,
        use_safetensors=True,
        output_loading_info=True,
        **spread,
    )
    if missing := sorted(found["missing_keys"]):
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"model directory {base}: its weights lack {missing[0]}{others}, which its "
            "configuration asks for: they would be random"
        )
    if is_adapter:
        from pipelines.models.adapters import merged_adapter

        model = merged_adapter(model, Path(directory)).to(dtype)
    model = model.eval() if spread else model.to(device).eval()
    try:
        verify_head(model)
        if vocabulary is not None:
            control = recorded_control(Path(directory))
            cut = cut_head if control is not None and control.soft_ids else cut_vocabulary
            cut(model, vocabulary)
    except ValueError as error:
        raise UserError(f"model directory {directory}: {error}") from error
    return model


def without_weights(directory: str | Path) -> Any:
    """The modules of a model directory on the meta device: no weights, no memory.

    For an adapter they are the base's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    base = base_dir(Path(directory))
    config, code = hf_config(base), trusted_copy(base, CACHE)
    # Where transformers looks for the code; config.json may name another place.
    config.name_or_path = str(code or base)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=code is not None)


def hf_config(directory: str | Path) -> Any:
    """The transformers configuration of a model directory (of the base for an adapter)."""
    from transformers import AutoConfig

    return from_directory(AutoConfig, base_dir(Path(directory)))


def compute_device() -> "torch.device":
    import torch

    return torch.device(device_kind())


def reference_dtype(setting: str, device: "torch.device") -> "torch.dtype":
    """`auto`: bfloat16 on a GPU, float32 on CPU."""
    import torch

    found: torch.dtype = getattr(torch, dtype_name(setting, device.type))
    return found
