"""The weights of all held-out tokens, for what has to rank them together.

The actors that score pairs write them next to the evaluation's parts, and one task reads them: no
token passes through the driver.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.evaluate.tasks import RankWeights, Records
from pipelines.recipe import TOKEN_WEIGHTS, EvaluateSection
from pipelines.storage import (
    RunStore,
    read_parquet,
)

_SCORES = ("reward_mask", "kl_mask", "token_kl")
_SCHEMA = pa.schema(
    [
        ("prompt_hash", pa.string()),
        *((name, pa.list_(pa.float32())) for name in _SCORES),
        ("is_key", pa.list_(pa.bool_())),
    ]
)


def write_weights(store: RunStore, number: int, responses: Records) -> None:
    """Keep the weights of the responses of one task, named by its number.

    Args:
        responses: with prompt_hash, reward_mask, kl_mask, token_kl (float32 per token), is_key
            (bool per token, or None).
    """
    columns = {name: [r[name] for r in responses] for name in _SCHEMA.names}
    store.write_table(_path(number), pa.table(columns, schema=_SCHEMA))


def read_weights(store: RunStore, numbers: Sequence[int]) -> Records:
    """The responses of some tasks, in order, with arrays in the place of lists."""
    return [response for number in numbers for response in _responses(store, number)]


@dataclass(frozen=True)
class RankingFacts:
    """What a `WeightRanker` needs: the root of the evaluation's store, and its settings."""

    store: str
    settings: EvaluateSection


class WeightRanker:
    """The benchmark of masks, as far as it compares every token with every other."""

    def __init__(self, facts: RankingFacts) -> None:
        self._store, self._settings = RunStore(facts.store), facts.settings

    def __call__(self, task: RankWeights) -> dict[str, Any]:
        from evaluation.benchmarks import mask_ranks

        responses = read_weights(self._store, task.pairs)
        return mask_ranks(responses, self._settings.bootstrap_samples, self._settings.seed)


def _path(number: int) -> str:
    return f"{TOKEN_WEIGHTS}/{number:07d}.parquet"


def _responses(store: RunStore, number: int) -> Records:
    cure = "remove evaluation/parts, and run `sparsepo evaluate` again"
    names = _SCHEMA.names
    table = read_parquet(store, _path(number), names, _SCHEMA, cure, names).combine_chunks()
    prompts = table["prompt_hash"].to_pylist()
    columns: dict[str, list[Any]] = {}
    for name in (*_SCORES, "is_key"):
        column = table[name].combine_chunks()
        if column.null_count:
            columns[name] = [None] * len(column)
            continue
        values = column.values.to_numpy(zero_copy_only=False)
        ends = column.offsets.to_numpy()
        columns[name] = [values[ends[i] : ends[i + 1]] for i in range(len(column))]
    return [
        {"prompt_hash": prompt, **{name: values[i] for name, values in columns.items()}}
        for i, prompt in enumerate(prompts)
    ]
