"""Optuna's searchers for sweeps."""

from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from pipelines.sweep.space import NSGA2Search, Point, Sweep, TPESearch
from pipelines.sweep.trial_record import is_number


class SuggestPoint:
    """Optuna's define-by-run form of a sweep's space.

    It suggests only the keys whose condition holds.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def __call__(self, trial: Any) -> dict[str, Any]:
        point: Point = {}
        for key in self._sweep.active_keys(point):
            values = self._sweep.space[key]
            if values.choice is not None:
                # By place: Optuna's categories are plain values, a recipe's may be lists.
                point[key] = values.choice[
                    trial.suggest_categorical(key, list(range(len(values.choice))))
                ]
            elif values.int is not None:
                point[key] = trial.suggest_int(key, *values.int)
            else:
                low, high = values.bounds() or (0.0, 0.0)
                point[key] = trial.suggest_float(key, low, high, log=values.loguniform is not None)
        return {"number": trial.number, "point": point}


class Searcher(OptunaSearch):
    """Ray Tune's Optuna adapter, for trials that may end without the objectives.

    Those trials count as failed.
    """

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: stopping early is the scheduler's business.

        A trial that trains knows only some of the objectives yet.
        """

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        names = self.metric if isinstance(self.metric, list) else [self.metric]
        if result is None or not all(is_number(result.get(name)) for name in names):
            result, error = None, True
        super().on_trial_complete(trial_id, result, error)


def searcher_of(sweep: Sweep) -> Searcher:
    sampler: optuna.samplers.BaseSampler
    if isinstance(sweep.searcher, NSGA2Search):
        sampler = optuna.samplers.NSGAIISampler(
            population_size=sweep.searcher.population, seed=sweep.seed
        )
    else:
        assert isinstance(sweep.searcher, TPESearch)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=sweep.searcher.startup_trials, seed=sweep.seed
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metrics, modes = (
        [goal.metric for goal in sweep.objectives],
        [goal.mode for goal in sweep.objectives],
    )
    several = len(metrics) > 1
    return Searcher(
        SuggestPoint(sweep),
        metric=metrics if several else metrics[0],
        mode=modes if several else modes[0],
        sampler=sampler,
    )
