"""Rejected responses improved by an editor, as rows that prepare reads: edited against rejected.

Source: TLCR, arXiv:2407.16574, where a language model edits a response as little as it can; the
words that ask for it are ours.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.discriminator.wording import editing_messages, parse_edit
from pipelines.errors import StageFailed
from pipelines.evaluate import ChatEndpoint
from pipelines.models import (
    ChatTemplate,
    JobSampler,
    ResponseEnds,
    compute_device,
    load_causal_lm,
    load_tokenizer,
    reference_dtype,
    resolve_model,
    response_ends,
)
from pipelines.pairs import PairTable, Question, open_pairs
from pipelines.recipe import (
    EndpointEditor,
    GenerationSection,
    ModelEditor,
    Recipe,
    Run,
    StageRecord,
)
from pipelines.storage import RunStore, TaskResults, digest

_LEADING = re.compile(r"\s*")
_COLUMNS = ("prompt", "rejected", "conversation")
_SECTION, _ANSWERS = "discriminator.editor", "answers"
_ROWS = 1024  # of the pairs, read at a time


def edit_path(split: str) -> str:
    return f"{split}.jsonl"


@dataclass(frozen=True)
class Reply:
    """A rejected response, and what it answers.

    Attributes:
        asked: a prompt of a text form, or the messages and tools of a chat.
    """

    asked: str | Question
    text: str

    def question(self) -> Question:
        return Question.of_text(self.asked) if isinstance(self.asked, str) else self.asked

    def messages(self) -> list[dict[str, str]]:
        """What the editor is asked."""
        return editing_messages(self.question().read(), self.text.strip())

    def row(self, edit: str) -> dict[str, Any]:
        """The edited response as chosen, this one as rejected, in a form that prepare reads.

        Spaces before the response stay, since its first token depends on them.
        """
        leading = _LEADING.match(self.text)
        own = (leading[0] if leading else "") + edit
        if isinstance(self.asked, str):
            return {"prompt": self.asked, "chosen": own, "rejected": self.text}
        before, tools = list(self.asked.messages), self.asked.tools
        sides = {
            name: [*before, {"role": "assistant", "content": said}]
            for name, said in (("chosen", own), ("rejected", self.text))
        }
        return {**sides, **({"tools": list(tools)} if tools else {})}


def run_edits(run: Run, record: StageRecord, quiet: bool = False) -> dict[str, Any]:
    """Edit the rejected responses of the training and the held-out pairs; returns the manifest.

    Needs a running Ray. What was answered once is not asked again by a resumed command.

    Raises: StageFailed if more stay without an edit than the recipe allows, or all do.
    """
    recipe = run.recipe
    pairs = open_pairs(run)
    splits = ("train", recipe.discriminator.held_out)
    replies = {split: replies_of(pairs, split) for split in splits}
    record.begin()
    record.store.sweep_temporary()
    editor = recipe.discriminator.editor
    assert editor is not None
    flat = [reply for split in splits for reply in replies[split]]
    if isinstance(editor, EndpointEditor):
        edits = endpoint_edits(editor, record.store, flat, quiet)
    else:
        edits = model_edits(recipe, editor, record.store, flat, quiet)
    counts: dict[str, Any] = {"responses": len(flat), "failed": edits.count(None)}
    at, outputs = 0, {}
    for split in splits:
        own = edits[at : at + len(replies[split])]
        at += len(own)
        rows = [
            reply.row(edit)
            for reply, edit in zip(replies[split], own, strict=True)
            if edit is not None and edit != reply.text.strip()
        ]
        if not rows:
            raise StageFailed(
                f"discriminator.editor: no {split} response was changed: another model, or other "
                "settings, may do more"
            )
        counts[f"edited_{split}"] = len(rows)
        _publish(record.store, edit_path(split), rows)
        outputs[edit_path(split)] = record.store.checksum(edit_path(split))
    manifest = record.finish(counts, outputs)
    TaskResults(record.store).clear()
    return manifest


def replies_of(pairs: PairTable, split: str) -> list[Reply]:
    """The rejected responses of a split, in order."""
    found = []
    for start in range(0, pairs.num_rows(split), _ROWS):
        rows = range(start, min(start + _ROWS, pairs.num_rows(split)))
        for prompt, rejected, conversation in pairs.values(split, rows, _COLUMNS):
            asked = prompt if conversation is None else Question.stored(conversation)
            found.append(Reply(asked, rejected))
    return found


def endpoint_edits(
    settings: EndpointEditor, store: RunStore, replies: Sequence[Reply], quiet: bool
) -> list[str | None]:
    """The endpoint's edits, None where it gave none."""
    endpoint: ChatEndpoint[str] = ChatEndpoint(
        settings,
        _SECTION,
        "the editor",
        store,
        _ANSWERS,
        parse_edit,
        lambda cut, _: cut,
        "rewritten reply",
    )
    return endpoint.ask_all([reply.messages() for reply in replies], quiet, "edits")


@dataclass(frozen=True)
class EditReplies:
    """Edit some responses.

    Attributes:
        number: of the first; batch: of every task but the last, which says what a number means.
    """

    number: int
    batch: int
    replies: tuple[Reply, ...]

    @property
    def kind(self) -> str:
        return f"edited{self.batch}-"


@dataclass(frozen=True)
class EditorFacts:
    """What a `ModelEditorActor` needs besides its tasks."""

    settings: ModelEditor
    ends: ResponseEnds


class ModelEditorActor:
    """Actor: the editing model, asked through its own chat template."""

    def __init__(self, facts: EditorFacts) -> None:
        self._settings, self._ends = facts.settings, facts.ends
        directory, device = str(resolve_model(facts.settings.name_or_path)), compute_device()
        self._tokenizer = load_tokenizer(directory)
        self._template = ChatTemplate(self._tokenizer)
        self._model = load_causal_lm(directory, reference_dtype("auto", device), device)
        self._sampler = JobSampler(facts.ends)

    def __call__(self, task: EditReplies) -> list[str | None]:
        settings = self._settings
        texts = [self._template.render(r.messages(), opens_answer=True) for r in task.replies]
        prompts = [self._tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        generation = GenerationSection(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        seeds = [
            int(digest([settings.seed, task.number + i])[:12], 16) for i in range(len(prompts))
        ]
        drawn = self._sampler(self._model, prompts, generation, seeds, task.batch)
        return [parse_edit(self._ends.text(self._tokenizer, ids)) for ids in drawn]


def model_edits(
    recipe: Recipe,
    settings: ModelEditor,
    store: RunStore,
    replies: Sequence[Reply],
    quiet: bool,
) -> list[str | None]:
    """The model's edits, None where it gave none."""
    batch = settings.batch_responses
    tasks = [
        EditReplies(at, batch, tuple(replies[at : at + batch]))
        for at in range(0, len(replies), batch)
    ]
    lighter = "lower discriminator.editor.batch_responses"
    pool = Pool("edit", recipe.ray, local_paths(recipe), lighter=lighter)
    facts = EditorFacts(settings, response_ends(settings.name_or_path))
    parts = TaskResults(store)
    todo = parts.missing(tasks)
    parts.add(todo, run_tasks(todo, ModelEditorActor, facts, pool, quiet))
    return [edit for part in parts.results(tasks) for edit in part]


def _publish(store: RunStore, path: str, rows: Iterable[dict[str, Any]]) -> None:
    folder = store.staging_directory()
    try:
        staged = folder / path
        with store.told_where(path, staged), staged.open("w") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
        store.publish_file(staged, path)
    finally:
        shutil.rmtree(folder)
