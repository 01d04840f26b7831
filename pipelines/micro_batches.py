"""The micro-batches of one rank: cut, laid out and read ahead of the step that needs them.

Which rows a micro-batch holds is a pure function of the global batch, the layout and the number of ranks.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.batch_layout import BatchLayout
from pipelines.feature_source import FeatureSource
from pipelines.pair_table import PairTable
from pipelines.placement import Placement
from pipelines.sampler import rank_share
from sparsepo.layouts import TokenizedPair
from sparsepo.records import Features, ModelInputs


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a split as model inputs, with the features that are read; on the CPU.

    is_filler: it only keeps a rank in step with the others and counts for nothing.
    """

    rows: list[int]
    inputs: ModelInputs
    features: Features
    is_filler: bool = False


class MicroBatchLoader:
    """Makes the micro-batches of a global batch, the next one's while this one is trained on.

    Args:
        aligned: every rank gets as many micro-batches as the one with the most, filled up with fillers.
        uses_rejected: False drops the rejected responses.
    """

    def __init__(
        self,
        pairs: PairTable,
        source: FeatureSource,
        layout: BatchLayout,
        placement: Placement,
        aligned: bool,
        uses_rejected: bool,
    ) -> None:
        self._pairs, self._source, self._placement = pairs, source, placement
        self.layout = layout
        self._aligned, self._uses_rejected = aligned, uses_rejected
        self._lengths: dict[str, list[int]] = {}
        self.is_one_pair_each = False  # in the global batch loaded last: no smaller budget would help
        # One thread reads: the store's and the table's caches are not made for several.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="micro-batches")
        self._ahead: tuple[tuple[str, tuple[int, ...]], Future[list[MicroBatch]]] | None = None

    def read_ahead(self, split: str, rows: Sequence[int], later: Sequence[Sequence[int]] = ()) -> None:
        """Start on the micro-batches of a global batch that will be asked for next; `later` ones are only brought near."""
        key = (split, tuple(rows))
        self._ahead = (key, self._pool.submit(self._load, split, list(rows)))
        for further in later:
            self._pool.submit(self._fetch, split, list(further))

    def _fetch(self, split: str, rows: list[int]) -> None:
        place = self._placement
        self._source.fetch(split, rank_share(rows, self._all_lengths(split), place.rank, place.world))

    def load(self, split: str, rows: Sequence[int]) -> list[MicroBatch]:
        """This rank's micro-batches of a global batch; may be none. UserError if the pairs or the store lack something."""
        if self._ahead is None or self._ahead[0] != (split, tuple(rows)):
            self.read_ahead(split, rows)
        assert self._ahead is not None
        found = self._ahead[1].result()
        self._ahead = None
        self.is_one_pair_each = all(len(batch.rows) == 1 for batch in found)
        return found

    def _load(self, split: str, rows: list[int]) -> list[MicroBatch]:
        self._fetch(split, rows)
        mine, *others = self._cuts(split, rows)
        missing = max((len(cut) for cut in others), default=0) - len(mine)
        batches = [self._batch(split, cut) for cut in mine]
        if missing > 0:
            shortest = min(rows, key=lambda row: (self._length(split, row), row))
            batches += [self._batch(split, [shortest], is_filler=True)] * missing
        return batches

    def _cuts(self, split: str, rows: list[int]) -> list[list[list[int]]]:
        """The rows of every micro-batch: this rank's, then (if ranks are kept in step) the others'."""
        rank, world = self._placement.rank, self._placement.world
        ranks = [rank, *(other for other in range(world) if other != rank)] if self._aligned else [rank]
        found = []
        for one in ranks:
            share = rank_share(rows, self._all_lengths(split), one, world)
            tokens = self._tokens(split, share)
            found.append([[share[place] for place in places] for places in self.layout.batches(tokens)])
        return found

    def _batch(self, split: str, rows: list[int], is_filler: bool = False) -> MicroBatch:
        inputs, features = self.layout.inputs(self._tokens(split, rows)), self._source.read(split, rows)
        if self._placement.device.type == "cuda":
            inputs, features = inputs.pinned(), features.pinned()
        return MicroBatch(rows, inputs, features, is_filler)

    def _tokens(self, split: str, rows: Sequence[int]) -> list[TokenizedPair]:
        pairs = self._pairs.pairs(split, rows)
        return pairs if self._uses_rejected else [TokenizedPair(pair.prompt, pair.chosen, None) for pair in pairs]

    def _all_lengths(self, split: str) -> list[int]:
        if split not in self._lengths:
            self._lengths[split] = self._pairs.lengths(split, self.layout.shares_prompts)
        return self._lengths[split]

    def _length(self, split: str, row: int) -> int:
        return self._all_lengths(split)[row]
