"""The points of a merge: with which weights, and in which form, samples are drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import UserError
from pipelines.merge.schema import Merge, Weights
from pipelines.recipe import Say
from sparsepo.merging import Form, checked_weights

Origin = Literal["fixed", "prompt", "map"]


@dataclass(frozen=True)
class Point:
    """One setting of the weights.

    Attributes:
        form: None where one model has all the weight, so that both forms are that model.
        origin: fixed; of each prompt; or from the map of the hidden state, token by token.
        weights: that are fixed, one per model; else empty.
    """

    form: Form | None
    origin: Origin
    weights: Weights = ()

    @property
    def alone(self) -> int | None:
        """The model that has all the weight."""
        return alone_in(self.weights) if self.form is None else None

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.alone is not None:
            return f"model-{self.alone + 1}"
        shown = [f"{weight:.6g}" for weight in self.weights] or [self.origin]
        return "-".join([str(self.form), *shown])

    def label(self) -> str:
        """What stands beside it in a figure."""
        return " : ".join(f"{weight:.3g}" for weight in self.weights) or {
            "prompt": "per prompt",
            "map": "map",
        }.get(self.origin, "")


def points_of(merge: Merge, say: Say = lambda line: None) -> list[Point]:
    """All points of a merge, each once; those of a single model stand first.

    Raises: UserError for weights that a form does not take.
    """
    found: dict[Point, None] = {}
    told: set[Weights] = set()
    for form in merge.forms:
        for weights in merge.weights or _lattice(merge.steps, len(merge.models)):
            point, is_divided = fixed_point(weights, len(merge.models), form)
            found[point] = None
            if is_divided and weights not in told:
                told.add(weights)
                say(f"merge: weights {list(weights)} are divided by their sum: {point.label()}")
        if merge.weights_column is not None:
            found[Point(form, "prompt")] = None
        if merge.map is not None:
            found[Point(form, "map")] = None
    return sorted(found, key=lambda point: point.form is not None)


def fixed_point(weights: Weights, num_models: int, form: Form) -> tuple[Point, bool]:
    """The point of these weights, and whether they were divided by their sum."""
    try:
        checked, is_divided = checked_weights(weights, num_models, form)
    except ValueError as error:
        raise UserError(f"{error} (form {form})") from error
    return Point(form if alone_in(checked) is None else None, "fixed", checked), is_divided


def alone_in(weights: Weights) -> int | None:
    """The model that has all the weight; None where several have some."""
    heard = [place for place, weight in enumerate(weights) if weight != 0]
    return heard[0] if len(heard) == 1 else None


def _lattice(steps: int, num_models: int) -> Iterator[Weights]:
    """All weights that are multiples of 1/steps, the first model's largest first; none for 0."""

    def parts(left: int, places: int) -> Iterator[tuple[int, ...]]:
        if places == 1:
            yield (left,)
            return
        for own in range(left, -1, -1):
            for rest in parts(left - own, places - 1):
                yield (own, *rest)

    if steps:
        for found in parts(steps, num_models):
            yield tuple(part / steps for part in found)
