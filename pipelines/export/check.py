"""What was written is read again as others will: plain transformers, and vLLM where it is."""

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipelines.errors import StageFailed
from pipelines.export.model import WrittenModel, logits_of
from pipelines.models import from_directory, may_run, tokenizer_fingerprint

_FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
# Of the largest logit: rounding of a merged model's float32 weights; of 16-bit ones.
_TOLERANCE = {torch.float32: 1e-4}
_COARSE = 5e-2


def check_model(
    written: WrittenModel, source: Path, folder: Path, prompts: Sequence[Sequence[int]]
) -> list[str]:
    """What was looked at and found, in lines.

    Code of the model's own runs only where it is trusted, as it was in the run.

    Raises: StageFailed if it does not load whole, or is another model or tokenizer than the run's.
    """
    model, found = from_directory(AutoModelForCausalLM, folder, output_loading_info=True)
    for kind in _FAULTS:
        if faults := sorted(map(str, found.get(kind) or ())):
            raise StageFailed(
                f"the export does not load: {kind}: {faults[0]} ({len(faults)} in all)"
            )
    if tokenizer_fingerprint(folder) != tokenizer_fingerprint(source):
        raise StageFailed("the export's tokenizer is not the run's")
    GenerationConfig.from_pretrained(folder)
    dtype = next(model.parameters()).dtype
    return [
        f"loads in plain transformers as {type(model).__name__} in {str(dtype)[6:]}, no key is "
        "missing or left over",
        _compared(written, logits_of(model, prompts), dtype),
    ]


def _compared(written: WrittenModel, logits: Sequence[torch.Tensor], dtype: torch.dtype) -> str:
    """The line on how far the logits are from the published policy's."""
    pairs = list(zip(logits, written.logits, strict=True))
    where = f"the logits on {len(pairs)} of the run's prompts"
    largest = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    scale = max(float(theirs.abs().max()) for _, theirs in pairs)
    if not written.is_merged:
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            raise StageFailed(
                f"the export is not the run's policy: {where} differ by up to {largest:.3g}"
            )
        return f"{where} equal those of the run's policy, bit for bit"
    allowed = _TOLERANCE.get(dtype, _COARSE) * scale
    if not largest <= allowed:
        raise StageFailed(
            f"the merged weights are not the run's policy: {where} differ by up to {largest:.3g}, "
            f"rounding explains {allowed:.3g}"
        )
    return (
        f"{where} differ from those of the unmerged adapter by {largest:.2g} at most (the largest "
        f"is {scale:.3g})"
    )


def vllm_line(folder: Path) -> str:
    """What vLLM's own check of a model's configuration says; that it was not asked without vLLM.

    Nobody has run this against a real vLLM yet.
    """
    if util.find_spec("vllm") is None:
        return "vLLM is not installed here: its check of the configuration was not run"
    try:
        engine: Any = __import__("vllm.engine.arg_utils", fromlist=["EngineArgs"])
        given = {"model": str(folder), "trust_remote_code": may_run(folder)}
        engine.EngineArgs(**given).create_model_config()
    except Exception as error:  # of the check itself, or of an installation that does not start
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        line = line.replace(str(folder), "the export")  # its place is nobody's business
        return f"warning: vLLM does not take the configuration: {line}"
    return "vLLM takes the configuration"
