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
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipelines.cluster import (
    cluster_address,
    local_cpus,
    local_paths,
    quieten_ray_data,
    require_seen,
    told_in_a_line,
)
from pipelines.errors import Failure, UserError
from pipelines.models import Control, check_readers, load_tokenizer, resolve_model
from pipelines.pairs.conversation import (
    ChatRenderer,
    Encoded,
    PairEncoder,
    RawPair,
    RowRejected,
    decisions,
)
from pipelines.pairs.detection import Detected, detect
from pipelines.pairs.forms import Form
from pipelines.pairs.row_plan import RowPlan, digest_of
from pipelines.pairs.sources import Chunk, chunks_of, left_out, read_rows, sampled_rows
from pipelines.pairs.tasks import (
    ReadTask,
    Start,
    block_of,
    elsewhere,
    here,
    outcome_of,
    result_of,
    rows_of,
    spans_of,
    value_of,
)
from pipelines.pairs.tokenising import used
from pipelines.pairs.unpaired import num_parts, pairs_of_rows, stand_alone
from pipelines.pairs.writer import Labelled, write_shards
from pipelines.recipe import REJECTED_ROWS, DataSection, Recipe, Source, StageRecord
from pipelines.storage import Span, add_spans, recorded, spent

_TEXT = ("jsonl", "array", "csv")  # kinds of chunks whose bounds are bytes
_SMALL_BYTES = 2**23  # of text to tokenise: some seconds of work
_SMALL_BLOCKS_BYTES = 2**28  # of tokenised rows to plan and write: some seconds of work
# Rows of a source that are looked at before any work, if none of them makes a pair.
_LOOKED_AT = 10_000
_MOST_THREADS = 8  # beyond them a tokenizer's threads wait for Python


def run_prepare(
    recipe: Recipe,
    record: StageRecord,
    tokenizer_dir: str,
    known_tokens: int | None,
    quiet: bool = False,
    control: Control | None = None,
) -> dict[str, Any]:
    """Prepare a recipe's pairs and return the stage's manifest. Needs a running Ray.

    Args:
        known_tokens: ids below this have embeddings; None if all have. control: stands in front of
            the prompts.
    Raises: UserError for a missing file or column, a tokenizer that cannot do the form, or no
        usable row at all.
    """
    check_readers(recipe)
    with spent("rows"):
        tasks, layouts = _tasks(recipe)
    has_chat = any(task.form.is_chat for task in tasks)
    with spent("load"):
        encoding = decisions(load_tokenizer(tokenizer_dir), recipe.data, has_chat)
    record.begin()
    with told_in_a_line("prepare", "lower data.rows_per_task or ray.num_cpus"):
        start = here if _is_small(tasks, recipe) else elsewhere
        with spent("ray"):  # what its tasks do meanwhile comes before it
            blocks, num_bytes = _blocks(tasks, recipe, known_tokens, start, control)
            if _is_own_ray(recipe) and num_bytes <= _SMALL_BLOCKS_BYTES:
                start = here
            plan = _plan(recipe.data, blocks, start)
            paths, pairs = local_paths(recipe), recipe.data.shard_pairs
            counts, checksums = write_shards(
                plan, blocks, record.store, paths, pairs, quiet, start, _labelled(recipe)
            )
    lines = "".join(json.dumps(row) + "\n" for row in plan.rejected_rows()).encode()
    record.store.write_bytes(REJECTED_ROWS, lines)
    checksums[REJECTED_ROWS] = hashlib.sha256(lines).hexdigest()
    counts["rejected"] = dict(sorted(plan.reasons.items()))
    counts["exact_duplicates"] = plan.num_duplicates
    counts["layouts"] = layouts
    counts["left_out"] = files_left_out(recipe)
    counts["encoding"] = encoding
    if not any(counts["pairs"][split] for split in needed_splits(recipe)):
        raise no_pair(recipe, plan.reasons, layouts)
    return record.finish(counts, checksums)


def check_sources(recipe: Recipe, known_tokens: int | None, control: Control | None = None) -> None:
    """UserError for a source without a row, without what form, objective or mask need, or with
    rows that the tokenizer cannot render; and where no row of the training sources makes a pair,
    or of the others if there are none.

    It looks at a source's rows until one makes a pair, and at 10,000 of them at most.

    Args:
        known_tokens: ids below this have embeddings; None if all have.
    """
    reasons: Counter[str] = Counter()
    tokenizer = recipe.model.tokenizer or recipe.model.name_or_path
    all_tasks, layouts = _tasks(recipe)
    is_certain = True
    for number, tasks in itertools.groupby(all_tasks, key=lambda task: task.source):
        rows = (
            row
            for task in tasks
            for row in _rows_of_task(
                task, recipe.data, tokenizer, known_tokens, recipe.reads_labels(), control
            )
        )
        first = list(_until_a_pair(itertools.islice(rows, _LOOKED_AT)))
        if number < len(recipe.data.sources) or not recipe.data.sources:
            reasons.update(row["reason"] for row in first if "reason" in row)
            is_certain = is_certain and "reason" in first[-1] and len(first) < _LOOKED_AT
    if is_certain:
        raise no_pair(recipe, reasons, layouts)


def _until_a_pair(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        if "reason" not in row:
            return


def no_pair(recipe: Recipe, reasons: Counter[str], layouts: Iterable[str]) -> UserError:
    """What to say where no row makes a pair that is needed.

    Args:
        reasons: why, with how many rows. layouts: how the sources are read.
    """
    said = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common(5))
    data = recipe.data
    kind = "training pair" if data.sources else "pair"
    paths = [source.path for source in data.sources or (*data.validation, *data.test)]
    return UserError(
        f"no usable {kind} in {', '.join(paths)} "
        f"({said or 'the sources are empty'}); {'; '.join(layouts)}"
    )


def _labelled(recipe: Recipe) -> Labelled | None:
    has_others = recipe.reads_labels() and recipe.objective.declared.uses_rejected
    return Labelled(recipe.data.max_tokens) if has_others else None


def needed_splits(recipe: Recipe) -> tuple[str, ...]:
    """Splits of which one must have a pair: train, unless nothing is trained."""
    return ("train",) if recipe.data.sources else ("validation", "test")


def files_left_out(recipe: Recipe) -> list[str]:
    """A line for every source beside whose files others lie that are not read."""
    return left_out([source for group in recipe.data.groups().values() for source in group])


def _tasks(recipe: Recipe) -> tuple[list[ReadTask], list[str]]:
    """The tasks of all sources, and a line for each that says how it is read.

    The sources' forms are found and their columns are checked before anything runs.
    """
    tasks: list[ReadTask] = []
    lines: list[str] = []
    everything = [s for sources in recipe.data.groups().values() for s in sources]
    for number, source in enumerate(everything):
        detected, chunks = checked_chunks(recipe, source)
        lines.append(detected.line)
        form = detected.form
        if form.name == "unpaired" and not recipe.reads_labels():
            parts = num_parts(len(chunks))
            whole = tuple(chunks)
            tasks += [ReadTask(number, form, whole, part, parts) for part in range(parts)]
        else:
            tasks += [ReadTask(number, form, (chunk,)) for chunk in chunks]
    return tasks, list(dict.fromkeys(lines))


def checked_chunks(recipe: Recipe, source: Source) -> tuple[Detected, list[Chunk]]:
    """A source's form and its chunks.

    Raises: UserError if it holds no row, its rows are of no form or of several, or it lacks what
        form, objective or mask need.
    """
    chunks = chunks_of(source, recipe.data.rows_per_task)
    if not chunks:
        raise UserError(f"data source {source.path!r} holds no row")
    detected = detect(source, sampled_rows(chunks))
    reads_both = recipe.objective.declared.uses_rejected or recipe.reads_labels()
    if reads_both and not detected.form.has_rejected:
        lacking = "no rejected responses"
        if recipe.reads_labels():
            lacking = "neither labels nor rejected responses"
        reader = f"objective {recipe.objective.name}"
        if recipe.control() is not None:
            reader = "sft.control"
        raise UserError(f"{detected.line} has {lacking}: {reader} needs them")
    _check_features(recipe, source, detected.form)
    if recipe.reads_labels():
        detected = _taken_apart(recipe, detected)
    return _with_gap(recipe.data, detected), chunks


def _taken_apart(recipe: Recipe, detected: Detected) -> Detected:
    """Says what the labelled rows are. UserError for candidates that would be several rows each."""
    name = detected.form.name
    if name == "scored" and recipe.data.pairing == "all":
        raise UserError(
            f"{detected.line}: data.pairing=all with objective.name={recipe.objective.name}"
            f"{' and sft.control' if recipe.control() else ''} would "
            "take a candidate several times; leave it out"
        )
    each = "every response is a row with its label"
    if name != "unpaired":
        each = "each side is a row: chosen desirable, rejected not"
    return replace(detected, line=f"{detected.line}; {each}")


def _with_gap(data: DataSection, detected: Detected) -> Detected:
    """Says where a gap of scores is asked for and there are none."""
    form = detected.form
    if not (data.min_gap and form.has_rejected) or form.name == "scored" or all(form.scores):
        return detected
    return replace(detected, line=f"{detected.line}; no scores: data.min_gap is not applied")


def _check_features(recipe: Recipe, source: Source, form: Form) -> None:
    """UserError if objective or mask read something from the pairs that this source cannot give."""
    names, wanted = source.columns, recipe.required_features()
    if "preference_scores" in wanted and form.name != "scored" and not all(form.scores):
        raise UserError(
            f"data source {source.path!r} (form {form.name}) has no scores, which objective "
            f"{recipe.objective.name} needs: use the scored form, or set "
            "data.sources[].columns.chosen_score and rejected_score"
        )
    has_weights = bool(names.chosen_weights and names.rejected_weights)
    if "external_weights" in wanted and not has_weights:
        raise UserError(
            f"data source {source.path!r} has no token weights, which "
            f"{recipe.reader_of('external_weights')} needs: set "
            "data.sources[].columns.chosen_weights and rejected_weights"
        )
    if has_weights and form.name in ("scored", "unpaired"):
        raise UserError(
            f"data source {source.path!r}: candidates of the {form.name} form cannot carry token "
            "weights"
        )


def _is_small(tasks: list[ReadTask], recipe: Recipe) -> bool:
    """Whether this process is done with the tasks before another has imported what they need.

    It has imported that itself. On a cluster the work is the machines'.
    """
    chunks = [chunk for task in tasks for chunk in task.chunks]
    return (
        _is_own_ray(recipe)
        and all(chunk.kind in _TEXT for chunk in chunks)
        and sum(chunk.stop - chunk.start for chunk in chunks) <= _SMALL_BYTES
    )


def _is_own_ray(recipe: Recipe) -> bool:
    return cluster_address(recipe.ray) is None


def _blocks(
    tasks: list[ReadTask],
    recipe: Recipe,
    known_tokens: int | None,
    start: Start,
    control: Control | None,
) -> tuple[list[Any], int]:
    """References to the blocks of rows that the tasks make, in their order, and all their bytes."""
    given: dict[str, Any] = {
        "data": recipe.data,
        "is_labelled": recipe.reads_labels(),
        "tokenizer_name": recipe.model.tokenizer or recipe.model.name_or_path,
        "known_tokens": known_tokens,
        "control": control,
        "paths": local_paths(recipe),
    }
    items = [task.item() for task in tasks]
    if start is here:
        threads = min(_MOST_THREADS, recipe.ray.num_cpus or local_cpus())
        run = here(partial(_run_task, **given, threads=threads))
        made = [run(pa.Table.from_pylist([item])) for item in items]
        return made, sum(value_of(block).nbytes for block in made)
    import ray.data

    quieten_ray_data()
    found = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(_run_task, batch_size=1, batch_format="pyarrow", fn_kwargs=given)
        .materialize()
    )
    return found.to_arrow_refs(), found.size_bytes()


def _plan(data: DataSection, blocks: list[Any], start: Start) -> RowPlan:
    """Decide on all rows from a digest of every block.

    Raises: UserError or StageFailed of a task.
    """
    digest = start(_digest)
    waiting = [digest(block, data) for block in blocks]
    plan = RowPlan(data)
    for number, pending in enumerate(waiting):
        outcome, spans = value_of(pending)
        add_spans(spans)
        plan.add(result_of(outcome))
        waiting[number] = None  # the object store may forget it
    plan.settle()
    return plan


def _digest(block: pa.Table, data: DataSection) -> tuple[pa.Table | Failure, list[Span]]:
    """Ray task: the block's digest, or what it failed with, and where its tasks' time went."""
    return outcome_of(lambda: digest_of(result_of(rows_of(block)), data)), spans_of(block)


def _run_task(
    batch: pa.Table,
    data: DataSection,
    tokenizer_name: str,
    paths: dict[str, str],
    known_tokens: int | None = None,
    is_labelled: bool = False,
    control: Control | None = None,
    threads: int = 1,
) -> pa.Table:
    """Ray Data task: a part of a source -> a block of pairs and rejected rows, or its failure."""

    def rows() -> list[dict[str, Any]]:
        require_seen(paths)
        task = ReadTask.of_batch(batch)
        given = data, tokenizer_name, known_tokens, is_labelled, control, threads
        return list(_rows_of_task(task, *given))

    with recorded() as spans, spent("rows"):
        outcome = outcome_of(rows)
    return block_of(outcome, spans)


def _rows_of_task(
    task: ReadTask,
    data: DataSection,
    tokenizer_name: str,
    known_tokens: int | None = None,
    is_labelled: bool = False,
    control: Control | None = None,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    # By name: a model from a hub or an object store lies elsewhere on every machine.
    tokenizer = load_tokenizer(str(resolve_model(tokenizer_name, tokenizer_only=True)))
    encoder, chat = PairEncoder(tokenizer, data, control), ChatRenderer(tokenizer, data)

    def columns(pair: RawPair) -> dict[str, Any]:
        encoded = encoder.encode(pair)
        refuse_unknown_tokens(encoded, known_tokens)
        return _columns(pair, encoded)

    read = (row for chunk in task.chunks for row in read_rows(chunk))
    found = pairs_of_rows(read, task.form, data, chat, task.part, task.parts, is_labelled)
    for row, made in used(found, columns, stand_alone(task.form, is_labelled), threads):
        base = {"source": task.source, "row": row.number}
        if isinstance(made, RowRejected):
            yield {**base, "reason": str(made), "place": row.place}
        else:
            yield {**base, **made}


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
    content: list[Any] = [pair.prompt, pair.chosen, pair.rejected]
    if pair.desirable is not None:
        content.append(pair.desirable)
    return {
        "pair_id": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24],
        "prompt_hash": prompt_hash(pair.prompt if pair.prompt else pair.chosen),
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "prompt_ids": encoded.prompt,
        "chosen_ids": encoded.chosen,
        "rejected_ids": encoded.rejected,
        "chosen_context": list(encoded.chosen_context) or None,
        "rejected_context": list(encoded.rejected_context) or None,
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "chosen_weights": encoded.chosen_weights,
        "rejected_weights": encoded.rejected_weights,
        "truncated": ",".join(encoded.truncated),
        "straddling": encoded.straddling,
        "conversation": pair.conversation,
        "desirable": pair.desirable,
    }


def prompt_hash(prompt: str) -> str:
    """Hash of a prompt with case and white space normalised.

    The split and the overlap check compare it.
    """
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()[:24]
