"""Stored or online: what either costs.

Stored means scoring once and reading back; online, running the frozen reference beside training.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster import Resources
from pipelines.models import device_kind, dtype_name, model_tensors, sustained_tflops
from pipelines.recipe import Recipe
from pipelines.reference.formats import formats_of
from pipelines.reference.origins import reference_model_dir
from sparsepo.features import FEATURES

_WRITE_BYTES_PER_SECOND, _READ_BYTES_PER_SECOND = 0.5e9, 1.0e9
_FORWARD_PER_SCORED_TOKEN = (
    3.0  # tokens that run through the model for one that is scored: prompts, and padding
)
# A forward, the layers once more for the backward, and the backward to the embeddings.
_SALIENCY_FORWARDS = 3.0


@dataclass(frozen=True)
class ReferenceCost:
    """Device seconds per scored token over a whole recipe (or sweep)."""

    stored: float
    online: float


def forwards_of(features: Iterable[str]) -> float:
    """What the reference computes of these features, in forwards: one gives all but saliency."""
    wanted = set(features)
    return float(bool(wanted - {"saliency"})) + _SALIENCY_FORWARDS * ("saliency" in wanted)


def scoring_device() -> str:
    """The kind of device that the actors will score on: "cuda" or "cpu"."""
    ray = sys.modules.get("ray")  # where nobody has imported it, it does not run
    if ray is not None and ray.is_initialized():
        return "cuda" if Resources.now().gpus() else "cpu"
    return device_kind()


def reference_cost(recipe: Recipe, device: str, trials: int = 1) -> ReferenceCost:
    """Stored: one forward, one write, a read per epoch and trial.

    Online: a forward per epoch and trial.

    Args:
        device: "cuda" or "cpu".
    """
    directory = reference_model_dir(recipe)
    forward = (
        _FORWARD_PER_SCORED_TOKEN
        * 2
        * count_parameters(Path(directory))
        / (sustained_tflops(device) * 1e12)
    )
    features = [n for n in recipe.required_features() if FEATURES[n].comes_with_a_forward]
    formats = formats_of(recipe, features, dtype_name(recipe.reference.dtype, device))
    size, uses = sum(form.token_bytes() for form in formats.values()), recipe.train.epochs * trials
    return ReferenceCost(
        forward + size / _WRITE_BYTES_PER_SECOND + uses * size / _READ_BYTES_PER_SECOND,
        uses * forward,
    )


def settle_mode(recipe: Recipe, device: str, trials: int = 1) -> Recipe:
    """The recipe with reference.mode=auto decided.

    Without states of all layers the store is small and always taken.
    """
    if recipe.reference.mode != "auto" or "reference_layers" not in recipe.required_features():
        return recipe
    cost = reference_cost(recipe, device, trials)
    mode = "stored" if cost.stored < cost.online else "online"
    return recipe.model_copy(
        update={"reference": recipe.reference.model_copy(update={"mode": mode})}
    )


def count_parameters(directory: Path) -> int:
    """Parameters of a model directory, read from the safetensors headers.

    For an adapter, they are those of the base.
    """
    return sum(math.prod(shape) for shape in model_tensors(directory).values())
