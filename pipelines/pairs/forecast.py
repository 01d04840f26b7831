"""What prepare will make of the sources: exact where it has run, else estimated from some rows."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.cluster import local_cpus
from pipelines.errors import UserError
from pipelines.models import RAY_START, Control, Duration, load_tokenizer, pairs_seconds
from pipelines.pairs.conversation import ChatRenderer, PairEncoder, RawPair, RowRejected
from pipelines.pairs.prepare import (
    checked_chunks,
    files_left_out,
    needed_splits,
    no_pair,
    refuse_unknown_tokens,
)
from pipelines.pairs.row_readers import SourceRow
from pipelines.pairs.sources import Chunk, read_rows
from pipelines.pairs.table import SPLITS
from pipelines.pairs.tokenising import used
from pipelines.pairs.unpaired import pairs_of_rows, stand_alone
from pipelines.recipe import (
    MANIFEST,
    Recipe,
    Run,
    Source,
    StageRecord,
    read_manifest,
)

_SAMPLED_ROWS = 300
_DISK_BYTES_PER_TOKEN = 5.2
_ESTIMATED = ("pairs", "model_tokens", "shared_tokens", "scored_tokens")


def forecast_pairs(
    run: Run,
    record: StageRecord,
    tokenizer_dir: str,
    known_tokens: int | None,
    control: Control | None = None,
) -> dict[str, Any]:
    """Pairs, shards and tokens by split, and rejected rows by reason.

    Args:
        record: of prepare. known_tokens: ids below this have embeddings; None if all have.
            control: stands in front of the prompts.

    Raises: UserError if no row that was looked at makes a training pair.
    """
    recipe, store = run.recipe, run.paths.pairs
    if store.exists(MANIFEST) and _is_complete(record):
        counts = read_manifest(store)["counts"]
        return {
            "exact": True,
            **{key: counts[key] for key in (*_ESTIMATED, "shards", "rejected")},
            "layouts": counts.get("layouts", []),
            "left_out": counts.get("left_out", []),
            "disk_bytes": _disk_bytes(counts["shared_tokens"]),
            **Duration(0.0, 0.0).as_keys(),
        }
    tokenizer = load_tokenizer(tokenizer_dir)
    encoder = PairEncoder(tokenizer, recipe.data, control)
    chat = ChatRenderer(tokenizer, recipe.data)
    data = recipe.data
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    shares = {
        "sources": {"train": 1 - sum(held.values()), **held},
        "validation": {"validation": 1.0},
        "test": {"test": 1.0},
    }
    totals = {split: [0.0] * len(_ESTIMATED) for split in SPLITS}
    reasons: Counter[str] = Counter()
    lines: list[str] = []
    for group, sources in data.groups().items():
        for source in sources:
            estimate, rejected, line = _estimate(recipe, source, encoder, chat, known_tokens)
            lines.append(line)
            reasons.update(rejected)
            for split, share in shares[group].items():
                copies = share * (source.weight if split == "train" else 1.0)
                totals[split] = [
                    total + copies * value
                    for total, value in zip(totals[split], estimate, strict=True)
                ]
    for split, limit in (
        ("train", data.max_train_pairs),
        ("validation", data.max_validation_pairs),
        ("test", data.max_test_pairs),
    ):
        kept = 1.0 if limit is None else min(1.0, limit / max(1.0, totals[split][0]))
        totals[split] = [value * kept for value in totals[split]]
    found: dict[str, Any] = {
        name: {split: round(totals[split][i]) for split in SPLITS}
        for i, name in enumerate(_ESTIMATED)
    }
    sizes = {
        split: [data.shard_pairs] * math.ceil(found["pairs"][split] / data.shard_pairs)
        for split in SPLITS
    }
    if not any(any(totals[split]) for split in needed_splits(recipe)):
        raise no_pair(recipe, reasons, lines)
    return {
        "exact": False,
        **found,
        "shards": sizes,
        "rejected": dict(sorted(reasons.items())),
        "layouts": list(dict.fromkeys(lines)),
        "left_out": files_left_out(recipe),
        "disk_bytes": _disk_bytes(found["shared_tokens"]),
        **Duration(RAY_START, pairs_seconds(sum(found["pairs"].values()), local_cpus())).as_keys(),
    }


def _is_complete(record: StageRecord) -> bool:
    """Whether the pairs that are there are those of this recipe; others say nothing of it."""
    try:
        return record.is_complete()
    except UserError:
        return False


def _disk_bytes(tokens: dict[str, int]) -> int:
    """Of pairs with so many tokens, prompts once: ids and texts, compressed."""
    return round(_DISK_BYTES_PER_TOKEN * sum(tokens.values()))


def _estimate(
    recipe: Recipe,
    source: Source,
    encoder: PairEncoder,
    chat: ChatRenderer,
    known_tokens: int | None,
) -> tuple[tuple[float, ...], dict[str, int], str]:
    """The quantities of _ESTIMATED of a source, its rejected rows by reason, and how it is read.

    They come from rows taken evenly over its chunks, and from all that come before the first pair;
    of an unpaired source from some prompts.
    """

    def quantities(pair: RawPair) -> tuple[int, ...]:
        encoded = encoder.encode(pair)
        refuse_unknown_tokens(encoded, known_tokens)
        responses = len(encoded.chosen) + len(encoded.rejected or ())
        prompts = 1 if encoded.rejected is None else 2
        if (
            pair.desirable is not None and recipe.objective.declared.uses_rejected
        ):  # beside it a row reads another's response, as long on average
            responses, prompts = 2 * responses, 2
        prompt = len(encoded.prompt)
        return 1, responses + prompts * prompt, responses + prompt, responses

    detected, chunks = checked_chunks(recipe, source)
    sample = _Sample(chunks, detected.form.name == "unpaired" and not recipe.reads_labels())
    totals, reasons = [0] * len(_ESTIMATED), Counter[str]()
    form, is_labelled = detected.form, recipe.reads_labels()
    found = pairs_of_rows(sample.rows(), form, recipe.data, chat, 0, sample.parts, is_labelled)
    for _, made in used(found, quantities, stand_alone(form, is_labelled)):
        if isinstance(made, RowRejected):
            reasons[str(made)] += 1
        else:
            sample.has_pair = True
            totals = [total + value for total, value in zip(totals, made, strict=True)]
    scale = sample.scale()
    return (
        tuple(total * scale for total in totals),
        {reason: round(n * scale) for reason, n in reasons.items()},
        detected.line,
    )


class _Sample:
    """Some hundred rows of a source; all of it is read, to count them.

    Args:
        is_whole: rows of a prompt may stand anywhere, so that all of the source is read.
    Attributes:
        parts: of the prompts of an unpaired source one part is looked at. 1 for other forms.
            has_pair: whether a row was one; until then all rows are taken.
    """

    def __init__(self, chunks: Sequence[Chunk], is_whole: bool) -> None:
        self._chunks, self._is_whole = chunks, is_whole
        self._num_rows = self._num_taken = 0
        self.parts, self.has_pair = 1, False
        if self._is_whole:
            rows = sum(1 for chunk in chunks for _ in read_rows(chunk))
            self.parts = max(1, rows // _SAMPLED_ROWS)

    def rows(self) -> Iterator[SourceRow]:
        per_chunk = max(1, _SAMPLED_ROWS // len(self._chunks))
        for chunk in self._chunks:
            for number, row in enumerate(read_rows(chunk)):
                self._num_rows += 1
                if self._is_whole or number < per_chunk or not self.has_pair:
                    self._num_taken += 1
                    yield row

    def scale(self) -> float:
        """What the sample's numbers are multiplied by, once its rows are read."""
        return self.parts * self._num_rows / max(1, self._num_taken)
