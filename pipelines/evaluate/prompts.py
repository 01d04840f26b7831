"""Token ids of what the models of an evaluation are asked."""

from collections.abc import Sequence
from typing import Any

from pipelines.models import ChatSettings, ChatTemplate
from pipelines.pairs import PairTable, text_prompt_ids
from pipelines.recipe import CodeSection


def prompt_ids(pairs: PairTable, split: str, rows: Sequence[int]) -> list[list[int]]:
    """Token ids of the prompts of some rows."""
    return [[int(i) for i in pair.prompt] for pair in pairs.pairs(split, rows)]


class CodePrompts:
    """Token ids of what the prompts of programming tasks ask the model.

    A text is asked as the text of a pair is, a chat message as a pair's.
    """

    def __init__(self, tokenizer: Any, section: CodeSection, chat: ChatSettings) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, chat) if section.apply_chat_template else None

    def __call__(self, prompt: str) -> list[int]:
        """UserError for a template that cannot be rendered."""
        if self._template is None:
            return text_prompt_ids(self._tokenizer, prompt)
        from evaluation.benchmarks.code import chat_question

        self._template.require_ends()
        question = {"role": "user", "content": chat_question(prompt)}
        text = self._template.render([question], opens_answer=True)
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False).input_ids]
