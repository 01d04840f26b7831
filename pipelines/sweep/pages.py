"""What the page of a sweep is told: trials, what they share, methods at equal distances."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.comparison import SeedComparison, numbers_by_seed
from evaluation.equal_distance import Level, Measured, compare_at, round_levels
from evaluation.report.sweep_view import SweepView, TrialView
from pipelines.errors import DamagedFile, UserError
from pipelines.recipe import CONFIG, MANIFEST, SAMPLES, RunPaths, Say, read_config, read_manifest
from pipelines.storage import RunStore, read_lines
from pipelines.sweep.space import RECIPE, Sweep
from pipelines.sweep.trial_record import Trial, is_number, place_of

# Keys that name a method; the first that was searched gives the page its colours.
_METHODS = (RECIPE, "objective.name", "mask.kind")
# The metrics that samples hold prompt by prompt -> under which name.
_BY_PROMPT = {
    "evaluation/sentiment/reward/after": "policy_reward",
    "evaluation/sentiment/kl/policy_reference": "kl_policy_reference",
    "evaluation/sentiment/kl/policy_reference_off_policy": "kl_policy_reference",
}
_AGAIN = "restore it: the page of the sweep lacks intervals at equal distances until then"


def sweep_view(
    sweep: Sweep,
    trials: Sequence[Trial],
    front: Sequence[Trial],
    best: Trial,
    why: str,
    note: str,
    say: Say,
) -> SweepView:
    """Args: best: with the place where its runs lie now. note: on the trials as a whole."""
    on_front = {trial.number for trial in front}
    series_key = next((key for key in _METHODS if key in sweep.space), None)
    shown = [
        TrialView(
            t.number,
            t.status,
            t.message,
            t.point,
            t.metrics,
            t.seconds,
            t.number in on_front,
            t.number == best.number,
            _relative(sweep, place_of(sweep, t)),
            [_relative(sweep, path) for path in _runs(sweep, t)],
            _less_best(sweep, t, best),
        )
        for t in trials
    ]
    view = SweepView(
        title=sweep.run_dir.rstrip("/").rsplit("/", 1)[-1],
        keys=list(sweep.space),
        series_key=series_key,
        objectives=[(goal.metric, goal.mode) for goal in sweep.objectives],
        trials=shown,
        rule=why,
        num_seeds=max(1, len(sweep.seeds)),
        has_files=True,
        note=note,
        **_shared(sweep, trials),
    )
    return view.with_levels(_levels(sweep, view, trials, say))


def _less_best(sweep: Sweep, trial: Trial, best: Trial) -> SeedComparison | None:
    """The first objective less the chosen trial's, seed by seed; None for that trial itself."""
    metric = sweep.objectives[0].metric
    by_seed = [
        {int(seed): run[metric] for seed, run in t.runs.items() if is_number(run.get(metric))}
        for t in (best, trial)
    ]
    return None if trial.number == best.number else numbers_by_seed(*by_seed)


def _relative(sweep: Sweep, path: str) -> str:
    """A place as the sweep's directory names it; "" if it lies in another store."""
    root = sweep.run_dir.rstrip("/")
    if path.startswith(f"{root}/"):
        return path.removeprefix(f"{root}/")
    return "" if "://" in path or "://" in root else os.path.relpath(path, root)


def _runs(sweep: Sweep, trial: Trial) -> list[str]:
    """Where a trial's runs lie; none of one that never had a recipe."""
    place = place_of(sweep, trial)
    paths = [f"{place}/seed-{seed}" for seed in sweep.seeds] if len(sweep.seeds) > 1 else [place]
    return [path for path in paths if RunStore(path).exists(CONFIG)]


def _shared(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """Model, sources and pairs of the trials, each where all have the same."""
    models, sources, pairs = set(), set(), set()
    for trial in trials:
        for path in _runs(sweep, trial)[:1]:
            recipe = read_config(RunStore(path), CONFIG)[0]
            models.add(str(recipe["model"]["name_or_path"]))
            named = recipe["data"].get("sources") or []
            sources.add(tuple(str(source["path"]) for source in named if source.get("path")))
            pairs.add(RunPaths.at(path).pairs_root)
    counts = {
        read_manifest(RunStore(root))["counts"].get("pairs", {}).get("train", 0)
        for root in pairs
        if RunStore(root).exists(MANIFEST)
    }
    return {
        name: next(iter(found))
        for name, found in (("model", models), ("sources", sources), ("num_pairs", counts))
        if len(found) == 1
    }


def _levels(sweep: Sweep, view: SweepView, trials: Sequence[Trial], say: Say) -> list[Level]:
    """The methods at round distances, where a gain and a distance were asked for."""
    axes = view.gain_and_distance()
    methods = view.series()
    if axes is None or len(methods) < 2:
        return []
    gain, distance = axes
    known = {trial.number: trial for trial in trials}
    measured = {
        name: [
            Measured(
                t.metrics[distance],
                t.metrics[gain],
                _by_prompt(sweep, known[t.number], gain, distance, say),
            )
            for t in shown
            if is_number(t.metrics[distance]) and is_number(t.metrics[gain])
        ]
        for name, shown in methods
    }
    measured = {name: found for name, found in measured.items() if found}
    if len(measured) < 2:
        return []
    distances = [trial.distance for found in measured.values() for trial in found]
    return compare_at(measured, round_levels(min(distances), max(distances)))


def _by_prompt(
    sweep: Sweep, trial: Trial, gain: str, distance: str, say: Say
) -> Mapping[str, tuple[float, float]]:
    """prompt -> gain and distance of a trial, means over its seeds; empty without samples."""
    if gain not in _BY_PROMPT or distance not in _BY_PROMPT:
        return {}
    keys = (_BY_PROMPT[gain], _BY_PROMPT[distance])
    values: dict[str, list[tuple[float, float]]] = {}
    for path in _runs(sweep, trial):
        store = RunPaths.at(path).evaluation
        try:
            hash_ = read_manifest(store)["outputs"].get(SAMPLES)
            samples = read_lines(store, SAMPLES, None, hash_, _AGAIN, may_be_empty=True)
        except FileNotFoundError:
            return {}
        except (DamagedFile, UserError) as error:
            say(f"tune: {error}")
            return {}
        for sample in samples:
            # The metrics are those of the first temperature.
            if sample.get("temperature_number", 0) == 0 and all(key in sample for key in keys):
                found = (float(sample[keys[0]]), float(sample[keys[1]]))
                values.setdefault(str(sample["prompt"]), []).append(found)
    return {
        prompt: (sum(g for g, _ in found) / len(found), sum(d for _, d in found) / len(found))
        for prompt, found in values.items()
    }
