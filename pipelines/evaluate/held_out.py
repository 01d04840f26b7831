"""Held-out pairs: who needs them, and whether there are any.

The recipe tells who needs them; prepare, at the latest, whether there are any. Both are known
before training.
"""

from collections.abc import Mapping

from pipelines.errors import UserError
from pipelines.pairs import none_kept
from pipelines.recipe import Recipe

_ON_PAIRS = ("preference", "sentiment", "masks", "dialogue", "summarization")


def benchmarks_on_pairs(recipe: Recipe) -> list[str]:
    """The recipe's benchmarks that look at held-out pairs or their prompts."""
    return [name for name in recipe.evaluate.benchmarks if name in _ON_PAIRS]


def check_held_out(recipe: Recipe) -> None:
    """For a command that evaluates.

    UserError if a benchmark needs held-out pairs and the recipe keeps none back.
    """
    names, split = benchmarks_on_pairs(recipe), recipe.evaluate.split
    if names and not (getattr(recipe.data, split) or getattr(recipe.data, f"{split}_fraction")):
        raise UserError(
            f"evaluate.benchmarks = [{', '.join(names)}] needs held-out pairs, and "
            f"data.{split}_fraction = 0 keeps none back: set it (0.05, say) or data.{split}, or "
            "choose other benchmarks (evaluate.benchmarks=[] for none)"
        )


def require_held_out(recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False) -> None:
    """For what comes after prepare.

    UserError if a benchmark needs held-out pairs and prepare kept none.

    Args:
        kept: split -> pairs. is_expected: the numbers are an estimate.
    """
    names, split = benchmarks_on_pairs(recipe), recipe.evaluate.split
    if names and not kept[split]:
        raise UserError(
            f"evaluate.split = {split!r}: {none_kept(is_expected)}, which "
            f"{', '.join(names)} need; set "
            f"data.{split}_fraction larger, or data.{split}; another run_dir is needed where "
            "prepare is done"
        )
