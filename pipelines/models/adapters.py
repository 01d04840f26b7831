"""Adapters of peft: what kinds are merged into their base, and merging them."""

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.tensors import adapter_rows


def merged_adapter(base: Any, directory: Path) -> Any:
    """The base with an adapter merged into it, whose logits are those of peft's unmerged model.

    A base with fewer embeddings than the adapter holds gets as many first. A head that shares its
    weights with the embeddings, of which the adapter changes one, has its own afterwards.

    Args:
        base: a transformers causal language model in float32; it is changed.
    Raises: UserError naming the directory if peft cannot load or merge it.
    """
    loaded = with_adapter(base, directory)
    try:
        whole = merged(loaded)
        for layer in (whole.get_input_embeddings(), whole.get_output_embeddings()):
            if not bool(layer.weight.isfinite().all()):
                raise ValueError("it does not hold all rows of the embeddings and the head")
    except Exception as error:  # peft's own
        raise _refused(directory, error) from error
    return whole.requires_grad_(True)  # peft froze the base


def with_adapter(base: Any, directory: Path) -> Any:
    """The base with an adapter beside its weights, as peft runs it; not merged.

    Args and raises: as `merged_adapter`.
    """
    from peft import PeftModel

    rows = adapter_rows(directory)
    try:
        if rows is not None and len(base.get_input_embeddings().weight) != rows:
            _resize(base, rows)
        return PeftModel.from_pretrained(base, directory).eval()
    except Exception as error:  # peft's own, and what safetensors makes of a damaged file
        raise _refused(directory, error) from error


def add_adapter(adapted: Any, directory: Path, name: str) -> None:
    """Put another adapter of the same base beside those that a model of peft's has.

    Raises: UserError naming the directory if peft cannot load it.
    """
    try:
        adapted.load_adapter(directory, adapter_name=name)
    except Exception as error:  # peft's own, and what safetensors makes of a damaged file
        raise _refused(directory, error) from error


def merged(adapted: Any) -> Any:
    """A model of peft's, merged: the transformers model with the logits that it had before.

    Raises: ValueError if a weight would not be a number.
    """
    is_tied = _untie(adapted.get_base_model())
    whole = adapted.merge_and_unload(safe_merge=True)
    if is_tied:
        _tie_again(whole)
    return whole


def _refused(directory: Path, error: Exception) -> UserError:
    return UserError(f"model directory {directory}: {str(error).strip().partition(chr(10))[0]}")


def _resize(base: Any, rows: int) -> None:
    """Other embeddings, which the adapter brings; a row that it does not is not a number."""
    old = len(base.get_input_embeddings().weight)
    base.resize_token_embeddings(rows, mean_resizing=False)
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        layer.weight.data[old:] = float("nan")


def _untie(transformer: Any) -> bool:
    """Give the head weights of its own where it shares the table's, inside peft's layers too.

    Merged into shared weights, a change of one would change both.
    """
    import torch

    table, head = transformer.get_input_embeddings(), transformer.get_output_embeddings()
    shared = {id(p) for p in table.parameters()} & {id(p) for p in head.parameters()}
    of_table = set(table.modules())
    for module in set(head.modules()) - of_table:
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in shared:
                copied = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, copied)
    return bool(shared)


def _tie_again(whole: Any) -> None:
    """Share the weights of table and head again where they are the same, and say in the
    configuration what is so: a model that is saved would lose one of them.
    """
    import torch

    table, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    is_tied = torch.equal(table.weight, head.weight)
    if is_tied:
        head.weight = table.weight
    for config in (whole.config, whole.config.get_text_config()):
        config.tie_word_embeddings = is_tied  # peft may have changed it on its way
    whole.all_tied_weights_keys = whole.get_expanded_tied_weights_keys(all_submodels=True)
