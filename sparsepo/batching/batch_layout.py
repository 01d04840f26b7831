"""How pairs become model inputs: which layout a model takes, and how rows are cut into batches.

Batches stay within a token budget. Batches and padding are a pure function of the pairs, the layout
and the budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsepo.backbone import enable_packing, transformer_of, uses_flex_attention
from sparsepo.batching.cutting import balanced_batches, consecutive_batches, token_budget_batches
from sparsepo.batching.layouts import (
    PairWidths,
    TokenizedPair,
    packed_layout,
    padded_layout,
)
from sparsepo.records import ModelInputs

_ROW_MULTIPLE = 128  # FlexAttention's block size
_WIDTHS = 16  # of full rows, or of balanced ones by default


@dataclass(frozen=True)
class BatchLayout:
    """The layout of the rows and the token budget of a batch.

    padded: every response its own sequence; shared: one row per pair, the prompt once; packed: one
    row of many pairs.

    is_balanced: packed rows of about equal width, rounded up to a share of the budget; otherwise
    full rows and a rest, rounded up to the budget or a half, quarter, ... of it.
    num_widths: how many widths balanced rows may have; None rounds them up to FlexAttention's
    block alone, for kernels that take any width.
    """

    kind: Literal["padded", "shared", "packed"]
    budget: int
    is_balanced: bool = False
    num_widths: int | None = _WIDTHS

    @classmethod
    def choose(
        cls,
        wanted: Literal["auto", "packed", "padded"],
        models: Sequence[Any],
        budget: int,
        is_balanced: bool = False,
        longest: int | None = None,
    ) -> "BatchLayout":
        """The layout that all the models take; prepares them for it.

        Args:
            budget: tokens per batch, padding included. longest: tokens of the longest sequence;
                None if any may come.
        Raises: ValueError naming what stands against `packed` where it is asked for.
        """
        if wanted == "padded":
            return cls("padded", budget, is_balanced)
        for model in models:
            obstacle = enable_packing(transformer_of(model), longest)
            if obstacle is not None:
                if wanted == "packed":
                    raise ValueError(
                        f"{type(transformer_of(model)).__name__} cannot be packed: {obstacle}; use "
                        "auto or padded"
                    )
                return cls("padded", budget, is_balanced)
        uses_flex = {uses_flex_attention(transformer_of(model)) for model in models}
        return cls("packed" if uses_flex == {True} else "shared", budget, is_balanced)

    @property
    def shares_prompts(self) -> bool:
        return self.kind != "padded"

    def batches(self, pairs: Sequence[PairWidths]) -> list[list[int]]:
        """Positions of the pairs of every batch, widest first.

        A pair beyond the budget is a batch of its own. Lengths alone cut as token ids do.
        """
        indices = range(len(pairs))
        if self.kind == "packed":
            cut = balanced_batches if self.is_balanced else consecutive_batches
            return cut(indices, [pair.shared_width() for pair in pairs], self.budget)
        if self.kind == "shared":
            return token_budget_batches(
                indices, [pair.shared_width() for pair in pairs], 1, self.budget
            )
        sequences = max((pair.num_responses() for pair in pairs), default=2)
        return token_budget_batches(
            indices, [pair.width() for pair in pairs], sequences, self.budget
        )

    def inputs(self, pairs: Sequence[TokenizedPair]) -> ModelInputs:
        if self.kind == "padded":
            return padded_layout(pairs)
        if self.kind == "shared":
            return packed_layout(pairs)
        tokens = sum(pair.shared_width() for pair in pairs)
        return packed_layout(pairs, row_tokens=tokens, pad_multiple=self._row_width(tokens))

    def _row_width(self, tokens: int) -> int:
        """Few widths where every width is compiled once."""
        if self.is_balanced:
            share = 1 if self.num_widths is None else self.budget / self.num_widths
            step = math.ceil(share / _ROW_MULTIPLE) * _ROW_MULTIPLE
            return -(-tokens // step) * step
        width = max(_ROW_MULTIPLE, -(-self.budget // _ROW_MULTIPLE) * _ROW_MULTIPLE)
        while (
            width > max(_ROW_MULTIPLE, self.budget // _WIDTHS)
            and tokens <= width // 2
            and width // 2 % _ROW_MULTIPLE == 0
        ):
            width //= 2
        return width
