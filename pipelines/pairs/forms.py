"""The forms preference data comes in -> (prompt, chosen, rejected) -> token ids.

Text: prompt and response are tokenised separately and joined; BOS only if the tokenizer's own
encoding adds it; one EOS ends the response. Conversational: the chat template's text up to the
assistant's turn is the prompt, its remainder up to and including the end-of-turn token is the
response; nothing is added. Beside a prompt, chosen and rejected are the messages after it or the
whole conversations with it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import UserError
from pipelines.models import last_special, special_ids
from pipelines.recipe import ColumnNames, DataSection

HH_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class RawPair:
    """One pair before tokenisation.

    `is_chat`: strings are rendered by a chat template and already end themselves.
    """

    prompt: str
    chosen: str
    rejected: str | None
    chosen_score: float | None = None
    rejected_score: float | None = None
    is_chat: bool = False
    chosen_weights: list[float] | None = None
    rejected_weights: list[float] | None = None


class RowRejected(Exception):
    """A row cannot be used; the message is the reason that rejected_rows.jsonl records."""


def detect_form(columns: set[str], names: ColumnNames, first_row: dict[str, Any]) -> str:
    """The form that fits the columns; UserError naming what is missing if none does."""
    if {names.responses, names.scores} <= columns:
        return "scored"
    if {names.chosen, names.rejected} <= columns:
        if isinstance(first_row.get(names.chosen), list):
            return "conversational"
        return "text" if names.prompt in columns else "hh"
    if {names.prompt, names.chosen} <= columns:
        return "chosen_only"
    if names.text in columns:
        return "text_only"
    raise UserError(
        f"columns {sorted(columns)} fit no form: want "
        f"{names.prompt}/{names.chosen}/{names.rejected}, "
        f"{names.prompt}/{names.responses}/{names.scores} or {names.text} (set "
        "data.sources[].columns)"
    )


def needed_columns(form: str, names: ColumnNames) -> list[str]:
    """Columns a source of this form must have."""
    needed = {
        "text": [names.prompt, names.chosen, names.rejected],
        "conversational": [names.chosen, names.rejected],
        "hh": [names.chosen, names.rejected],
        "scored": [names.prompt, names.responses, names.scores],
        "chosen_only": [names.prompt, names.chosen],
        "text_only": [names.text],
    }[form]
    return needed + [
        name
        for name in (
            names.chosen_score,
            names.rejected_score,
            names.chosen_weights,
            names.rejected_weights,
        )
        if name
    ]


def pairs_of_row(
    row: dict[str, Any], form: str, data: DataSection, names: ColumnNames, tokenizer: Any
) -> Iterator[RawPair]:
    """The pairs a row gives (one, or several for scored candidates).

    Raises RowRejected with the reason.
    """
    weights: dict[str, Any] = {
        side: _weights(row, name)
        for side in ("chosen_weights", "rejected_weights")
        if (name := getattr(names, side))
    }
    for pair in _texts_of_row(row, form, data, names, tokenizer):
        yield replace(pair, **weights) if weights else pair


def _texts_of_row(
    row: dict[str, Any], form: str, data: DataSection, names: ColumnNames, tokenizer: Any
) -> Iterator[RawPair]:
    if form == "scored":
        yield from _scored_pairs(row, data, names)
        return
    if form == "conversational":
        yield _chat_pair(row, names, tokenizer)
        return
    if form == "text_only":
        yield RawPair("", _text(row, names.text), None)
        return
    if form == "hh":
        chosen_prompt, chosen = _split_transcript(_text(row, names.chosen))
        rejected_prompt, rejected = _split_transcript(_text(row, names.rejected))
        if chosen_prompt != rejected_prompt:
            raise RowRejected("chosen and rejected have different prompts")
        yield _checked(RawPair(chosen_prompt, chosen, rejected))
        return
    other = _text(row, names.rejected) if form == "text" else None
    chosen_score, rejected_score = (
        _score(row, names.chosen_score),
        _score(row, names.rejected_score),
    )
    if (
        chosen_score is not None
        and rejected_score is not None
        and chosen_score - rejected_score < data.min_gap
    ):
        raise RowRejected("score gap below min_gap")
    yield _checked(
        RawPair(
            _text(row, names.prompt), _text(row, names.chosen), other, chosen_score, rejected_score
        )
    )


def _checked(pair: RawPair) -> RawPair:
    if not pair.chosen.strip() or (pair.rejected is not None and not pair.rejected.strip()):
        raise RowRejected("empty response")
    if not pair.prompt.strip():
        raise RowRejected("empty prompt")
    if pair.chosen == pair.rejected:
        raise RowRejected("chosen and rejected are identical")
    if HH_TURN in pair.prompt and all(
        text.startswith(pair.prompt) for text in (pair.chosen, pair.rejected) if text is not None
    ):
        raise RowRejected(
            "the response is a whole transcript that repeats the prompt (form hh takes "
            "transcripts apart)"
        )
    return pair


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowRejected(f"{name} is not valid UTF-8") from error
    if not isinstance(value, str):
        raise RowRejected(f"{name} is {type(value).__name__}, not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowRejected(f"{name} is not valid UTF-8") from error
    return value


def _score(row: dict[str, Any], name: str | None) -> float | None:
    if name is None:
        return None
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowRejected(f"{name} is not a finite number")
    return float(value)


def _weights(row: dict[str, Any], name: str) -> list[float]:
    value = row.get(name)
    if not isinstance(value, list) or not all(
        isinstance(w, (int, float)) and not isinstance(w, bool) for w in value
    ):
        raise RowRejected(f"{name} is not a list of numbers")
    if not all(math.isfinite(w) and w >= 0 for w in value):
        raise RowRejected(f"{name} holds a weight that is negative or not finite")
    return [float(w) for w in value]


def _split_transcript(transcript: str) -> tuple[str, str]:
    at = transcript.rfind(HH_TURN)
    if at < 0:
        raise RowRejected("no assistant turn in the transcript")
    end = at + len(HH_TURN)
    return transcript[:end], transcript[end:]


def _scored_pairs(row: dict[str, Any], data: DataSection, names: ColumnNames) -> Iterator[RawPair]:
    prompt, responses, scores = (
        _text(row, names.prompt),
        row.get(names.responses),
        row.get(names.scores),
    )
    if (
        not isinstance(responses, list)
        or not isinstance(scores, list)
        or len(responses) != len(scores)
    ):
        raise RowRejected(f"{names.responses} and {names.scores} must be lists of one length")
    if not all(isinstance(r, str) for r in responses):
        raise RowRejected(f"{names.responses} holds something that is not a string")
    if not all(
        isinstance(s, (int, float)) and not isinstance(s, bool) and math.isfinite(s) for s in scores
    ):
        raise RowRejected(f"{names.scores} holds something that is not a finite number")
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if len(order) < 2:
        raise RowRejected("fewer than two candidates")
    if data.pairing == "best_worst":
        combinations = [(order[0], order[-1])]
    else:
        combinations = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    kept = 0
    for better, worse in combinations:
        gap = scores[better] - scores[worse]
        if gap <= 0 or gap < data.min_gap or responses[better] == responses[worse]:
            continue
        kept += 1
        yield _checked(
            RawPair(
                prompt,
                responses[better],
                responses[worse],
                float(scores[better]),
                float(scores[worse]),
            )
        )
    if not kept:
        raise RowRejected("score gap below min_gap")


def _chat_pair(row: dict[str, Any], names: ColumnNames, tokenizer: Any) -> RawPair:
    if tokenizer.chat_template is None:
        raise UserError(
            "conversational data needs a tokenizer with a chat template: this one has none"
        )
    chosen, rejected, prompt = row.get(names.chosen), row.get(names.rejected), row.get(names.prompt)
    if isinstance(chosen, dict):
        chosen = [chosen]
    if isinstance(rejected, dict):
        rejected = [rejected]
    for name, value in ((names.chosen, chosen), (names.rejected, rejected)):
        if not isinstance(value, list) or not all(_is_message(m) for m in value):
            raise RowRejected(f"{name} is not a list of messages with string role and content")
    assert isinstance(chosen, list) and isinstance(rejected, list)
    if prompt is None:
        chosen_messages, rejected_messages = chosen, rejected
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
            raise RowRejected(f"{names.prompt} is neither a string nor a list of messages")
        chosen_messages = _whole_conversation(messages, chosen, names.prompt, names.chosen)
        rejected_messages = _whole_conversation(messages, rejected, names.prompt, names.rejected)
    sides = []
    for value in (chosen_messages, rejected_messages):
        if len(value) < 2 or value[-1]["role"] != "assistant":
            raise RowRejected("the last message is not the assistant's")
        if not value[-1]["content"].strip():
            raise RowRejected("empty response")
        sides.append(_render(value, tokenizer))
    if sides[0][0] != sides[1][0]:
        raise RowRejected("chosen and rejected have different prompts")
    if sides[0][1] == sides[1][1]:
        raise RowRejected("chosen and rejected are identical")
    return RawPair(sides[0][0], sides[0][1], sides[1][1], is_chat=True)


def _whole_conversation(
    prompt: list[dict[str, Any]], given: list[dict[str, Any]], prompt_name: str, name: str
) -> list[dict[str, Any]]:
    """Prompt and what one side adds.

    `given` is either that alone or the whole with the prompt (UltraFeedback binarized).

    Raises: RowRejected for a conversation that starts at its beginning, but not with the prompt.
    """
    starts = [(m["role"], m["content"].strip()) for m in given[: len(prompt)]]
    if len(given) > len(prompt) and starts == [(m["role"], m["content"].strip()) for m in prompt]:
        return given
    if given and given[0]["role"] == "system" and (not prompt or prompt[0]["role"] != "system"):
        raise RowRejected(
            f"{name} is a whole conversation with a system turn that {prompt_name} lacks; give "
            f"{prompt_name} as messages with it, or leave it out"
        )
    # After the user's turn comes the assistant's: whatever else begins here is a conversation of
    # its own.
    if (
        prompt
        and prompt[-1]["role"] == "user"
        and given
        and given[0]["role"] not in ("assistant", "tool")
    ):
        raise RowRejected(f"{name} is a whole conversation that does not begin with {prompt_name}")
    return [*prompt, *given]


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def _render(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, str]:
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} does not render a prompt as a prefix "
            "of the whole conversation: responses cannot be told apart from prompts; use text "
            "form or another template"
        )
    return prompt, whole[len(prompt) :]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one pair and, if given, a weight per response token.

    `truncated` names the parts that were cut.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    truncated: tuple[str, ...]
    chosen_weights: list[float] | None = None
    rejected_weights: list[float] | None = None


class PairEncoder:
    """Tokenises and truncates pairs for one tokenizer and data section."""

    def __init__(self, tokenizer: Any, data: DataSection) -> None:
        self._tokenizer, self._data = tokenizer, data
        probe = tokenizer("a").input_ids
        self._adds_bos = (
            tokenizer.bos_token_id is not None
            and len(probe) > 0
            and probe[0] == tokenizer.bos_token_id
        )
        self._special = special_ids(tokenizer)

    def encode(self, pair: RawPair) -> Encoded:
        """Tokenise and truncate one pair.

        Weights are one per token of the whole response; the end token's may be left out and is 1
        then.

        Raises: RowRejected if the prompt is too long under `drop`, nothing of a response is left,
            or weights do not fit it.
        """
        prompt = self._ids(pair.prompt) if pair.prompt else []
        if self._adds_bos and not (pair.is_chat and prompt[:1] == [self._tokenizer.bos_token_id]):
            prompt = [self._tokenizer.bos_token_id, *prompt]
        responses = [self._response(pair.chosen, pair.is_chat)]
        if pair.rejected is not None:
            responses.append(self._response(pair.rejected, pair.is_chat))
        if not prompt:
            # Text without any prompt and without BOS: the first token has nothing to be predicted
            # from.
            if pair.rejected is not None:
                raise RowRejected("empty prompt")
            prompt, responses[0] = responses[0][:1], responses[0][1:]
        weights = [
            self._fitted(given, ids)
            for given, ids in zip(
                (pair.chosen_weights, pair.rejected_weights), responses, strict=False
            )
        ]
        truncated = []
        if len(prompt) > self._data.max_prompt_tokens:
            if self._data.prompt_overflow == "drop":
                raise RowRejected("prompt longer than max_prompt_tokens")
            keep = self._data.max_prompt_tokens
            prompt = prompt[-keep:] if self._data.prompt_overflow == "keep_end" else prompt[:keep]
            truncated.append("prompt")
        limit = self._data.max_response_tokens
        if self._data.max_tokens is not None:
            limit = min(limit, self._data.max_tokens - len(prompt))
        for i, name in enumerate(("chosen", "rejected")[: len(responses)]):
            if len(responses[i]) > limit:
                if self._data.response_overflow == "drop":
                    raise RowRejected("response longer than max_response_tokens")
                responses[i] = responses[i][: max(0, limit)]
                truncated.append(name)
                if (given := weights[i]) is not None:
                    weights[i] = given[: max(0, limit)]
            if not responses[i]:
                raise RowRejected("response truncated to nothing")
        if len(responses) == 2 and responses[0] == responses[1]:
            raise RowRejected("chosen and rejected are identical after truncation")
        has_rejected = len(responses) == 2
        return Encoded(
            prompt,
            responses[0],
            responses[1] if has_rejected else None,
            tuple(truncated),
            weights[0],
            weights[1] if has_rejected else None,
        )

    def _fitted(self, weights: list[float] | None, ids: list[int]) -> list[float] | None:
        if weights is None or len(weights) == len(ids):
            return weights
        if len(weights) == len(ids) - 1:
            return [*weights, 1.0]
        raise RowRejected(
            f"{len(weights)} token weights for a response of {len(ids)} tokens (end token included)"
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _response(self, text: str, is_chat: bool) -> list[int]:
        ids = self._ids(text)
        if not is_chat:
            return [*ids, self._tokenizer.eos_token_id]
        end = last_special(ids, self._special)
        if end is None:
            raise UserError(
                f"the chat template of {self._tokenizer.name_or_path} ends the assistant's turn "
                "with no special token"
            )
        return ids[: end + 1]
