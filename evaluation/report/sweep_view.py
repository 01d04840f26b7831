"""What the page of a sweep is told: its trials, what was searched on what, and what was chosen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from evaluation.comparison import SeedComparison
from evaluation.equal_distance import Level

BETA = "objective.beta"
# The share of response tokens with weight zero: of held-out responses, or of the last training
# step.
_SPARSITY = ("evaluation/masks/reward_mask/zero_fraction", "train/masks/reward_zero_fraction")


# What a title calls the usual metrics; others by their own names.
_PLAIN = {
    "evaluation/sentiment/reward/after": "reward of samples",
    "evaluation/sentiment/kl/policy_reference": "distance from the reference",
    "evaluation/sentiment/kl/policy_reference_off_policy": "distance along other samples",
    "validation/rewards/accuracies": "held-out implicit reward accuracy",
    "validation/rewards/margins": "held-out implicit reward margin",
    "validation/kl/reference_policy": "held-out distance from the reference",
    "validation/loss": "held-out loss",
    **dict.fromkeys(_SPARSITY, "share of tokens with weight zero"),
}


@dataclass(frozen=True)
class TrialView:
    """A trial.

    Attributes:
        point: searched key -> value. folder: of the trial, relative to the sweep. runs: folders of
            its runs, one per seed, each with its recipe. less_best: the first objective less the
            chosen trial's, seed by seed; None without several seeds in both.
    """

    number: int
    status: str
    message: str
    point: dict[str, Any]
    metrics: dict[str, float]
    seconds: float
    is_on_front: bool
    is_best: bool
    folder: str = ""
    runs: Sequence[str] = ()
    less_best: SeedComparison | None = None


@dataclass(frozen=True)
class SweepView:
    """What the page shows of a sweep.

    Attributes:
        keys: that were searched. series_key: the key whose values are drawn as series of their own,
            if any: the method.
        objectives: (metric, "max" or "min"). rule: why the best trial was taken. num_seeds: runs
            per trial. model, sources: what all trials start from and learn from, where they share
            it. num_pairs: that they learn from. levels: the methods at equal distances.
        note: of which part of a sweep these are, and what is missing.
        has_files: whether best.yaml, the tables and the trials lie beside the page's folder.
    """

    title: str
    keys: list[str]
    series_key: str | None
    objectives: list[tuple[str, str]]
    trials: list[TrialView]
    rule: str
    num_seeds: int
    model: str = ""
    sources: Sequence[str] = ()
    num_pairs: int = 0
    levels: Sequence[Level] = field(default_factory=tuple)
    note: str = ""
    has_files: bool = False

    def gain_and_distance(self) -> tuple[str, str] | None:
        """The objective to maximise, and the KL to minimise; None if there are no such two."""
        gains = [metric for metric, mode in self.objectives if mode == "max"]
        distances = [
            metric for metric, mode in self.objectives if mode == "min" and "kl/" in metric
        ]
        return (gains[0], distances[0]) if gains and distances else None

    def with_levels(self, levels: Sequence[Level]) -> "SweepView":
        return replace(self, levels=levels)

    @property
    def has_intervals(self) -> bool:
        """Whether the gains at equal distances have them."""
        return any(r.low is not None for level in self.levels for r in level.methods.values())

    def measured(self) -> list[TrialView]:
        """Trials that finished with all objectives."""
        return [
            t
            for t in self.trials
            if t.status == "finished" and all(metric in t.metrics for metric, _ in self.objectives)
        ]

    def numeric_keys(self) -> list[str]:
        """Searched keys whose values are all numbers, beta first."""
        values = {key: [t.point[key] for t in self.trials if key in t.point] for key in self.keys}
        found = [
            k
            for k, v in values.items()
            if v and all(isinstance(x, int | float) and not isinstance(x, bool) for x in v)
        ]
        return sorted(found, key=lambda key: key != BETA)

    def method(self, trial: TrialView) -> str:
        """The series that a trial belongs to."""
        if self.series_key is None:
            return ""
        return self.shown(trial, self.series_key)

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        """Searched key -> what each of its texts is called."""
        return {
            key: distinct_names(
                value for trial in self.trials if isinstance(value := trial.point.get(key), str)
            )
            for key in self.keys
        }

    def shown(self, trial: TrialView, key: str) -> str:
        """A searched key's value, as texts have it: two that differ never look the same."""
        value = trial.point.get(key)
        return self._names[key][value] if isinstance(value, str) else shown_value(value)

    def methods(self) -> list[str]:
        """Of all trials, so that one keeps its colour whatever became of another."""
        return list(dict.fromkeys(self.method(trial) for trial in self.trials))

    def series(self) -> list[tuple[str, list[TrialView]]]:
        """(label, measured trials) by the value of series_key."""
        found: dict[str, list[TrialView]] = {} if self.series_key else {"": []}
        for trial in self.measured():
            found.setdefault(self.method(trial), []).append(trial)
        return list(found.items())

    def sparsity(self) -> str | None:
        return next(
            (key for key in _SPARSITY if any(key in t.metrics for t in self.measured())), None
        )


def leaf_of_path(text: str, depth: int = 1) -> str:
    """A recipe's name without its folder and its ending, or with so many of its last parts."""
    return "/".join(text.split("/")[-depth:]).removesuffix(".yaml")


def distinct_names(texts: Iterable[str]) -> dict[str, str]:
    """Path -> its name, with as many of its folders as tell all of them apart."""
    paths = list(dict.fromkeys(texts))
    deepest = max((path.count("/") + 1 for path in paths), default=1)
    for depth in range(1, deepest + 1):
        names = {path: leaf_of_path(path, depth) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    return {path: path for path in paths}


def leaf(name: str) -> str:
    """The part of a metric's or key's name that tells it from its neighbours."""
    return name.split("/", 1)[-1] if "/" in name else name


def plain_name(metric: str) -> str:
    """What a title calls a metric."""
    return _PLAIN.get(metric, leaf(metric))


def axis_name(metric: str) -> str:
    """What an axis calls it: short, with its unit."""
    return "KL, nats per response" if "/kl/" in metric else plain_name(metric)


def spread(trial: TrialView, metric: str) -> tuple[float, float]:
    """Below and above a value: its interval, or the standard deviation where seeds have none.

    The interval is over seeds where there are several, else the evaluation's own.
    """
    mean, m = trial.metrics[metric], trial.metrics
    if f"{metric}/low" not in m:
        return m.get(f"{metric}/std", 0.0), m.get(f"{metric}/std", 0.0)
    return max(0.0, mean - m[f"{metric}/low"]), max(0.0, m[f"{metric}/high"] - mean)


def has_spread(trial: TrialView, metric: str) -> bool:
    return any(f"{metric}/{end}" in trial.metrics for end in ("std", "low"))


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale shows the values better."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 10


def slug(name: str) -> str:
    return name.replace("/", "-").replace(".", "-").replace("_", "-")


def shown_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return leaf_of_path(str(value))
    return f"{value:.4g}"
