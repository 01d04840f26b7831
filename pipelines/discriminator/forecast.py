"""What training a discriminator will take."""

from typing import Any

from pipelines.models import SCORING_START, Duration
from pipelines.recipe import Recipe
from sparsepo.batching.sampling import Sampler

# Of one core: to read and align a pair's tokens, and two passes over a float of their states.
_PAIR_SECONDS, _FEATURE_SECONDS = 1.5e-3, 1e-9
_FILE_BYTES = 4096


def num_steps(recipe: Recipe, pairs: int) -> int:
    """Steps of a training on so many pairs."""
    section = recipe.discriminator
    return Sampler(pairs, section.batch_pairs, 0).num_steps(section.epochs, section.max_steps)


def forecast_head(recipe: Recipe, data: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    """Steps, seconds, disk and memory.

    Args:
        data: prepare's forecast. hidden_size: of the states.
    """
    pairs = max(1, data["pairs"]["train"])
    steps = num_steps(recipe, pairs)
    seen = steps * recipe.discriminator.batch_pairs + data["pairs"][recipe.discriminator.held_out]
    tokens = sum(data["scored_tokens"].values()) / max(1, sum(data["pairs"].values()))
    work = seen * (_PAIR_SECONDS + tokens * hidden_size * _FEATURE_SECONDS)
    batch = recipe.discriminator.batch_pairs * tokens * hidden_size * 4 * 4
    return {
        "steps": steps,
        "hidden_size": hidden_size,
        "memory_gib": 0.5 + batch / 2**30,
        "disk_bytes": 2 * 4 * hidden_size + _FILE_BYTES,
        **Duration(SCORING_START, work).as_keys(),
    }
