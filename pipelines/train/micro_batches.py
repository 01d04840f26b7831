"""The micro-batches of one rank: cut, laid out and read ahead of the moment that needs them.

Which rows a micro-batch holds is a pure function of the global batch, the layout and the number of
ranks.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from pipelines.models import Placement
from pipelines.pairs import PairTable
from pipelines.reference import FeatureSource
from sparsepo.batching.batch_layout import BatchLayout
from sparsepo.batching.cutting import rank_share
from sparsepo.batching.layouts import TokenizedPair
from sparsepo.features import FEATURES
from sparsepo.records import Features, ModelInputs

_READ_AHEAD = 2  # micro-batches


@dataclass(frozen=True)
class Cut:
    """The rows of one micro-batch.

    Attributes:
        is_filler: it only keeps a rank in step with the others and counts for nothing.
        has_rejected: False leaves the rejected responses out.
    """

    split: str
    rows: tuple[int, ...]
    is_filler: bool = False
    has_rejected: bool = True


@dataclass(frozen=True)
class MicroBatch:
    """A cut as model inputs, with the features that are read; on the CPU."""

    cut: Cut
    inputs: ModelInputs
    features: Features


class MicroBatchLoader:
    """Cuts global batches, and reads a few micro-batches ahead.

    Memory does not grow with the global batch.

    Args:
        aligned: every rank gets as many micro-batches as the one with the most, filled up with
            fillers.
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
        self._cuts = lru_cache(maxsize=2)(
            self._cut
        )  # every step is cut once, one step before it runs
        # One thread reads: the store's and the table's caches are not made for several.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="micro-batches")
        self._ahead: dict[Cut, Future[MicroBatch]] = {}

    def cuts(self, split: str, rows: Sequence[int]) -> list[Cut]:
        """This rank's micro-batches of a global batch; may be none."""
        return self._cuts(split, tuple(rows))

    def _cut(self, split: str, rows: tuple[int, ...]) -> list[Cut]:
        mine, *others = self._shares(split, rows)
        found = [Cut(split, tuple(cut)) for cut in mine]
        missing = max((len(cuts) for cuts in others), default=0) - len(mine)
        if missing > 0:
            lengths = self._lengths(split)
            found += [
                Cut(split, (min(rows, key=lambda row: (lengths[row], row)),), is_filler=True)
            ] * missing
        return found

    def stream(self, cuts: Sequence[Cut], then: Sequence[Cut] = ()) -> Iterator[MicroBatch]:
        """The micro-batches of some cuts, in order; those of `then` will be asked for next.

        Raises: UserError if the pairs or the store lack something.
        """
        coming = [*cuts, *then]
        for number, cut in enumerate(cuts):
            for near in coming[number : number + 1 + _READ_AHEAD]:
                if near not in self._ahead:
                    self._ahead[near] = self._pool.submit(self._read, near)
            yield self._ahead.pop(cut).result()

    def prefetch(self, split: str, rows: Sequence[int]) -> None:
        """Start to fetch this rank's rows of a later global batch, if on an object store."""
        placement = self._placement
        self._pool.submit(
            self._source.fetch,
            split,
            rank_share(rows, self._lengths(split), placement.rank, placement.world),
        )

    def _shares(self, split: str, rows: Sequence[int]) -> list[list[list[int]]]:
        """The rows of every micro-batch: this rank's, then the others' if ranks keep in step."""
        rank, world = self._placement.rank, self._placement.world
        ranks = (
            [rank, *(other for other in range(world) if other != rank)] if self._aligned else [rank]
        )
        found = []
        for one in ranks:
            share = rank_share(rows, self._lengths(split), one, world)
            lengths = self._pairs.pair_lengths(split, share)
            if not self._uses_rejected:
                lengths = [replace(pair, rejected=0) for pair in lengths]
            found.append(
                [[share[index] for index in indices] for indices in self.layout.batches(lengths)]
            )
        return found

    def _read(self, cut: Cut) -> MicroBatch:
        self._source.fetch(cut.split, cut.rows)
        pairs, features = (
            self._tokens(cut.split, cut.rows),
            self._source.read(cut.split, cut.rows),
        )
        if not cut.has_rejected:
            features = _of_chosen(features, pairs)
            pairs = [_chosen_alone(pair) for pair in pairs]
        inputs = self.layout.inputs(pairs)
        if self._placement.device.type == "cuda":
            inputs, features = inputs.pinned(), features.pinned()
        return MicroBatch(cut, inputs, features)

    def _tokens(self, split: str, rows: Sequence[int]) -> list[TokenizedPair]:
        pairs = self._pairs.pairs(split, rows)
        return pairs if self._uses_rejected else [_chosen_alone(pair) for pair in pairs]

    def _lengths(self, split: str) -> npt.NDArray[np.int32]:
        return self._pairs.lengths(split, self.layout.shares_prompts)


def _chosen_alone(pair: TokenizedPair) -> TokenizedPair:
    return replace(pair, rejected=None, rejected_context=())


def _of_chosen(features: Features, pairs: Sequence[TokenizedPair]) -> Features:
    """The features of some pairs' chosen tokens and of the pairs."""
    counts = torch.tensor([count for pair in pairs for count in pair.num_scored()])
    is_chosen = torch.tensor([True, False] * len(pairs)).repeat_interleave(counts)
    values = {name: getattr(features, name) for name in FEATURES}
    return replace(
        features,
        **{
            name: value[is_chosen]
            for name, value in values.items()
            if value is not None and FEATURES[name].per == "token"
        },
    )
