"""A recipe's control: its ids for a tokenizer, its soft tokens in a tokenizer and a model."""

from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.control import (
    CONTROL_FILE,
    LABELS,
    Control,
    ControlText,
    recorded_control,
)
from pipelines.models.directories import base_dir, resolve_model
from pipelines.models.fingerprints import ask_tokenizer
from pipelines.models.sizes import embedding_rows, tokens_in_use
from pipelines.models.trusted_code import may_run
from pipelines.recipe import ControlSection, Recipe


def control_of(recipe: Recipe) -> Control | None:
    """The control of a training: what its prompts get in front; None without sft.control.

    Raises: UserError if the starting model has another control, the texts have the same tokens, or
        model or tokenizer cannot have soft tokens.
    """
    section = recipe.control()
    if section is None:
        return None
    directory = resolve_model(recipe.model.name_or_path)
    tokenizer = resolve_model(
        recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True
    )
    known = recorded_control(directory)
    if known is not None:
        _check_known(section, known, directory)
        return known
    good, bad = (_ids_of(tokenizer, text) for text in (section.good, section.bad))
    for label, ids in (("good", good), ("bad", bad)):
        if not ids:
            raise UserError(
                f"sft.control.{label} = {getattr(section, label)!r}: it has no token for the "
                f"tokenizer of {tokenizer}"
            )
    if good == bad:
        raise UserError(
            f"sft.control: good = {section.good!r} and bad = {section.bad!r} have the same tokens "
            f"for the tokenizer of {tokenizer}: they must differ"
        )
    _check_rows(directory, tokenizer, is_soft="soft" in section.stages)
    texts = ControlText(section.good, good), ControlText(section.bad, bad)
    if "soft" in section.stages:
        texts = _soft(directory, tokenizer, texts)
    found = Control(*texts, begins_as=(*good, *bad))
    if found.longest >= recipe.data.max_prompt_tokens:
        raise UserError(
            f"data.max_prompt_tokens = {recipe.data.max_prompt_tokens}: sft.control stands in "
            f"front of a prompt and has {found.longest} tokens; set it higher"
        )
    return found


def evaluated_control(recipe: Recipe) -> Control | None:
    """The control of the model that is evaluated; None where evaluate.control asks for none.

    Raises: UserError if that model was tuned without one.
    """
    asked = recipe.evaluate.control
    if not asked:
        return None
    key = "evaluate.model" if recipe.evaluate.model else "model.name_or_path"
    name = recipe.evaluate.model or recipe.model.name_or_path
    found = recorded_control(resolve_model(name))
    if found is None:
        raise UserError(
            f"evaluate.control = [{', '.join(asked)}]: {key} = {name} has no {CONTROL_FILE}: it "
            "was not tuned with a control (`sparsepo sft` with sft.control)"
        )
    return found


def _check_known(section: ControlSection, known: Control, directory: Path) -> None:
    for label in LABELS:
        asked, has = getattr(section, label), getattr(known, label).text
        if asked != has:
            raise UserError(
                f"sft.control.{label} = {asked!r}: the model {directory} was tuned with {has!r}"
            )
    if "soft" in section.stages:
        raise UserError(
            f"sft.control.stages = [{', '.join(section.stages)}]: the model {directory} was tuned "
            "with this control already; take [model]"
        )


def _check_rows(directory: Path, tokenizer: Path, is_soft: bool) -> None:
    rows, used = embedding_rows(directory), tokens_in_use(tokenizer)
    if used["last"] >= rows:
        raise UserError(
            f"sft.control: the tokenizer of {tokenizer} has tokens up to {used['last']}, but the "
            f"embeddings of the model {directory} have {rows} rows: there is no place for a "
            "control; resize the model first (model.resize_token_embeddings)"
        )
    if is_soft and may_run(base_dir(directory)):
        raise UserError(
            f"sft.control.stages names soft: the model {directory} is published with the "
            "tokenizer that its own code has, which gets no tokens; take [model]"
        )


def _ids_of(directory: Path, text: str) -> tuple[int, ...]:
    def ids(tokenizer: Any) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    return tuple(ask_tokenizer("ids of a text", directory, ids, text))


def _soft(
    directory: Path, tokenizer: Path, texts: tuple[ControlText, ControlText]
) -> tuple[ControlText, ControlText]:
    """The texts as tokens of their own, with the next ids that are free."""
    at = tokens_in_use(tokenizer)["last"] + 1
    found = []
    for label, each in zip(LABELS, texts, strict=True):
        names = tuple(f"<|{label}-{number}|>" for number in range(1, len(each.ids) + 1))
        for name in names:
            if len(_ids_of(tokenizer, name)) == 1:
                raise UserError(
                    f"sft.control.stages names soft: the tokenizer of {tokenizer} has a token "
                    f"{name!r} already; take [model]"
                )
        found.append(ControlText(each.text, tuple(range(at, at + len(names))), names))
        at += len(names)
    return found[0], found[1]


def with_soft_tokens(tokenizer: Any, control: Control | None) -> Any:
    """A copy of the tokenizer that reads the names of soft tokens as these; without any, itself."""
    if control is None or not control.soft_ids:
        return tokenizer
    from copy import deepcopy

    from transformers import AddedToken

    found = deepcopy(tokenizer)
    tokens = [AddedToken(name, special=True, normalized=False) for name in control.names]
    found.add_tokens(tokens, special_tokens=True)
    got = tuple(found.convert_tokens_to_ids(list(control.names)))
    if got != control.soft_ids:
        raise UserError(
            f"sft.control: the tokenizer gives {list(control.names)} the ids {list(got)}, the "
            f"embeddings are at {list(control.soft_ids)}: its ids have gaps; take stages [model]"
        )
    return found


def add_rows(causal_lm: Any, control: Control) -> None:
    """Give a model embeddings for soft tokens, in place, equal to those of the recipe's texts.

    Raises: UserError if the model's embeddings cannot be more.
    """
    import torch

    needed = max(control.soft_ids) + 1
    config = getattr(causal_lm, "generation_config", None)
    if config is not None:  # transformers' own sampling never draws them then
        config.suppress_tokens = sorted({*(config.suppress_tokens or ()), *control.soft_ids})
    try:
        if len(causal_lm.get_input_embeddings().weight) < needed:
            causal_lm.resize_token_embeddings(needed, mean_resizing=False)
    except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"sft.control.stages names soft: {type(causal_lm).__name__} has no room for other "
            f"tokens: {str(error).splitlines()[0]}"
        ) from error
    with torch.no_grad():
        for layer in (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()):
            weight = layer.weight
            weight[list(control.soft_ids)] = weight[list(control.begins_as)].clone()
            bias = getattr(layer, "bias", None)
            if bias is not None:
                bias[list(control.soft_ids)] = bias[list(control.begins_as)].clone()
