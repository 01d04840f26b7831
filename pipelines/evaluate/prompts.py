"""Token ids of what the models of an evaluation are asked."""

from collections.abc import Sequence
from typing import Any

from pipelines.pairs import PairTable
from pipelines.recipe import CodeSection


def prompt_ids(pairs: PairTable, split: str, rows: Sequence[int]) -> list[list[int]]:
    """Token ids of the prompts of some rows."""
    return [[int(i) for i in pair.prompt] for pair in pairs.pairs(split, rows)]


def code_prompt_ids(tokenizer: Any, section: CodeSection, prompt: str) -> list[int]:
    """Token ids of what a programming task's prompt asks the model."""
    if section.apply_chat_template:
        from evaluation.benchmarks.code import chat_question

        messages = [{"role": "user", "content": chat_question(prompt)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [int(i) for i in tokenizer(text, add_special_tokens=False).input_ids]
    return [int(i) for i in tokenizer(prompt).input_ids]
