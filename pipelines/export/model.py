"""The exported model: the published files as they are, or an adapter merged into its base."""

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.export.finished import FinishedRun
from pipelines.models import (
    ADAPTER_CONFIG,
    ChatSettings,
    Placement,
    base_dir,
    hf_config,
    load_causal_lm,
    load_tokenizer,
    may_run,
    merged,
    publish_code,
    weights_fingerprint,
    with_adapter,
)
from pipelines.recipe import CARD

_CPU = torch.device("cpu")  # where both models are compared: the same machine gives the same bits
_OF_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class WrittenModel:
    """What was written, and what the run's own policy makes of the prompts.

    Attributes:
        logits: of every prompt, [tokens, vocabulary] in float32, by the published policy.
        is_merged: whether an adapter was merged.
    """

    logits: list[Tensor]
    is_merged: bool


def is_adapter(source: Path) -> bool:
    return (source / ADAPTER_CONFIG).is_file()


def needed_bytes(source: Path) -> int:
    """What the exported model takes on a disk, at most about."""
    own = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    if not is_adapter(source):
        return own
    from pipelines.models import without_weights

    parameters = sum(parameter.numel() for parameter in without_weights(source).parameters())
    return own + parameters * torch.float32.itemsize


def check_base(run: FinishedRun, source: Path) -> None:
    """UserError if an adapter's base is not there, or other weights are in its place."""
    if is_adapter(source):
        base = base_dir(source)
        hf_config(base)  # or says that its code is not trusted: then its fingerprint is another too
        if weights_fingerprint(base) != run.train["inputs"]["weights"]:
            raise UserError(
                f"the adapter's base {base} holds other weights than the run was trained from: "
                "merged into them it would be another model"
            )


def write_model(
    run: FinishedRun, source: Path, folder: Path, prompts: Sequence[Sequence[int]]
) -> WrittenModel:
    """Write model, tokenizer and generation config into an empty folder.

    An adapter is merged in float32, and written with the weights that train.lora.save=merged has.

    Raises: UserError if a part cannot be loaded or merged.
    """
    if is_adapter(source):
        return _write_merged(run, source, folder, prompts)
    ignored = shutil.ignore_patterns(CARD, ".*")
    shutil.copytree(source, folder, ignore=ignored, dirs_exist_ok=True)
    dtype = hf_config(source).dtype or torch.float32
    return WrittenModel(logits_of(load_causal_lm(str(source), dtype), prompts), is_merged=False)


def _write_merged(
    run: FinishedRun, source: Path, folder: Path, prompts: Sequence[Sequence[int]]
) -> WrittenModel:
    base = base_dir(source)
    adapted = with_adapter(load_causal_lm(str(base), torch.float32), source)
    logits = logits_of(adapted, prompts)
    weights = Placement.choose(run.recipe.train.precision, _CPU, 0, 1).weights
    try:
        with warnings.catch_warnings():  # peft's on tied weights, which `merged` ties again
            warnings.simplefilter("ignore", UserWarning)
            whole = merged(adapted).to(weights)
        whole.save_pretrained(folder)
    except (ValueError, RuntimeError) as error:  # peft's; a generation config that is none
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"model directory {source}: {line}") from error
    if may_run(base):
        publish_code(base, folder)
        chat = ChatSettings.of(run.recipe.data)
        if chat.template is not None:
            text = chat.on(load_tokenizer(str(base))).chat_template
            (folder / "chat_template.jinja").write_text(text)
        return WrittenModel(logits, is_merged=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in (*_OF_ADAPTERS, CARD):
            shutil.copyfile(file, folder / file.name)
    return WrittenModel(logits, is_merged=True)


@torch.no_grad()
def logits_of(model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits of every prompt, [tokens, vocabulary] in float32; each is read alone."""
    model.eval()
    return [model(input_ids=torch.tensor([list(ids)])).logits[0].float() for ids in prompts]
