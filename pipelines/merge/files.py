"""Merge files: YAML and `key=value` overrides -> a checked Merge, or one clear line."""

from collections.abc import Sequence

from pipelines.errors import UserError
from pipelines.merge.schema import Merge
from pipelines.recipe import read_mapping, validate


def is_merge(name: str) -> bool:
    """Whether a file (or packaged name) is a merge rather than a recipe or a sweep."""
    try:
        return "models" in read_mapping(name, "merge")
    except UserError:
        return False


def load_merge(name: str, overrides: Sequence[str] = ()) -> Merge:
    """Read and check a merge file, or a packaged merge by name.

    Raises: UserError naming the key, the value and what is allowed.
    """
    found = validate(Merge, read_mapping(name, "merge"), overrides)
    if len(found.models) < 2:
        raise UserError(
            f"models = {list(found.models)}: a merge takes at least two (`sparsepo evaluate` "
            "samples from one)"
        )
    if len(set(found.models)) < len(found.models):
        raise UserError(f"models = {list(found.models)}: one of them occurs twice")
    if len(set(found.forms)) < len(found.forms):
        raise UserError(f"forms = {list(found.forms)}: one of them occurs twice")
    if len(found.rewards) < 2:
        raise UserError(
            f"rewards = [{', '.join(found.reward_names())}]: a frontier takes at least two"
        )
    if found.generation.engine != "transformers":
        raise UserError(
            f"generation.engine = {found.generation.engine!r}: merged samples are drawn with "
            "transformers"
        )
    if found.weights_column is not None and found.prompts is None:
        raise UserError(
            f"weights_column = {found.weights_column!r}: it is a column of a file of prompts: set "
            "prompts"
        )
    if not (found.weights or found.steps or found.weights_column or found.map):
        raise UserError("steps = 0: no weights are left: set weights, weights_column or map")
    return found
