"""Texts that a model is tuned to obey in front of a prompt, one for good and one for bad responses.

After MEET (arXiv:2310.00819). A soft text is tokens of the model's own: as many as the recipe's
text has, beginning as its embeddings (peft's prompt tuning with a text), in the vocabulary under
names like <|good-1|>. Such a model is a plain one, and its control a plain string. These tokens
stand in front and are never predicted: distributions leave their rows out.

CONTROL_FILE beside the weights keeps texts and ids.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.models.directories import base_dir, json_of, resolve_model
from pipelines.models.fingerprints import ask_tokenizer
from pipelines.models.sizes import embedding_rows, tokens_in_use
from pipelines.models.trusted_code import may_run
from pipelines.recipe import ControlSection, Recipe

CONTROL_FILE = "control.json"
Label = Literal["good", "bad"]
LABELS: tuple[Label, ...] = ("good", "bad")


@dataclass(frozen=True)
class ControlText:
    """One of the two texts.

    Attributes:
        text: the recipe's. ids: tokens that stand in front of a prompt. names: of these tokens, if
            they are soft: joined they are the string to type. Else empty, and `text` is.
    """

    text: str
    ids: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def string(self) -> str:
        return "".join(self.names) or self.text


@dataclass(frozen=True)
class Control:
    """What stands in front of prompts whose response is good, and bad.

    Attributes:
        begins_as: ids of the recipe's texts, whose embeddings soft tokens begin as; good, then bad.
    """

    good: ControlText
    bad: ControlText
    begins_as: tuple[int, ...]

    @property
    def soft_ids(self) -> tuple[int, ...]:
        """Ids of the soft tokens; empty if the texts are words."""
        return (*self.good.ids, *self.bad.ids) if self.good.names else ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.good.names, *self.bad.names)

    @property
    def first(self) -> int | None:
        """Rows of the head over which distributions are; None for all."""
        return min(self.soft_ids, default=None)

    def ids(self, desirable: bool) -> tuple[int, ...]:
        return self.good.ids if desirable else self.bad.ids

    def front(self, name: Literal["good", "bad", "none"]) -> tuple[int, ...]:
        """The ids that one of evaluate.control means."""
        return () if name == "none" else self.ids(name == "good")

    @property
    def longest(self) -> int:
        return max(len(self.good.ids), len(self.bad.ids))

    def fingerprint(self) -> dict[str, Any]:
        """What prepared rows depend on."""
        return {"good": list(self.good.ids), "bad": list(self.bad.ids)}

    def write(self, folder: Path) -> None:
        """Keep it beside the weights of a model."""
        (folder / CONTROL_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def recorded_control(directory: Path) -> Control | None:
    """The control that a model was tuned with; None for any other model.

    Raises: UserError if its file is damaged.
    """
    folder = directory if (directory / CONTROL_FILE).is_file() else base_dir(directory)
    file = folder / CONTROL_FILE
    if not file.is_file():
        return None
    found = json_of(file)
    try:
        texts = {
            label: ControlText(
                _text(found[label]["text"]),
                _ids(found[label]["ids"]),
                tuple(map(_text, found[label]["names"])),
            )
            for label in LABELS
        }
        control = Control(**texts, begins_as=_ids(found["begins_as"]))
        if bool(control.good.names) != bool(control.bad.names):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file}: damaged, it is not what training wrote; restore it, or remove it to use the "
            "model without its control"
        ) from None
    return control


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not value
        or not all(type(i) is int and i >= 0 for i in value)
    ):
        raise ValueError(value)
    return tuple(value)


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


def in_front(control: Sequence[int], prompt: Sequence[int], bos: int | None) -> list[int]:
    """A prompt's ids with a control's in front: after BOS, if it begins with that."""
    begun = int(len(prompt) > 0 and prompt[0] == bos)
    return [*prompt[:begun], *control, *prompt[begun:]]


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
