"""prepare --show: prepared pairs as a person reads them, and what was dropped.

Everything comes from the stored token ids, so it is what training reads.
"""

import itertools
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipelines.errors import UserError
from pipelines.models import TokenTexts, load_tokenizer, resolve_model, special_ids
from pipelines.pairs.form_lines import place_of
from pipelines.pairs.sources import Chunk, chunks_of, read_rows
from pipelines.pairs.table import SPLITS, PairTable, open_pairs
from pipelines.recipe import MANIFEST, REJECTED_ROWS, Recipe, Run, Source, read_manifest
from pipelines.storage import RunStore, read_lines

_PLACES = 3
_CURE = f"restore it, or remove {MANIFEST} beside it and run `sparsepo prepare` again"
_COLUMNS = (
    *("source", "row", "prompt_ids", "chosen_ids", "rejected_ids", "chosen_context"),
    *("rejected_context", "chosen_score", "rejected_score", "truncated", "desirable"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Marks:
    """What stands around scored text and special tokens, and around names."""

    scored: tuple[str, str]
    special: tuple[str, str]
    name: tuple[str, str]


PLAIN = Marks(("⟦", "⟧"), ("", ""), ("", ""))
COLOURS = Marks(("\x1b[32m", "\x1b[0m"), ("\x1b[7m", "\x1b[27m"), ("\x1b[1m", "\x1b[0m"))


def shown(run: Run, count: int, is_terminal: bool = False) -> Iterator[str]:
    """Lines: how the sources are read, pairs of every source in turn, and what was dropped.

    Args:
        count: of pairs, and no more. is_terminal: colours mark what is scored, else brackets.
    """
    recipe, store = run.recipe, run.paths.pairs
    pairs, marks = open_pairs(run), COLOURS if is_terminal else PLAIN
    manifest = read_manifest(store)
    counts = manifest["counts"]
    for split in SPLITS:
        pairs.check(split)
    yield from map(_visible, counts.get("layouts", ()))
    for kind, ends in counts.get("encoding", {}).items():
        bos = "no BOS" if ends["bos"] == "none" else f"BOS from the {ends['bos']}"
        yield f"{kind}: {bos}, a response ends with {ends['end']}"
    yield f"scored tokens stand {'in green' if is_terminal else 'in ⟦ ⟧'}"
    name = recipe.model.tokenizer or recipe.model.name_or_path
    writer = _Writer(load_tokenizer(str(resolve_model(name, tokenizer_only=True))), marks)
    for number, (split, row) in enumerate(itertools.islice(_some(pairs, recipe), count), 1):
        (values,) = pairs.values(split, [row], _COLUMNS)
        yield ""
        yield from _pair(number, split, dict(zip(_COLUMNS, values, strict=True)), recipe, writer)
    yield ""
    yield from _dropped(_rejected(store, manifest["outputs"].get(REJECTED_ROWS)), recipe)


def _rejected(store: RunStore, hash_: str | None) -> list[dict[str, Any]]:
    return read_lines(store, REJECTED_ROWS, {"reason": str}, hash_, _CURE, may_be_empty=True)


def _some(pairs: PairTable, recipe: Recipe) -> Iterator[tuple[str, int]]:
    """(split, row) of pairs: the first of every source, then the second, and so on."""
    sources = range(len(_sources(recipe)))
    turns = itertools.zip_longest(*(_of_source(pairs, source) for source in sources))
    return (place for turn in turns for place in turn if place is not None)


def _of_source(pairs: PairTable, source: int) -> Iterator[tuple[str, int]]:
    """A source's pairs; those of a split are in the order of the sources."""
    for split in SPLITS:

        def source_at(row: int, split: str = split) -> int:
            ((found,),) = pairs.values(split, [row], ["source"])
            return int(found)

        rows = pairs.num_rows(split)
        for row in range(bisect_left(range(rows), source, key=source_at), rows):
            if source_at(row) != source:
                break
            yield split, row


def _sources(recipe: Recipe) -> list[tuple[str, Source]]:
    """Every source and the key that names it, by its number in the pairs."""
    return [
        (f"data.{group}[{number}]", source)
        for group, sources in recipe.data.groups().items()
        for number, source in enumerate(sources)
    ]


def _pair(
    number: int, split: str, row: dict[str, Any], recipe: Recipe, writer: "_Writer"
) -> Iterator[str]:
    key, source = _sources(recipe)[row["source"]]
    place = _place_in(source, row["row"], recipe.data.rows_per_task)
    yield writer.named(f"{number}. {split}, {place} ({key})")
    truncated = (row["truncated"] or "").split(",")
    yield from writer.part("prompt", [], row["prompt_ids"], [], "prompt" in truncated, None)
    for side in ("chosen", "rejected"):
        if row[f"{side}_ids"] is not None:
            yield from writer.part(
                _called(side, row["desirable"]),
                row["prompt_ids"],
                row[f"{side}_ids"],
                row[f"{side}_context"] or [],
                side in truncated,
                row[f"{side}_score"],
            )


def _called(side: str, label: bool | None) -> str:
    """A response's name; of a labelled row, what its label says of it."""
    if label is None:
        return side
    if side == "rejected":
        return "response to another prompt"
    return "desirable" if label else "undesirable"


@lru_cache(maxsize=64)
def _chunks(source: Source, rows_per_task: int) -> list[Chunk]:
    return chunks_of(source, rows_per_task)


def _place_in(source: Source, row: int, rows_per_task: int) -> str:
    """File and line of a row; its number where the source is no longer there."""
    try:
        chunks = _chunks(source, rows_per_task)
        chunk = max((c for c in chunks if c.first_row <= row), key=lambda c: c.first_row)
        return next(place_of(found) for found in read_rows(chunk) if found.number == row)
    except (UserError, StopIteration, ValueError):
        return f"{source.path}, row {row}"


class _Writer:
    """Writes token ids as text, special tokens and what is scored marked."""

    def __init__(self, tokenizer: Any, marks: Marks) -> None:
        self._marks = marks
        self._special, self._texts = special_ids(tokenizer), TokenTexts(tokenizer)

    def named(self, text: str) -> str:
        return text.join(self._marks.name)

    def part(
        self,
        name: str,
        before: Sequence[int],
        ids: Sequence[int],
        context: Sequence[int],
        is_cut: bool,
        score: float | None,
    ) -> Iterator[str]:
        """A line about a part, and its text.

        Args:
            before: ids that it continues. context: [start, stop, ...] of its tokens that are read
                and not scored.
        """
        is_scored = [name != "prompt"] * len(ids)
        for start, stop in zip(context[::2], context[1::2], strict=True):
            is_scored[start:stop] = [False] * (stop - start)
        about = [f"{len(ids)} tokens"]
        if context:
            about.append(f"{sum(is_scored)} scored")
        if score is not None:
            about.append(f"score {score:g}")
        if is_cut:
            about.append("cut" if name == "prompt" else "cut: no end token")
        yield f"   {self.named(name)} ({', '.join(about)})"
        pieces = self._texts(ids, begins=not len(before))
        text = ""
        for scored, group in itertools.groupby(range(len(ids)), lambda i: is_scored[i]):
            written = "".join(self._marked(ids[i], pieces[i]) for i in group)
            text += written.join(self._marks.scored) if scored else written
        for line in text.split("\n"):
            yield f"      {line}" if line else ""

    def _marked(self, token: int, piece: str) -> str:
        text = _visible(piece)
        return text.join(self._marks.special) if token in self._special else text


def _visible(text: str) -> str:
    """Text whose control characters do nothing to a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _dropped(rows: Sequence[dict[str, Any]], recipe: Recipe) -> Iterator[str]:
    """Reasons with their counts, and where the first few stand."""
    if not rows:
        yield "no row was dropped"
        return
    places: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    sources = _sources(recipe)
    for row in rows:
        reason = row["reason"]
        counts[reason] += 1
        if len(places[reason]) < _PLACES:
            source = sources[row["source"]][1]
            places[reason].append(
                row.get("place") or _place_in(source, row["row"], recipe.data.rows_per_task)
            )
    yield f"dropped: {len(rows)}"
    for reason, number in sorted(counts.items(), key=lambda item: -item[1]):
        more = ", ..." if number > len(places[reason]) else ""
        yield f"   {number}  {_visible(reason)}: {', '.join(places[reason])}{more}"
