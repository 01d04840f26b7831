"""The tasks of an evaluation, one type for each kind of work.

A task's kind and number name the file that keeps its result. Where results get another form, the
kind gets another name: unfinished evaluations of before then do those tasks again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.errors import UserError
from pipelines.evaluate.code_tasks import read_code_tasks
from pipelines.evaluate.sampling_way import CAPTURED_TASK, Way, way_of
from pipelines.pairs import PairTable
from pipelines.recipe import EvaluateSection

PAIRS_SHOWN = 6  # the first ones, whose responses are kept token by token
FLOOR_PROMPTS = 8  # the first ones, of whose samples the KL's floor is measured
_PAIRS_PER_TASK, _TEXTS_PER_TASK = 128, 64
_PREFIX: dict[Way, str] = {"batches": "", "captured": "captured_"}  # of a task's kind
Records = list[dict[str, Any]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Drawn:
    """Samples that were drawn before: per prompt the token ids of each sample."""

    policy: list[list[list[int]]]
    start: list[list[list[int]]]


@dataclass(frozen=True)
class ScorePairs:
    """Score held-out pairs with the policy, the starting model and the reference.

    Attributes:
        number: of the first pair. rows: of the split.
    """

    number: int
    rows: tuple[int, ...]
    kind = "scored_pairs"

    def num_shown(self) -> int:
        """How many of its pairs are shown token by token."""
        return max(0, min(len(self.rows), PAIRS_SHOWN - self.number))


@dataclass(frozen=True)
class RankWeights:
    """Rank the token weights that the tasks with these numbers stored, all together."""

    pairs: tuple[int, ...]
    number = 0
    kind = "ranks"


@dataclass(frozen=True)
class SamplePrompts:
    """Draw continuations of each prompt by both models.

    Attributes:
        number: of the first prompt, by length. rows: of the split. order: of the prompts among all
            of the temperature. temperature_number: among the recipe's temperatures. start: number
            of each prompt's first sample here.
    """

    number: int
    rows: tuple[int, ...]
    order: tuple[int, ...]
    temperature: float
    temperature_number: int
    start: int = 0
    num_samples: int = 1
    drawn: Drawn | None = None
    way: Way = "batches"

    @property
    def kind(self) -> str:
        return f"{_PREFIX[self.way]}answers{self.temperature_number}_{self.start}"


@dataclass(frozen=True)
class WritePrograms:
    """Draw programs for programming tasks by both models.

    Attributes:
        number: of the first task, by length. start: number of each task's first program here.
    """

    number: int
    start: int
    task_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    num_samples: int
    drawn: Drawn | None = None
    way: Way = "batches"

    @property
    def kind(self) -> str:
        return f"{_PREFIX[self.way]}programs{self.start}"


@dataclass(frozen=True)
class RunLeaderboard:
    """Run lm-evaluation-harness on both models."""

    number = 0
    kind = "leaderboard"


@dataclass(frozen=True)
class ScoreTexts:
    """Add the scores of each scorer to sample records.

    Attributes:
        scorers: names of what `TextScorer` can add. records: with prompt, conversation,
            chosen_text, policy_text and start_text.
    """

    number: int
    scorers: tuple[str, ...]
    records: Records
    kind = "text_scores"


EvaluationTask = ScorePairs | SamplePrompts | WritePrograms | RunLeaderboard


def evaluation_tasks(
    settings: EvaluateSection, pairs: PairTable, usable: Sequence[int], gpus: float = 0
) -> list[EvaluationTask]:
    """What the evaluating actors do.

    It is a function of settings, pairs and whether there are GPUs: a resumed evaluation has the
    same tasks.

    Args:
        usable: rows of the split that can be scored.
    """
    tasks: list[EvaluationTask] = []
    if {"preference", "masks"} & set(settings.benchmarks):
        tasks += [
            ScorePairs(number, tuple(rows))
            for number, rows in _chunks(usable[: settings.max_pairs], _PAIRS_PER_TASK)
        ]
    if settings.sampled_benchmarks():
        tasks += _sampling(settings, pairs, usable, gpus)
    if "code" in settings.benchmarks:
        tasks += _programming(settings, gpus)
    if "leaderboard" in settings.benchmarks:
        tasks.append(RunLeaderboard())
    return tasks


def text_tasks(samples: Records, scorers: Sequence[str]) -> list[ScoreTexts]:
    return [
        ScoreTexts(number, tuple(scorers), list(records))
        for number, records in _chunks(samples, _TEXTS_PER_TASK)
    ]


def _sampling(
    settings: EvaluateSection, pairs: PairTable, usable: Sequence[int], gpus: float
) -> Iterable[SamplePrompts]:
    first: dict[str, int] = {}
    prompts = pairs.column(settings.split, "prompt_hash")
    labels = pairs.values(settings.split, usable, ["desirable"])
    for row, (label,) in zip(usable, labels, strict=True):
        if label is not False:  # what is compared with is a response that is wanted
            first.setdefault(prompts[row], row)
    if not first:
        raise UserError(
            f"no held-out row of the {settings.split} pairs is labelled true, and "
            f"{', '.join(settings.sampled_benchmarks())} compare with such responses"
        )
    chosen = list(enumerate(list(first.values())[: settings.num_prompts]))
    lengths = pairs.pair_lengths(settings.split, [row for _, row in chosen])
    # Prompts of one length need no padding beside each other.
    chosen.sort(key=lambda item: lengths[item[0]].prompt)
    temperatures, batch = settings.sampling_temperatures(), settings.sequences_per_batch
    counts = [settings.samples_at(temperature) for temperature in temperatures]
    way = way_of(gpus, len(chosen) * sum(counts), batch, settings.generation)
    size = CAPTURED_TASK if way == "captured" else batch
    for t, (temperature, samples) in enumerate(zip(temperatures, counts, strict=True)):
        at_once = min(samples, size)
        for number, items in _chunks(chosen, max(1, size // at_once)):
            for start in range(0, samples, at_once):
                yield SamplePrompts(
                    number,
                    rows=tuple(row for _, row in items),
                    order=tuple(at for at, _ in items),
                    temperature=temperature,
                    temperature_number=t,
                    start=start,
                    num_samples=min(at_once, samples - start),
                    way=way,
                )


def _programming(settings: EvaluateSection, gpus: float) -> Iterable[WritePrograms]:
    assert settings.code is not None
    found = sorted(read_code_tasks(settings.code), key=lambda task: len(task.prompt))
    batch, samples = settings.sequences_per_batch, len(found) * settings.code.num_samples
    way = way_of(gpus, samples, batch, settings.code.generation)
    size = CAPTURED_TASK if way == "captured" else batch
    at_once = min(settings.code.num_samples, size)
    prompts_each = max(1, size // at_once)
    for number, items in _chunks(found, prompts_each):
        for start in range(0, settings.code.num_samples, at_once):
            yield WritePrograms(
                number,
                start,
                task_ids=tuple(task.task_id for task in items),
                prompts=tuple(task.prompt for task in items),
                num_samples=min(at_once, settings.code.num_samples - start),
                way=way,
            )


def _chunks(items: Sequence[Item], size: int) -> Iterable[tuple[int, Sequence[Item]]]:
    return ((i, items[i : i + size]) for i in range(0, len(items), size))
