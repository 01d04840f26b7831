"""The layout that models take, asked for by a recipe."""

from collections.abc import Sequence
from typing import Any, Literal

from pipelines.errors import UserError
from sparsepo.batching.batch_layout import BatchLayout


def batch_layout(
    setting: str,
    wanted: Literal["auto", "packed", "padded"],
    models: Sequence[Any],
    budget: int,
    is_balanced: bool = False,
    longest: int | None = None,
) -> BatchLayout:
    """The layout that all the models take; prepares them for it.

    Args:
        setting: the recipe's key, for the error. budget: tokens per batch, padding included.
        longest: tokens of the longest sequence; None if any may come.
    Raises: UserError naming what stands against `packed` where it is asked for.
    """
    try:
        return BatchLayout.choose(wanted, models, budget, is_balanced, longest)
    except ValueError as error:
        raise UserError(f"{setting}={wanted}: {error}") from error
