"""What prepare will make of the sources: exact where it has run, else estimated from some rows."""

import math
from collections import Counter
from typing import Any

from pipelines.models import load_tokenizer
from pipelines.pairs.forms import PairEncoder, RowRejected, pairs_of_row
from pipelines.pairs.prepare import checked_chunks, files_left_out, no_pair, refuse_unknown_tokens
from pipelines.pairs.sources import read_rows
from pipelines.pairs.table import SPLITS
from pipelines.recipe import MANIFEST, Recipe, Run, Source

_SAMPLED_ROWS = 300
_ESTIMATED = ("pairs", "model_tokens", "shared_tokens", "scored_tokens")


def forecast_pairs(run: Run, tokenizer_dir: str, known_tokens: int | None) -> dict[str, Any]:
    """Pairs, shards and tokens by split, and rejected rows by reason.

    Args:
        known_tokens: ids below this have embeddings; None if all have.

    Raises: UserError if no row makes a training pair.
    """
    recipe, store = run.recipe, run.paths.pairs
    if store.exists(MANIFEST):
        counts = store.read_json(MANIFEST)["counts"]
        return {
            "exact": True,
            **{key: counts[key] for key in (*_ESTIMATED, "shards", "rejected")},
            "left_out": counts.get("left_out", []),
        }
    tokenizer = load_tokenizer(tokenizer_dir)
    encoder = PairEncoder(tokenizer, recipe.data)
    data = recipe.data
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    shares = {
        "sources": {"train": 1 - sum(held.values()), **held},
        "validation": {"validation": 1.0},
        "test": {"test": 1.0},
    }
    totals = {split: [0.0] * len(_ESTIMATED) for split in SPLITS}
    reasons: Counter[str] = Counter()
    for group, sources in data.groups().items():
        for source in sources:
            estimate, rejected = _estimate(recipe, source, encoder, tokenizer, known_tokens)
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
    if not any(totals["train"]):
        raise no_pair(recipe, reasons)
    return {
        "exact": False,
        **found,
        "shards": sizes,
        "rejected": dict(sorted(reasons.items())),
        "left_out": files_left_out(recipe),
    }


def _estimate(
    recipe: Recipe,
    source: Source,
    encoder: PairEncoder,
    tokenizer: Any,
    known_tokens: int | None,
) -> tuple[tuple[float, ...], dict[str, int]]:
    """The quantities of _ESTIMATED of a source, and its rejected rows by reason.

    Both come from rows taken evenly over its chunks, and from all that come before the first pair.
    """
    form, chunks = checked_chunks(recipe, source)
    rows = seen = pairs = tokens = shared = scored = 0
    reasons: Counter[str] = Counter()
    per_chunk = max(1, _SAMPLED_ROWS // len(chunks))
    for chunk in chunks:
        for number, row in enumerate(read_rows(chunk)):
            rows += 1
            if number >= per_chunk and pairs:
                continue
            seen += 1
            try:
                if row.values is None:
                    raise RowRejected(row.fault)
                for pair in pairs_of_row(row.values, form, recipe.data, source.columns, tokenizer):
                    encoded = encoder.encode(pair)
                    refuse_unknown_tokens(encoded, known_tokens)
                    responses = len(encoded.chosen) + len(encoded.rejected or ())
                    pairs, scored = pairs + 1, scored + responses
                    tokens += responses + len(encoded.prompt) * (
                        1 if encoded.rejected is None else 2
                    )
                    shared += responses + len(encoded.prompt)
            except RowRejected as reason:
                reasons[str(reason)] += 1
    scale = rows / max(1, seen)
    estimate = (pairs * scale, tokens * scale, shared * scale, scored * scale)
    return estimate, {reason: round(n * scale) for reason, n in reasons.items()}
