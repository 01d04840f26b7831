"""A reward model as a judge: what it is asked, and its scores.

A model whose tokenizer has a chat template is asked in it. Others read the texts one after the
other.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.errors import UserError
from pipelines.evaluate.rewards import (
    class_scores,
    label_index,
    load_classifier,
    model_config_of,
    padding_tokenizer,
)
from pipelines.evaluate.tasks import Records
from pipelines.models import ChatTemplate, TemplateRefused, resolve_model
from pipelines.pairs import Question
from pipelines.recipe import RewardModelJudge

_TURN, _TURNS = "a turn of the user", "turns of a transcript"


class RewardJudge:
    """Scores replies. UserError for a model without the label, or with a template that is none."""

    def __init__(self, judge: RewardModelJudge) -> None:
        self._model, tokenizer = load_classifier(judge.model)
        # What is too long loses its beginning: cut at its end it would lose the reply.
        self._tokenizer = copy.copy(tokenizer)
        self._tokenizer.truncation_side = "left"
        self._index = _index_of(judge, self._model.config)
        self._template = _template_of(self._tokenizer)

    def score(self, records: Records, who: str) -> None:
        """Add <who>_judge_score, None where the template refuses the conversation.

        judge_asked says how a record's prompt was put where it is a text and the judge has a
        template; judge_refusal is what that said; judge_limit is how many tokens the judge reads,
        if a reply had more with its prompt.
        """
        texts = [self._asked(record, record[f"{who}_text"]) for record in records]
        given = [text for text in texts if text is not None]
        is_rendered = self._template is not None
        found = class_scores(self._model, self._tokenizer, given, self._index, is_rendered)
        scores = iter(found)
        for record, text in zip(records, texts, strict=True):
            record[f"{who}_judge_score"] = None if text is None else next(scores)
            if text is not None and self._is_too_long(text):
                record["judge_limit"] = self._tokenizer.model_max_length

    def _is_too_long(self, text: str) -> bool:
        ids = self._tokenizer(text, add_special_tokens=self._template is None).input_ids
        return len(ids) > int(self._tokenizer.model_max_length)

    def _asked(self, record: dict[str, Any], reply: str) -> str | None:
        stored, prompt = record["conversation"], record["prompt"]
        if self._template is None:
            return prompt + reply if stored is None else Question.stored(stored).read_with(reply)
        if stored is None:
            question = Question.of_text(prompt)
            is_turn = question == Question.turn(prompt)
            record["judge_asked"] = _TURN if is_turn else _TURNS
        else:
            question = Question.stored(stored)
        try:
            return question.answered(self._template, reply)
        except TemplateRefused as reason:
            record["judge_refusal"] = str(reason)
            return None


def check_reward_judge(judge: RewardModelJudge) -> None:
    """UserError for a judge that does not exist, lacks the label or has a template that is none."""
    _index_of(judge, model_config_of(judge.model, "evaluate.judge.model"))
    try:
        _template_of(padding_tokenizer(resolve_model(judge.model)))
    except UserError as error:
        raise UserError(f"evaluate.judge.model = {judge.model!r}: {error}") from error


def judge_warnings(records: Records) -> Iterator[str]:
    """What a judge did not read as it stands.

    These are prompts of a text form that were put to a chat template, conversations that were too
    long, and those that the template refused.

    Raises: UserError if it refused all.
    """
    asked: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for record in records:
        asked.update([record["judge_asked"]] if "judge_asked" in record else [])
        refused.update([record["judge_refusal"]] if "judge_refusal" in record else [])
    for how, count in asked.items():
        yield (
            f"evaluate.judge.model has a chat template: {count} prompts of a text form were put to "
            f"it as {how}"
        )
    limits = [record["judge_limit"] for record in records if "judge_limit" in record]
    if limits:
        yield (
            f"evaluate.judge.model reads {limits[0]} tokens: {len(limits)} of {len(records)} "
            "prompts lost their beginning"
        )
    named = "the chat template of evaluate.judge.model refuses"
    if records and refused.total() == len(records):
        raise UserError(f"{named} every conversation: {refused.most_common(1)[0][0]}")
    for reason, count in refused.items():
        yield f"{named} {count} of {len(records)} prompts, which have no verdict: {reason}"


def _template_of(tokenizer: Any) -> ChatTemplate | None:
    if not tokenizer.chat_template:
        return None
    template = ChatTemplate(tokenizer)
    template.require_answers()
    return template


def _index_of(judge: RewardModelJudge, config: Any) -> int:
    if judge.label is not None:
        return label_index(config, judge.label, "evaluate.judge.label")
    if config.num_labels != 1:
        known = ", ".join(map(str, config.id2label.values()))
        raise UserError(
            f"evaluate.judge.model = {judge.model!r}: has {config.num_labels} outputs ({known}); "
            "choose one with evaluate.judge.label"
        )
    return 0
