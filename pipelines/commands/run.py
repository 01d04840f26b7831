"""run: prepare -> reference -> train -> evaluate -> report.

It skips every stage whose output already matches.
"""

import time
from collections.abc import Callable
from typing import Any

from pipelines.cluster import check_shared, cluster_address, ray_session, wait_for_workers
from pipelines.errors import UserError
from pipelines.evaluate import (
    check_evaluation,
    check_held_out,
    check_kept,
    evaluate_record,
    run_evaluate,
)
from pipelines.pairs import pairs_store, prepare_record, run_prepare
from pipelines.recipe import CONFIG, MANIFEST, Recipe, Say, StageRecord, write_yaml
from pipelines.reference import (
    check_hooks,
    has_features,
    reference_record,
    run_reference,
    scoring_device,
    settle_mode,
)
from pipelines.storage import RunStore
from pipelines.train import run_train, train_record


def run_stages(
    recipe: Recipe, stages: tuple[str, ...], say: Say, quiet: bool = False
) -> dict[str, str]:
    """Run the named stages in order; returns stage -> "done" or "skipped".

    Everything that can be wrong with the input is checked before Ray starts. A stage alone does not
    run the ones before.
    """
    outcome = {}
    evaluates = "evaluate" in stages
    if evaluates:
        check_held_out(recipe)
    with LazyRay(recipe, say) as ray_started:
        recipe = settled(recipe, ray_started)
        check_hooks(recipe)
        if evaluates and not is_complete(recipe, "evaluate"):
            check_evaluation(recipe)
        if "execute" in stages and not is_complete(recipe, "execute"):
            from pipelines.evaluate import require_isolation

            require_isolation()
        _write_config(recipe)
        for stage in stages:
            started = time.monotonic()
            if stage == "report":
                from pipelines.commands.report import run_report

                outcome[stage] = "done"
                say(f"report: {run_report([recipe.run_dir])}")
                continue
            if is_complete(recipe, stage):
                outcome[stage] = "skipped"
                say(f"{stage}: already done, skipped")
                continue
            ray_started()
            _require_earlier(recipe, stage)
            if stage in ("reference", "train"):
                check_kept(
                    recipe,
                    pairs_store(recipe).read_json(MANIFEST)["counts"]["pairs"],
                    evaluates=evaluates,
                )
            summary = _RUNNERS[stage](recipe, quiet)
            outcome[stage] = "done"
            say(f"{stage}: done in {time.monotonic() - started:.1f} s{_summary(stage, summary)}")
    return outcome


def settled(recipe: Recipe, start_ray: Callable[[], None]) -> Recipe:
    """The recipe with what `auto` leaves to the devices decided, on a cluster by its devices."""
    if cluster_address(recipe.ray):
        start_ray()
    return settle_mode(recipe, scoring_device())


class LazyRay:
    """Starts Ray at the first call, stops it at the end.

    A run whose stages are all done never starts it.

    Raises: UserError if the cluster has a machine that does not see the recipe's local paths.
    """

    def __init__(self, recipe: Recipe, say: Say = print) -> None:
        self._recipe, self._say = recipe, say
        self._session = ray_session(recipe.ray)
        self._started = False

    def __enter__(self) -> Callable[[], None]:
        return self._start

    def _start(self) -> None:
        first = not self._started
        if first:
            self._session.__enter__()
            self._started = True
        if cluster_address(self._recipe.ray):
            wait_for_workers(
                self._recipe, self._say
            )  # idle machines may have gone since the last stage
            if first:
                check_shared(self._recipe)

    def __exit__(self, *error: Any) -> None:
        if self._started:
            self._session.__exit__(*error)


def is_complete(recipe: Recipe, stage: str) -> bool:
    """Whether a stage's output is there and matches; UserError if another run's is there."""
    record = stage_record(recipe, stage)
    if stage == "reference":
        if not recipe.required_features() and not recipe.stored_features():
            return True
        return record.is_complete() and has_features(recipe)
    return record.is_complete()


def stage_record(recipe: Recipe, stage: str) -> StageRecord:
    if stage == "execute":
        from pipelines.evaluate import execute_record

        return execute_record(recipe)
    return {
        "prepare": prepare_record,
        "reference": reference_record,
        "train": train_record,
        "evaluate": evaluate_record,
    }[stage](recipe)


def _run_execute(recipe: Recipe, quiet: bool) -> dict[str, Any]:
    from pipelines.evaluate import run_execute

    return run_execute(recipe, quiet)


_RUNNERS: dict[str, Callable[[Recipe, bool], dict[str, Any]]] = {
    "prepare": run_prepare,
    "reference": run_reference,
    "train": run_train,
    "evaluate": run_evaluate,
    "execute": _run_execute,
}
_NEEDS = {
    "prepare": (),
    "reference": ("prepare",),
    "train": ("prepare", "reference"),
    "evaluate": ("prepare", "train"),
    "execute": ("evaluate",),
}


def _require_earlier(recipe: Recipe, stage: str) -> None:
    for earlier in _NEEDS[stage]:
        if not is_complete(recipe, earlier):
            raise UserError(
                f"{stage} needs the {earlier} stage of {recipe.run_dir}: run `sparsepo {earlier}` "
                "(or `sparsepo run`) first"
            )


def _write_config(recipe: Recipe) -> None:
    store = RunStore(recipe.run_dir)
    text = write_yaml(recipe).encode()
    # A place that holds another run keeps its own configuration until a stage has agreed that the
    # settings fit.
    executed = ("execute",) if "code" in recipe.evaluate.benchmarks else ()
    for stage in ("prepare", "reference", "train", "evaluate", *executed):
        stage_record(recipe, stage).check()
    store.write_bytes(CONFIG, text)


def _summary(stage: str, manifest: dict[str, Any]) -> str:
    counts = manifest["counts"]
    if stage == "prepare":
        pairs = counts["pairs"]
        dropped = sum(counts["rejected"].values())
        reasons = "; ".join(f"{reason}: {n}" for reason, n in counts["rejected"].items())
        return (
            f": {pairs['train']} train, {pairs['validation']} validation, {pairs['test']} test "
            "pairs" + (f"; {dropped} rows dropped ({reasons})" if dropped else "")
        )
    if stage == "reference":
        failed = sum(len(rows) for rows in counts["failed"].values())
        lost = f"; {failed} rows could not be scored: failed_rows.jsonl" if failed else ""
        warning = "".join(f"\nwarning: {message}" for message in counts["warnings"])
        stored = ", ".join(sorted(counts["features"])) or "nothing stored"
        return (
            f": {counts['mode']}, {counts['tokens']:,} tokens, {stored}, "
            f"{counts['bytes'] / 2**20:.1f} MiB{lost}{warning}"
        )
    if stage == "train":
        final = counts["final"]
        shown = [
            f"{label} {final[key]:.4g}"
            for key, label in (("loss", "loss"), ("rewards/accuracies", "accuracy"))
            if key in final
        ]
        warning = "".join(f"\nwarning: {message}" for message in counts["warnings"])
        return f": {counts['steps']} steps, {', '.join(shown)}{warning}"
    parts = []
    results = counts["results"]
    if "preference" in results:
        before, after = (
            results["preference"]["accuracy/logps/before"],
            results["preference"]["accuracy/implicit_reward"],
        )
        parts.append(
            f"held-out accuracy {before['mean']:.3f} by log-probability before, "
            f"{after['mean']:.3f} by implicit reward after"
        )
    if "sentiment" in results:
        gain, kl = results["sentiment"]["reward/gain"], results["sentiment"]["kl/policy_reference"]
        parts.append(
            f"reward gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] at KL "
            f"{kl['mean']:.2f}"
        )
    for opponent in ("chosen", "start"):
        rate = results.get("dialogue", {}).get(f"win_rate/{opponent}")
        if rate is not None:
            parts.append(
                f"wins {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] against "
                f"{opponent}"
            )
    if "summarization" in results:
        gain = results["summarization"]["rougeL/gain"]
        parts.append(f"ROUGE-L gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
    if "code" in results:
        code = results["code"]
        rates = [
            f"{key.removesuffix('/after')} {code[key]['mean']:.3f}"
            for key in code
            if key.endswith("/after") and key.startswith("pass@")
        ]
        parts.append(f"{', '.join(rates)} on {code['num_tasks']} tasks")
    warning = "".join(f"\nwarning: {message}" for message in counts.get("warnings", ()))
    return (": " + "; ".join(parts) if parts else "") + warning
