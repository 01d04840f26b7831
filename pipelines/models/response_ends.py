"""Where a response ends: the tokens after which nothing belongs to it.

Training pairs, sampling and its KL have the same ones: the tokenizer's end token, the end of turn
of its chat template and what the model's generation_config lists. A response includes the one that
ends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.chat_template import ChatSettings, ChatTemplate, special_ids
from pipelines.models.directories import (
    base_dir,
    json_of,
    model_config,
    resolve_model,
)
from pipelines.models.fingerprints import ask_tokenizer


@dataclass(frozen=True)
class ResponseEnds:
    """The tokens that end a response.

    Attributes:
        ids: token ids, the tokenizer's end token first. left_out: what the model lists although it
            is ordinary text to the tokenizer.
    """

    ids: tuple[int, ...]
    left_out: tuple[str, ...] = ()

    def fingerprint(self) -> dict[str, Any]:
        """What a stage that samples records of its input.

        It is empty where only the tokenizer's own token ends a response.
        """
        return {"response_ends": list(self.ids)} if len(self.ids) > 1 else {}

    def cut(self, ids: Sequence[int]) -> list[int]:
        """A sample up to and including its first end token; all of it if it has none."""
        for place, token in enumerate(ids):
            if token in self.ids:
                return list(ids[: place + 1])
        return list(ids)

    def text(self, tokenizer: Any, ids: Sequence[int]) -> str:
        """A response's text, without its end token, and without special tokens elsewhere."""
        spoken = ids[:-1] if len(ids) and ids[-1] in self.ids else ids
        found: str = tokenizer.decode(
            list(spoken), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return found


def response_ends(
    model: str, tokenizer: str | None = None, chat: ChatSettings | None = None
) -> ResponseEnds:
    """The ends of a model's responses.

    All models that are compared with the starting model take its ends.

    Args:
        model: name or path. tokenizer: likewise, the model's own by default. chat: the template
            that a recipe sets.
    Raises: UserError if model or tokenizer does not exist.
    """
    directory = resolve_model(model)
    listed = _listed_ends(directory)
    found = ask_tokenizer(
        "response-ends",
        resolve_model(tokenizer, tokenizer_only=True) if tokenizer else directory,
        lambda loaded: _ends(loaded, listed, chat),
        [listed, vars(chat or ChatSettings())],
    )
    return ResponseEnds(tuple(found["ids"]), tuple(found["left_out"]))


def _ends(tokenizer: Any, listed: list[int], chat: ChatSettings | None) -> dict[str, list[Any]]:
    """Fields of the ResponseEnds of a tokenizer and a model that lists these ends."""
    marks, turn_end = special_ids(tokenizer), end_of_turn(tokenizer, chat)
    ids = dict.fromkeys(
        [tokenizer.eos_token_id] if turn_end is None else [tokenizer.eos_token_id, turn_end]
    )
    left_out = []
    for token in listed:
        text = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
        # A configuration that was never set names a class's default, whatever the tokenizer has
        # there.
        if text is not None and token not in marks and token not in tokenizer.added_tokens_decoder:
            left_out.append(f"{text} ({token})")
        else:
            ids[token] = None
    return {"ids": list(ids), "left_out": left_out}


def end_of_turn(tokenizer: Any, chat: ChatSettings | None = None) -> int | None:
    """The token that ends the assistant's turn in the chat template; None if there is none.

    Prepare ends chat responses with it.
    """
    try:
        return ChatTemplate(tokenizer, chat).form.end
    except UserError:  # prepare says what is wrong with a template, if the data is chat
        return None


def _listed_ends(directory: Path) -> list[int]:
    """What the model itself lists.

    The list is in generation_config.json; without one, in the configuration as transformers takes
    it.
    """
    file = base_dir(directory) / "generation_config.json"
    if file.exists():
        found = json_of(file).get("eos_token_id")
    else:
        config, file = model_config(directory), file.with_name("config.json")
        text = config.get("text_config")
        inner = text.get("eos_token_id") if isinstance(text, dict) else None
        found = config.get("eos_token_id", inner)
    ends = [token for token in (found if isinstance(found, list) else [found]) if token is not None]
    if wrong := [token for token in ends if not isinstance(token, int) or token < 0]:
        raise UserError(f"{file}: eos_token_id is {wrong[0]!r}, and is to be a token id or several")
    return ends
