"""Sweeps: a base recipe, a search space over its keys, what to optimise, and how.

A point of the space is a plain mapping of the searched keys to values; keys whose condition does
not hold are absent.
"""

import itertools
import random
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.recipe import (
    Directory,
    Recipe,
    RunDirectory,
    read_mapping,
    set_keys,
    stage_settings,
    validate_recipe,
)
from pipelines.storage import digest
from pipelines.sweep.shards import Shard

RECIPE = "recipe"  # the one searched key that is none of a recipe's: which recipe to start from
_MAX_CHECKED = 512
_CONDITION = re.compile(r"(\S+)\s*(<=|>=|<|>)\s*(\S+)")
Point = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class Range(_Part):
    """Values of one searched key: exactly one of grid, choice, uniform, loguniform, int.

    grid: every value is tried; choice: one of the values at random; uniform, loguniform: [low,
    high] real numbers; int: [low, high] whole numbers, both included. when: searched key -> value
    or values with which this key exists.
    """

    grid: tuple[Any, ...] | None = Field(None, min_length=1)
    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int: Annotated[tuple[int, int] | None, Field(alias="int")] = None
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one(self) -> "Range":
        kinds = [name for name in type(self).model_fields if name != "when"]
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(kinds)}; got {', '.join(given) or 'none'}"
            )
        bounds = self.bounds()
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"range [{bounds[0]}, {bounds[1]}] is empty: low must be below high")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform low = {self.loguniform[0]}: must be > 0")
        return self

    def values(self) -> tuple[Any, ...] | None:
        """The listed values, or None for a range of numbers."""
        return self.grid or self.choice

    def bounds(self) -> tuple[float, float] | None:
        """Low and high of a range of numbers."""
        return self.uniform or self.loguniform or self.int

    def conditions(self) -> dict[str, tuple[Any, ...]]:
        return {
            key: tuple(value) if isinstance(value, list | tuple) else (value,)
            for key, value in self.when.items()
        }

    def draw(self, rng: random.Random) -> Any:
        """A value of a choice or of a range of numbers."""
        from ray import tune

        if self.choice is not None:
            return rng.choice(self.choice)
        if self.int is not None:
            return rng.randint(*self.int)
        assert self.uniform or self.loguniform
        domain = tune.uniform(*self.uniform) if self.uniform else tune.loguniform(*self.loguniform)  # type: ignore[misc]
        return float(domain.sample(random_state=rng.getrandbits(32)))


class Goal(_Part):
    """A metric to optimise: train/..., validation/... or evaluation/<benchmark>/...

    train/... is of the last step, validation/... of the last validation.
    """

    metric: str = Field(pattern="^(train|validation|evaluation)/.+")
    mode: Literal["max", "min"] = "max"


class RandomSearch(_Part):
    """Every grid value, and num_samples draws of everything else."""

    name: Literal["random"] = "random"


class TPESearch(_Part):
    """Optuna's tree-structured Parzen estimator, for one objective or several.

    startup_trials are drawn at random first.
    """

    name: Literal["tpe"]
    startup_trials: int = Field(10, ge=1)


class NSGA2Search(_Part):
    """Optuna's NSGA-II, an evolutionary search for the Pareto front of several objectives."""

    name: Literal["nsga2"]
    population: int = Field(12, ge=2)


class NoScheduler(_Part):
    name: Literal["none"] = "none"


class ASHA(_Part):
    """Stop what is behind at a rung: successive halving by a validation metric.

    grace_steps: optimizer steps that every trial gets.
    """

    name: Literal["asha"]
    metric: str | None = Field(None, pattern="^validation/")
    mode: Literal["max", "min"] | None = None
    grace_steps: int = Field(ge=1)
    reduction_factor: float = Field(3.0, gt=1)

    @model_validator(mode="after")
    def _both(self) -> "ASHA":
        if (self.metric is None) != (self.mode is None):
            raise ValueError("give metric and mode together, or neither for the first objective's")
        return self


class Pick(_Part):
    """Which trial becomes best.yaml: the best by `metric`.

    Without one (None) it is the only objective's best or the front's knee.

    where: conditions that it must fulfil, such as "evaluation/sentiment/kl/policy_reference <= 5".
    """

    metric: str | None = Field(None, pattern="^(train|validation|evaluation)/.+")
    mode: Literal["max", "min"] = "max"
    where: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _readable(self) -> "Pick":
        self.limits()
        return self

    def metrics(self) -> list[str]:
        """Those that the rule looks at."""
        own = [self.metric] if self.metric else []
        return own + [metric for metric, _, _ in self.limits()]

    def limits(self) -> list[tuple[str, str, float]]:
        """(metric, comparison, number) of every condition."""
        found = []
        for text in self.where:
            match = _CONDITION.fullmatch(text.strip())
            try:
                found.append((match[1], match[2], float(match[3])))  # type: ignore[index]
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"where: {text!r} is no condition: write it as METRIC <= NUMBER (or <, >=, >)"
                ) from error
        return found


class Sweep(_Part):
    """A validated sweep file.

    `recipe` is a file or packaged name; `overrides` apply to every trial.

    seeds: every point is trained once per value of train.seed (none given: once, with the
    recipe's). directory: where relative paths of recipes, overrides and space start, by default
    where the command runs. num_samples: draws per grid point, or trials in all for an Optuna
    searcher.
    evaluate_all: evaluate every trial, even if no objective asks for it. hours: after that long
    what still runs is stopped. max_failures: times that a trial whose process died is tried again.
    keep: what stays of a trial that has ended, model = everything; metrics = no checkpoints, model
    and masks. shard: the part of the trials that is run, K/N, in run_dir/shards/K-of-N.
    """

    run_dir: RunDirectory
    recipe: str
    directory: Directory | None = None
    overrides: tuple[str, ...] = ()
    space: dict[str, Range] = Field(min_length=1)
    objectives: tuple[Goal, ...] = Field((Goal(metric="validation/rewards/margins"),), min_length=1)
    searcher: Annotated[RandomSearch | TPESearch | NSGA2Search, Field(discriminator="name")] = (
        RandomSearch()
    )
    scheduler: Annotated[NoScheduler | ASHA, Field(discriminator="name")] = NoScheduler()
    num_samples: int = Field(1, ge=1)
    seeds: tuple[int, ...] = ()
    seed: int = 0
    evaluate_all: bool = False
    pick: Pick = Pick()
    hours: float | None = Field(None, gt=0)
    max_concurrent_trials: int | None = Field(None, ge=1)
    max_failures: int = Field(2, ge=0)
    keep: Literal["model", "metrics"] = "model"
    shard: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Sweep":
        for key, values in self.space.items():
            if key == RECIPE and values.values() is None:
                raise ValueError("space: recipe takes grid or choice")
            for parent, allowed in values.conditions().items():
                listed = self.space[parent].values() if parent in self.space else None
                if listed is None:
                    raise ValueError(
                        f"space: {key} when {parent}: only a searched key with grid or choice can "
                        "be a condition"
                    )
                missing = [value for value in allowed if value not in listed]
                if missing:
                    raise ValueError(
                        f"space: {key} when {parent} is {missing[0]!r}: searched are "
                        f"{', '.join(map(repr, listed))}"
                    )
        assert self._order
        grids = [key for key, values in self.space.items() if values.grid]
        if self.searcher.name != "random" and grids:
            raise ValueError(
                f"space: {grids[0]} is a grid, which searcher {self.searcher.name} does not walk "
                "through: use choice"
            )
        if (
            self.searcher.name == "random"
            and len(grids) == len(self.space)
            and self.num_samples > 1
        ):
            raise ValueError(
                f"num_samples = {self.num_samples}: every key is a grid, so all draws are the "
                "same; repeat points with seeds"
            )
        if self.searcher.name == "nsga2" and len(self.objectives) < 2:
            raise ValueError("searcher nsga2 is for two objectives or more: use tpe for one")
        if len({goal.metric for goal in self.objectives}) < len(self.objectives):
            raise ValueError("objectives: a metric is named twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is named twice")
        if self.seeds and "train.seed" in self.space:
            raise ValueError(
                "train.seed is searched and repeated: leave it out of space, or leave seeds out"
            )
        if (
            self.scheduler.name == "asha"
            and self.scheduler.metric is None
            and not self.objectives[0].metric.startswith("validation/")
        ):
            raise ValueError(
                f"scheduler asha: {self.objectives[0].metric} is not known while a trial trains: "
                "give scheduler.metric and mode"
            )
        self._check_shard()
        return self

    def _check_shard(self) -> None:
        if self.part is None:
            return
        if self.points is None:
            raise ValueError(
                f"shard = {self.shard}: searcher {self.searcher.name} learns from the trials "
                "before, and a shard does not know those of the others: only random can be split "
                "(every grid point, and num_samples draws of everything else)"
            )
        if self.scheduler.name != "none":
            raise ValueError(
                f"shard = {self.shard}: scheduler {self.scheduler.name} compares all trials, and "
                "a shard knows its own alone: leave scheduler out"
            )
        self.part.check(len(self.points))

    @cached_property
    def part(self) -> Shard | None:
        """The shard; None for the whole sweep."""
        return None if self.shard is None else Shard.parse(self.shard)

    @cached_property
    def _order(self) -> list[str]:
        """The searched keys, conditions before what depends on them."""
        order: list[str] = []
        while len(order) < len(self.space):
            ready = [
                key
                for key, values in self.space.items()
                if key not in order and all(parent in order for parent in values.when)
            ]
            if not ready:
                raise ValueError(
                    "space: the conditions of "
                    f"{', '.join(k for k in self.space if k not in order)} go in a circle"
                )
            order += ready
        return order

    def active_keys(self, point: Point) -> Iterator[str]:
        """The keys that exist, each once those before it are in `point`."""
        for key in self._order:
            if all(
                parent in point and point[parent] in allowed
                for parent, allowed in self.space[key].conditions().items()
            ):
                yield key

    @cached_property
    def points(self) -> list[Point] | None:
        """Every point of the whole sweep, in order; None if a searcher finds them on the way."""
        if self.searcher.name != "random":
            return None
        rng = random.Random(self.seed)
        found: dict[str, Point] = {}
        for _ in range(self.num_samples):
            for point in self._expand({}, rng):
                found.setdefault(digest(point), point)
        return list(found.values())

    @cached_property
    def own_points(self) -> list[tuple[int, Point]] | None:
        """Number and point of every trial that this sweep, or shard of one, runs."""
        if self.points is None:
            return None
        part = self.part
        return [(i, p) for i, p in enumerate(self.points) if part is None or part.holds(i)]

    def _expand(self, point: Point, rng: random.Random) -> Iterator[Point]:
        left = [key for key in self.active_keys(point) if key not in point]
        if not left:
            yield point
            return
        # Grids and conditions first, so that every grid point draws its own values of everything
        # else.
        conditions = {parent for values in self.space.values() for parent in values.when}
        key = min(left, key=lambda key: (not self.space[key].grid, key not in conditions))
        values = self.space[key]
        for value in values.grid or (values.draw(rng),):
            yield from self._expand({**point, key: value}, rng)

    def sample_of_points(self) -> list[Point]:
        """All points that are run, or for a searcher all combinations of listed values and ends of
        ranges.

        Of very many combinations it returns a random part.
        """
        if self.own_points is not None:
            return [point for _, point in self.own_points]
        corners = {key: r.values() or r.bounds() or () for key, r in self.space.items()}
        combinations: Any = itertools.islice(itertools.product(*corners.values()), _MAX_CHECKED + 1)
        listed = list(combinations)
        if len(listed) > _MAX_CHECKED:
            rng = random.Random(self.seed)
            listed = [
                tuple(rng.choice(values) for values in corners.values())
                for _ in range(_MAX_CHECKED)
            ]
        found: dict[str, Point] = {}
        for values in listed:
            every = dict(zip(corners, values, strict=True))
            point: Point = {}
            for key in self.active_keys(point):
                point[key] = every[key]
            found.setdefault(digest(point), point)
        return list(found.values())

    def num_trials(self) -> int:
        return self.num_samples if self.own_points is None else len(self.own_points)

    def num_trials_of_all(self) -> int:
        """Of all shards together."""
        return self.num_samples if self.points is None else len(self.points)

    def name(self) -> str:
        """The last part of the sweep's directory."""
        path = self.run_dir.rstrip("/")
        if self.part is not None:
            path = path.removesuffix(f"/{self.part.folder}")
        return path.rsplit("/", 1)[-1]

    def evaluates(self) -> bool:
        wanted = (
            [goal.metric for goal in self.objectives]
            + [metric for metric, _, _ in self.pick.limits()]
            + [self.pick.metric or ""]
        )
        return self.evaluate_all or any(metric.startswith("evaluation/") for metric in wanted)

    def has_one_method(self) -> bool:
        """Whether all points report the same metrics.

        Objectives and masks have some of their own.
        """
        return not any(
            key in (RECIPE, "mask.kind") or (key.startswith("objective.") and key.endswith(".name"))
            for key in self.space
        )

    def guide(self) -> Goal:
        """What the scheduler compares trials by."""
        asha = self.scheduler
        if isinstance(asha, ASHA) and asha.metric is not None and asha.mode is not None:
            return Goal(metric=asha.metric, mode=asha.mode)
        return self.objectives[0]

    def first_recipe(self) -> Recipe:
        """Of the first point: what no point changes stands there too."""
        return self.recipe_at(self.sample_of_points()[0], self.run_dir)

    def recipe_at(self, point: Point, run_dir: str) -> Recipe:
        """The recipe of one point of the space. UserError naming what in it contradicts."""
        base = self._mapping(str(point.get(RECIPE, self.recipe)))
        own = [_as_override(key, value) for key, value in point.items() if key != RECIPE]
        return validate_recipe(
            set_keys(base, {"run_dir": run_dir, "train.tracker_group": self.name()}),
            (*self.overrides, *own),
            self.directory,
        )

    def _mapping(self, recipe: str) -> dict[str, Any]:
        if recipe not in self._mappings:
            self._mappings[recipe] = read_mapping(recipe, "recipe")
        return self._mappings[recipe]

    @cached_property
    def _mappings(self) -> dict[str, dict[str, Any]]:
        return {}

    def trial_dir(self, number: int, point: Point) -> str:
        return f"{self.run_dir}/trials/{number:04d}-{digest(point)[:8]}"

    def settings(self) -> dict[str, Any]:
        """What the trials' results depend on: another value of these is another sweep."""
        left_out = {
            "run_dir",
            "recipe",
            "directory",
            "overrides",
            "pick",
            "hours",
            "max_concurrent_trials",
            "max_failures",
            "keep",
            *(() if self.shard else ("shard",)),
        }
        if self.searcher.name == "random":
            left_out.add("objectives")
        found = self.model_dump(mode="json", by_alias=True, exclude=left_out)
        found["evaluate_all"] = self.evaluates()
        seen = set()
        for point in self.points or self.sample_of_points():
            name = point.get(RECIPE, self.recipe)
            if name not in seen:
                seen.add(name)
                recipe = self.recipe_at(point, self.run_dir)
                found |= {
                    f"{name}: {k}": v
                    for k, v in stage_settings(recipe).items()
                    if k not in self.space
                }
        return found

    def title(self, point: Point) -> str:
        return ", ".join(f"{key}={_short(value)}" for key, value in point.items())


def _as_override(key: str, value: Any) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return f"{key}={dumped.removesuffix('...' + chr(10)).strip()}"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
