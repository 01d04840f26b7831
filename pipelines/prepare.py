"""prepare: sources of any form -> tokenised, split, counted pairs in RUN/pairs (Ray Data).

Tasks read their chunk, render, tokenise and truncate; the driver sees hashes first (duplicates, overlap with held-out
prompts, limits), then streams the kept rows into shards. Rows are dropped with a reason into rejected_rows.jsonl.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from pipelines import sources
from pipelines.actor_pool import quieten_ray_data
from pipelines.config import DataSection, Recipe, Source
from pipelines.errors import UserError
from pipelines.models import (
    load_tokenizer,
    max_positions,
    resolve_model,
    tokenizer_fingerprint,
)
from pipelines.pair_table import PAIR_SCHEMA, SPLITS, PairTable, shard_name
from pipelines.stage_record import MANIFEST, StageRecord
from pipelines.store import RunStore
from pipelines.text_forms import (
    Encoded,
    PairEncoder,
    RawPair,
    RowRejected,
    detect_form,
    needed_columns,
    pairs_of_row,
)

REJECTED_ROWS = "rejected_rows.jsonl"
_TASK_SCHEMA = pa.schema([*PAIR_SCHEMA, ("reason", pa.string()), ("fatal", pa.string())])


def pairs_store(recipe: Recipe) -> RunStore:
    return RunStore(recipe.paths.pairs or f"{recipe.run_dir}/pairs")


def prepare_record(recipe: Recipe) -> StageRecord:
    """The stage record of a recipe's pairs. UserError if a source or the tokenizer does not exist."""
    tokenizer_dir = resolve_model(recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True)
    inputs = {
        "sources": [sources.fingerprint(s) for s in recipe.data.sources],
        "validation": [sources.fingerprint(s) for s in recipe.data.validation],
        "test": [sources.fingerprint(s) for s in recipe.data.test],
        "tokenizer": tokenizer_fingerprint(load_tokenizer(str(tokenizer_dir))),
        "needs_rejected": recipe.objective.build().uses_rejected,
    }
    record = StageRecord.of(recipe, "prepare", pairs_store(recipe), inputs)
    # Where a source lies changes nothing: its content is among the inputs.
    settings = {key: value for key, value in record.settings.items() if not key.endswith(".path")}
    return StageRecord(record.stage, record.store, settings, inputs)


def open_pairs(recipe: Recipe) -> PairTable:
    """The finished pairs of a recipe."""
    store = pairs_store(recipe)
    return PairTable(store, store.read_json(MANIFEST))


def run_prepare(recipe: Recipe, quiet: bool = False) -> dict[str, Any]:
    """Prepare the recipe's pairs and return the stage's manifest. Needs a running Ray.

    Raises: UserError for a missing file or column, a tokenizer that cannot do the form, or no usable row at all.
    """
    record = prepare_record(recipe)
    directory = resolve_model(recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True)
    check_lengths(recipe, directory)
    tasks = _tasks(recipe)
    record.begin()
    dataset = _tokenised(tasks, recipe, recipe.model.tokenizer or recipe.model.name_or_path)
    plan = _Plan(recipe, _roles(recipe.data))
    for batch in dataset.select_columns(["source", "row", "prompt_hash", "pair_id", "reason", "fatal"]).iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        plan.observe(batch)
    plan.settle()
    writer = _Writer(record.store, recipe.data.shard_pairs)
    progress = tqdm(total=plan.num_seen, desc="prepare", unit="row", disable=quiet)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        writer.add(batch, plan)
        progress.update(batch.num_rows)
    progress.close()
    counts = writer.close()
    counts["rejected"] = dict(sorted(plan.reasons.items()))
    counts["exact_duplicates"] = plan.num_duplicates
    if counts["pairs"]["train"] == 0:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in plan.reasons.most_common(5)) or "the sources are empty"
        raise UserError(f"no usable training pair in {', '.join(s.path for s in recipe.data.sources)} ({reasons})")
    return record.finish(counts, writer.checksums)


def check_lengths(recipe: Recipe, directory: Path) -> None:
    """UserError if rows may be longer than the model in that directory reads."""
    limit = max_positions(directory)
    data = recipe.data
    longest = data.max_tokens or data.max_prompt_tokens + data.max_response_tokens
    if limit is not None and longest > limit:
        raise UserError(
            f"data.max_prompt_tokens + max_response_tokens = {longest} (or data.max_tokens): the model reads at most {limit} tokens"
        )


def _roles(data: DataSection) -> list[str]:
    return ["train"] * len(data.sources) + ["validation"] * len(data.validation) + ["test"] * len(data.test)


def _tasks(recipe: Recipe) -> list[dict[str, Any]]:
    """One task per chunk, the source's form resolved and its columns checked before anything runs."""
    tasks = []
    everything: tuple[Source, ...] = (*recipe.data.sources, *recipe.data.validation, *recipe.data.test)
    for number, source in enumerate(everything):
        chunks = sources.chunks_of(source, recipe.data.rows_per_task)
        if not chunks:
            raise UserError(f"data source {source.path!r} holds no row")
        columns, first = sources.column_names(chunks[0])
        form = detect_form(columns, source.columns, first) if source.form == "auto" else source.form
        for name in needed_columns(form, source.columns):
            if name not in columns:
                raise UserError(
                    f"data source {source.path!r} (form {form}) has no column {name!r}: its columns are {', '.join(sorted(columns))}"
                )
        if recipe.objective.build().uses_rejected and form in ("chosen_only", "text_only"):
            raise UserError(f"data source {source.path!r} has no rejected responses: objective {recipe.objective.name} needs them")
        _check_features(recipe, source, form)
        tasks += [{"source": number, "form": form, "chunk": json.dumps(asdict(chunk))} for chunk in chunks]
    return tasks


def _check_features(recipe: Recipe, source: Source, form: str) -> None:
    """UserError if objective or mask read something from the pairs that this source cannot give."""
    names, wanted = source.columns, recipe.required_features()
    if "preference_scores" in wanted and form != "scored" and not (names.chosen_score and names.rejected_score and form == "text"):
        raise UserError(
            f"data source {source.path!r} (form {form}) has no scores, which objective {recipe.objective.name} needs: use the scored form, "
            "or the text form with data.sources[].columns.chosen_score and rejected_score"
        )
    has_weights = bool(names.chosen_weights and names.rejected_weights)
    if "external_weights" in wanted and not has_weights:
        raise UserError(
            f"data source {source.path!r} has no token weights, which mask.kind=external needs: set data.sources[].columns.chosen_weights "
            "and rejected_weights"
        )
    if has_weights and form == "scored":
        raise UserError(f"data source {source.path!r}: candidates of the scored form cannot carry token weights")


def _tokenised(tasks: list[dict[str, Any]], recipe: Recipe, tokenizer: str) -> Any:
    import ray.data

    quieten_ray_data()
    return (
        ray.data.from_items(tasks, override_num_blocks=len(tasks))
        .map_batches(_run_task, batch_size=1, batch_format="pyarrow", fn_kwargs={"data": recipe.data, "tokenizer_name": tokenizer})
        .materialize()
    )


def _run_task(batch: pa.Table, data: DataSection, tokenizer_name: str) -> pa.Table:
    """Ray Data task: one chunk -> a table of pairs and rejected rows."""
    (task,) = batch.to_pylist()
    source = (*data.sources, *data.validation, *data.test)[task["source"]]
    # By name: a model from a hub or an object store lies elsewhere on every machine.
    tokenizer = load_tokenizer(str(resolve_model(tokenizer_name, tokenizer_only=True)))
    encoder = PairEncoder(tokenizer, data)
    rows: list[dict[str, Any]] = []
    for number, row in sources.read_chunk(sources.Chunk(**json.loads(task["chunk"]))):
        base = {"source": task["source"], "row": number}
        try:
            if row is None:
                raise RowRejected("the line is not a JSON object")
            for pair in pairs_of_row(row, task["form"], data, source.columns, tokenizer):
                rows.append({**base, **_columns(pair, encoder.encode(pair))})
        except RowRejected as reason:
            rows.append({**base, "reason": str(reason)})
        except UserError as error:
            return pa.Table.from_pylist([{**base, "fatal": str(error)}], schema=_TASK_SCHEMA)
    return pa.Table.from_pylist(rows, schema=_TASK_SCHEMA)


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
    """Hash of a prompt with case and white space normalised: what the split and the overlap check compare."""
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()[:24]


def _unit(*parts: Any) -> float:
    """A uniform number in [0, 1) that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big") / 2**64


@dataclass
class _Plan:
    """What happens to every row, decided from hashes before any row is written."""

    recipe: Recipe
    roles: list[str]
    num_seen: int = 0
    num_duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    _rows: list[tuple[str, str, str]] = field(default_factory=list)  # (split or "", content hash, prompt hash) per row
    fates: list[tuple[str, str, int]] = field(default_factory=list)  # (split, reason, copies) per row

    def observe(self, batch: pa.Table) -> None:
        data = self.recipe.data
        for row in batch.to_pylist():
            self.num_seen += 1
            if row["fatal"]:
                raise UserError(row["fatal"])
            if row["reason"]:
                self._rows.append(("", "", ""))
                self.fates.append(("", row["reason"], 0))
                continue
            split = self.roles[row["source"]]
            if split == "train":
                at = _unit(data.split_seed, row["prompt_hash"])
                if at < data.test_fraction:
                    split = "test"
                elif at < data.test_fraction + data.validation_fraction:
                    split = "validation"
            self._rows.append((split, row["pair_id"], row["prompt_hash"]))
            self.fates.append((split, "", self._copies(row) if split == "train" else 1))

    def _copies(self, row: dict[str, Any]) -> int:
        weight = self.recipe.data.sources[row["source"]].weight
        return int(weight) + (_unit("weight", row["source"], row["row"], row["pair_id"]) < weight - int(weight))

    def settle(self) -> None:
        """Apply overlap, duplicates and limits; afterwards `fates` is final."""
        data = self.recipe.data
        held_out = {prompt for split, _, prompt in self._rows if split in ("validation", "test")}
        seen: set[tuple[str, str]] = set()
        for i, (split, content, prompt) in enumerate(self._rows):
            if not split:
                continue
            if split == "train" and prompt in held_out:
                self.fates[i] = ("", "prompt is also in held-out data", 0)
            elif (split, content) in seen:
                self.num_duplicates += 1
                if data.deduplicate:
                    self.fates[i] = ("", "exact duplicate", 0)
            elif self.fates[i][2] == 0:
                self.fates[i] = ("", "left out by the source's weight", 0)
            seen.add((split, content))
        limits = {"train": data.max_train_pairs, "validation": data.max_validation_pairs, "test": data.max_test_pairs}
        for split, limit in limits.items():
            chosen = [i for i, fate in enumerate(self.fates) if fate[0] == split]
            if limit is not None and len(chosen) > limit:
                # A pseudo-random choice that does not depend on the order of the sources.
                ranked = sorted(chosen, key=lambda i: (_unit("limit", data.split_seed, self._rows[i][1]), i))
                for i in ranked[limit:]:
                    self.fates[i] = ("", f"beyond max_{split}_pairs", 0)
        self.reasons.update(reason for _, reason, _ in self.fates if reason)


class _Writer:
    """Streams rows in source order into shards and rejected_rows.jsonl.

    Attributes:
        checksums: path -> sha256 of every shard written.
    """

    def __init__(self, store: RunStore, shard_pairs: int) -> None:
        self._store, self._shard_pairs = store, shard_pairs
        self.checksums: dict[str, str] = {}
        self._pending: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._shards: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._tokens = dict.fromkeys(SPLITS, 0)
        self._shared = dict.fromkeys(SPLITS, 0)
        self._scored = dict.fromkeys(SPLITS, 0)
        self._truncated: Counter[str] = Counter()
        self._occurrences: Counter[str] = Counter()
        self._rejected: list[str] = []
        self._next = 0

    def add(self, batch: pa.Table, plan: _Plan) -> None:
        for row in batch.to_pylist():
            split, reason, copies = plan.fates[self._next]
            self._next += 1
            if reason:
                self._rejected.append(json.dumps({"source": row["source"], "row": row["row"], "reason": reason}))
                continue
            for name in filter(None, row["truncated"].split(",")):
                self._truncated[name] += 1
            content = row["pair_id"]
            for _ in range(copies):
                occurrence = self._occurrences[f"{split}{content}"]
                self._occurrences[f"{split}{content}"] += 1
                self._keep(split, {**row, "pair_id": f"{content}-{occurrence}"})

    def _keep(self, split: str, row: dict[str, Any]) -> None:
        rejected = row["rejected_ids"]
        responses = len(row["chosen_ids"]) + len(rejected or ())
        self._scored[split] += responses
        self._shared[split] += responses + len(row["prompt_ids"])
        self._tokens[split] += responses + len(row["prompt_ids"]) * (1 if rejected is None else 2)
        self._pending[split].append(row)
        if len(self._pending[split]) == self._shard_pairs:
            self._flush(split)

    def _flush(self, split: str) -> None:
        rows = self._pending[split]
        if rows:
            table = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
            path = f"{shard_name(split, len(self._shards[split]))}.parquet"
            with self._store.table_writer(path, table.schema) as file:
                file.write(table)
            self.checksums[path] = file.sha256
            self._shards[split].append(len(rows))
            self._pending[split] = []

    def close(self) -> dict[str, Any]:
        for split in SPLITS:
            self._flush(split)
        self._store.write_bytes(REJECTED_ROWS, "".join(line + "\n" for line in self._rejected).encode())
        return {
            "pairs": {split: sum(self._shards[split]) for split in SPLITS},
            "shards": self._shards,
            "model_tokens": self._tokens,
            "shared_tokens": self._shared,
            "scored_tokens": self._scored,
            "truncated": dict(sorted(self._truncated.items())),
        }
