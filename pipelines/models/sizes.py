"""Whether a model has embeddings for a tokenizer's tokens. No model is loaded."""

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.directories import base_dir, model_config
from pipelines.models.families import MORE_ROWS, family_of
from pipelines.models.fingerprints import ask_tokenizer, model_shape
from pipelines.models.tensors import (
    HEAD,
    TABLE,
    adapter_rows,
    check_adapter,
    model_tensors,
)
from pipelines.models.trusted_code import may_run


def embedding_rows(directory: Path) -> int:
    """Ids that a model has embeddings for; of the base for an adapter that brings none.

    Raises: UserError if configuration and weights disagree, or an adapter does not fit its base.
    """
    check_adapter(directory)
    own, brought = _own_rows(directory), adapter_rows(directory)
    return own if brought is None else brought


def _own_rows(directory: Path) -> int:
    base = base_dir(directory)
    config = model_config(base)
    said = (config.get("text_config") or {}).get("vocab_size", config.get("vocab_size"))
    tensors = model_tensors(base)
    tables = {name: shape[0] for name, shape in tensors.items() if TABLE.search(name)}
    if said is not None and not may_run(base) and "quantization_config" not in config:
        heads = {name: shape[0] for name, shape in tensors.items() if HEAD.search(name)}
        wrong = {} if said + MORE_ROWS.get(family_of(base), 0) in tables.values() else tables
        for name, rows in (wrong | heads).items():
            if rows != said:
                raise UserError(
                    f"model directory {base}: config.json says vocab_size = {said}, {name} has "
                    f"{rows} rows"
                )
    found = {rows - MORE_ROWS.get(family_of(base), 0) for rows in tables.values()}
    if len(found) == 1:
        return found.pop()
    return int(said) if said is not None else model_shape(directory).vocabulary


def tokens_in_use(directory: Path) -> dict[str, Any]:
    """How many tokens a tokenizer has, and which of those that may occur has the largest id.

    A special token without a role (BOS, EOS, PAD, UNK), that no chat template names, does not occur
    by itself: some tokenizers have such tokens for other models of their family.

    Returns: tokens (how many), largest (an id), name (its token), and last (the largest id of all).
    Raises: UserError if the directory has no usable tokenizer.
    """
    found: dict[str, Any] = ask_tokenizer("tokens in use", directory, _tokens_in_use)
    return found


def _tokens_in_use(tokenizer: Any) -> dict[str, Any]:
    roles = {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    }
    templates = str(tokenizer.chat_template)
    idle = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and number not in roles and token.content not in templates
    }
    used = {number: token for token, number in tokenizer.get_vocab().items() if number not in idle}
    used |= {n: tokenizer.convert_ids_to_tokens(n) for n in roles - used.keys() if n is not None}
    largest = max(used)
    last = max(largest, *idle) if idle else largest
    return {"tokens": len(tokenizer), "largest": largest, "name": used[largest], "last": last}


def check_tokenizer(key: str, directory: Path, tokenizer: Path) -> None:
    """UserError if a tokenizer has tokens that a model has no embeddings for.

    Args:
        key: of the recipe, which names the model. directory: of the model. tokenizer: its
            directory.
    """
    rows, used = embedding_rows(directory), tokens_in_use(tokenizer)
    if used["largest"] >= rows:
        raise UserError(
            f"{key} = {directory}: the tokenizer of {tokenizer} has {used['tokens']} tokens, the "
            f"largest id in use is {used['largest']} ({used['name']!r}), but the model's "
            f"embeddings have {rows} rows: make them larger "
            f"(model.resize_token_embeddings({used['largest'] + 1})) and save the model, or take "
            "the tokenizer that it was trained with"
        )
