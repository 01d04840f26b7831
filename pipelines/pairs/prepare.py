"""prepare: sources of any form -> tokenised, split, counted pairs in RUN/pairs (Ray Data).

Tasks read their chunk, render, tokenise and truncate; the driver decides from hashes (duplicates,
overlap with held-out prompts, limits), and tasks write the shards. Rows are dropped with a reason
into rejected_rows.jsonl.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipelines.cluster import local_paths, quieten_ray_data, require_seen, told_in_a_line
from pipelines.errors import Failure, UserError
from pipelines.models import check_readers, load_tokenizer, resolve_model
from pipelines.pairs.forms import (
    Encoded,
    PairEncoder,
    RawPair,
    RowRejected,
    detect_form,
    needed_columns,
    pairs_of_row,
)
from pipelines.pairs.row_plan import RowPlan, digest_of
from pipelines.pairs.sources import Chunk, chunks_of, column_names, left_out, read_rows
from pipelines.pairs.tasks import ChunkTask, block_of, outcome_of, result_of, rows_of
from pipelines.pairs.writer import write_shards
from pipelines.recipe import REJECTED_ROWS, DataSection, Recipe, Source, StageRecord

# Rows of a source that are looked at before any work, if none of them makes a pair.
_LOOKED_AT = 10_000


def run_prepare(
    recipe: Recipe, record: StageRecord, known_tokens: int | None, quiet: bool = False
) -> dict[str, Any]:
    """Prepare a recipe's pairs and return the stage's manifest. Needs a running Ray.

    Args:
        known_tokens: ids below this have embeddings; None if all have.
    Raises: UserError for a missing file or column, a tokenizer that cannot do the form, or no
        usable row at all.
    """
    check_readers(recipe)
    tasks = _tasks(recipe)
    record.begin()
    with told_in_a_line("prepare", "lower data.rows_per_task or ray.num_cpus"):
        blocks = _tokenised(
            tasks, recipe, recipe.model.tokenizer or recipe.model.name_or_path, known_tokens
        ).to_arrow_refs()
        plan = _plan(recipe.data, blocks)
        counts, checksums = write_shards(
            plan, blocks, record.store, local_paths(recipe), recipe.data.shard_pairs, quiet
        )
    record.store.write_bytes(
        REJECTED_ROWS, "".join(json.dumps(row) + "\n" for row in plan.rejected_rows()).encode()
    )
    counts["rejected"] = dict(sorted(plan.reasons.items()))
    counts["exact_duplicates"] = plan.num_duplicates
    counts["left_out"] = files_left_out(recipe)
    if counts["pairs"]["train"] == 0:
        raise no_pair(recipe, plan.reasons)
    return record.finish(counts, checksums)


def check_sources(recipe: Recipe, known_tokens: int | None) -> None:
    """UserError for a source without a row, without what form, objective or mask need, or with
    rows that the tokenizer cannot render; and where no row of the training sources makes a pair.

    It looks at a source's rows until one makes a pair, and at 10,000 of them at most.

    Args:
        known_tokens: ids below this have embeddings; None if all have.
    """
    reasons: Counter[str] = Counter()
    tokenizer = recipe.model.tokenizer or recipe.model.name_or_path
    is_certain = True
    for number, tasks in itertools.groupby(_tasks(recipe), key=lambda task: task.source):
        rows = (
            row
            for task in tasks
            for row in _rows_of_chunk(task, recipe.data, tokenizer, known_tokens)
        )
        first = list(_until_a_pair(itertools.islice(rows, _LOOKED_AT)))
        if number < len(recipe.data.sources):
            reasons.update(row["reason"] for row in first if "reason" in row)
            is_certain = is_certain and "reason" in first[-1] and len(first) < _LOOKED_AT
    if is_certain:
        raise no_pair(recipe, reasons)


def _until_a_pair(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        if "reason" not in row:
            return


def no_pair(recipe: Recipe, reasons: Counter[str]) -> UserError:
    """What to say where no row makes a training pair.

    Args:
        reasons: why, with how many rows.
    """
    said = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common(5))
    return UserError(
        f"no usable training pair in {', '.join(s.path for s in recipe.data.sources)} "
        f"({said or 'the sources are empty'})"
    )


def files_left_out(recipe: Recipe) -> list[str]:
    """A line for every source beside whose files others lie that are not read."""
    return left_out([source for group in recipe.data.groups().values() for source in group])


def _tasks(recipe: Recipe) -> list[ChunkTask]:
    """One task per chunk.

    The source's form is resolved and its columns are checked before anything runs.
    """
    tasks: list[ChunkTask] = []
    everything = [s for sources in recipe.data.groups().values() for s in sources]
    for number, source in enumerate(everything):
        form, chunks = checked_chunks(recipe, source)
        tasks += [ChunkTask(number, form, chunk) for chunk in chunks]
    return tasks


def checked_chunks(recipe: Recipe, source: Source) -> tuple[str, list[Chunk]]:
    """A source's form and its chunks.

    Raises: UserError if it holds no row, or lacks what form, objective or mask need.
    """
    chunks = chunks_of(source, recipe.data.rows_per_task)
    if not chunks:
        raise UserError(f"data source {source.path!r} holds no row")
    columns, first = column_names(chunks[0])
    form = detect_form(columns, source.columns, first) if source.form == "auto" else source.form
    for name in needed_columns(form, source.columns):
        if name not in columns:
            raise UserError(
                f"data source {source.path!r} (form {form}) has no column {name!r}: its "
                f"columns are {', '.join(sorted(columns))}"
            )
    if recipe.objective.declared.uses_rejected and form in ("chosen_only", "text_only"):
        raise UserError(
            f"data source {source.path!r} has no rejected responses: objective "
            f"{recipe.objective.name} needs them"
        )
    _check_features(recipe, source, form)
    return form, chunks


def _check_features(recipe: Recipe, source: Source, form: str) -> None:
    """UserError if objective or mask read something from the pairs that this source cannot give."""
    names, wanted = source.columns, recipe.required_features()
    if (
        "preference_scores" in wanted
        and form != "scored"
        and not (names.chosen_score and names.rejected_score and form == "text")
    ):
        raise UserError(
            f"data source {source.path!r} (form {form}) has no scores, which objective "
            f"{recipe.objective.name} needs: use the scored form, or the text form with "
            "data.sources[].columns.chosen_score and rejected_score"
        )
    has_weights = bool(names.chosen_weights and names.rejected_weights)
    if "external_weights" in wanted and not has_weights:
        raise UserError(
            f"data source {source.path!r} has no token weights, which mask.kind=external needs: "
            "set data.sources[].columns.chosen_weights and rejected_weights"
        )
    if has_weights and form == "scored":
        raise UserError(
            f"data source {source.path!r}: candidates of the scored form cannot carry token weights"
        )


def _tokenised(
    tasks: list[ChunkTask], recipe: Recipe, tokenizer: str, known_tokens: int | None
) -> Any:
    import ray.data

    quieten_ray_data()
    return (
        ray.data.from_items([task.item() for task in tasks], override_num_blocks=len(tasks))
        .map_batches(
            _run_task,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={
                "data": recipe.data,
                "tokenizer_name": tokenizer,
                "known_tokens": known_tokens,
                "paths": local_paths(recipe),
            },
        )
        .materialize()
    )


def _plan(data: DataSection, blocks: list[Any]) -> RowPlan:
    """Decide on all rows from a digest of every block.

    Raises: UserError or StageFailed of a task.
    """
    import ray

    digest = ray.remote(_digest)
    waiting = [digest.remote(block, data) for block in blocks]
    plan = RowPlan(data)
    for number, pending in enumerate(waiting):
        plan.add(result_of(ray.get(pending)))
        waiting[number] = None  # the object store may forget it
    plan.settle()
    return plan


def _digest(block: pa.Table, data: DataSection) -> pa.Table | Failure:
    """Ray task: the block's digest, or what the block failed with."""
    return outcome_of(lambda: digest_of(result_of(rows_of(block)), data))


def _run_task(
    batch: pa.Table,
    data: DataSection,
    tokenizer_name: str,
    paths: dict[str, str],
    known_tokens: int | None = None,
) -> pa.Table:
    """Ray Data task: one chunk -> a block of pairs and rejected rows, or of its failure."""

    def rows() -> list[dict[str, Any]]:
        require_seen(paths)
        return list(_rows_of_chunk(ChunkTask.of_batch(batch), data, tokenizer_name, known_tokens))

    return block_of(outcome_of(rows))


def _rows_of_chunk(
    task: ChunkTask, data: DataSection, tokenizer_name: str, known_tokens: int | None = None
) -> Iterator[dict[str, Any]]:
    source = (*data.sources, *data.validation, *data.test)[task.source]
    # By name: a model from a hub or an object store lies elsewhere on every machine.
    tokenizer = load_tokenizer(str(resolve_model(tokenizer_name, tokenizer_only=True)))
    encoder = PairEncoder(tokenizer, data)
    for row in read_rows(task.chunk):
        base = {"source": task.source, "row": row.number}
        try:
            if row.values is None:
                raise RowRejected(row.fault)
            for pair in pairs_of_row(row.values, task.form, data, source.columns, tokenizer):
                encoded = encoder.encode(pair)
                refuse_unknown_tokens(encoded, known_tokens)
                yield {**base, **_columns(pair, encoded)}
        except RowRejected as reason:
            yield {**base, "reason": str(reason), "place": row.place}


def refuse_unknown_tokens(encoded: Encoded, known_tokens: int | None) -> None:
    """RowRejected for a token that the model has no embedding for.

    Args:
        known_tokens: ids below this have one; None if all have.
    """
    if known_tokens is None:
        return
    largest = max(map(max, filter(None, (encoded.prompt, encoded.chosen, encoded.rejected))))
    if largest >= known_tokens:
        raise RowRejected(f"token {largest} is beyond the model's embeddings ({known_tokens} rows)")


def _columns(pair: RawPair, encoded: Encoded) -> dict[str, Any]:
    content = json.dumps([pair.prompt, pair.chosen, pair.rejected])
    return {
        "pair_id": hashlib.sha256(content.encode()).hexdigest()[:24],
        "prompt_hash": prompt_hash(pair.prompt if pair.prompt else pair.chosen),
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "prompt_ids": encoded.prompt,
        "chosen_ids": encoded.chosen,
        "rejected_ids": encoded.rejected,
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "chosen_weights": encoded.chosen_weights,
        "rejected_weights": encoded.rejected_weights,
        "truncated": ",".join(encoded.truncated),
    }


def prompt_hash(prompt: str) -> str:
    """Hash of a prompt with case and white space normalised.

    The split and the overlap check compare it.
    """
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()[:24]
