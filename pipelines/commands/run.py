"""run: the stages on the way from pairs to a report, or some of them.

It skips every stage whose output already matches.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pipelines.cluster import (
    EarlySession,
    check_session,
    check_shared,
    cluster_address,
    known_resources,
    wait_for_workers,
)
from pipelines.commands.stages import (
    RUN,
    STAGES,
    asked_for,
)
from pipelines.commands.timeline import CommandTimes
from pipelines.errors import UserError
from pipelines.models import check_families
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    CONFIG,
    MANIFEST,
    Recipe,
    Run,
    RunPaths,
    Say,
    Stage,
    read_config,
    write_yaml,
    write_yaml_beside,
)
from pipelines.storage import present, spent


def run_stages(
    recipe: Recipe,
    stages: Sequence[Stage[Any]],
    say: Say,
    quiet: bool = False,
    began: float | None = None,
) -> dict[str, str]:
    """Run the stages in order; returns the name of each -> "done" or "skipped".

    Everything that can be wrong with the input is checked before Ray starts. A stage alone does not
    run the ones before. Where the time went is kept in the run directory.

    Args:
        began: when the command did, seconds since the epoch; now by default.
    """
    outcome: dict[str, str] = {}
    stages = asked_for(recipe, stages)
    for stage in stages:
        stage.check_recipe(recipe)
    with CommandTimes(RunPaths.of(recipe).run, time.time() if began is None else began) as times:
        _run_stages(recipe, stages, say, quiet, times, outcome)
    return outcome


def _run_stages(
    recipe: Recipe,
    stages: Sequence[Stage[Any]],
    say: Say,
    quiet: bool,
    times: CommandTimes,
    outcome: dict[str, str],
) -> None:
    ray = LazyRay(recipe, say)
    with ray as start_ray:
        if _has_work_for_ray(recipe, stages):
            ray.begin()
        with spent("checks"):
            run = settled(recipe, start_ray)
            check_before(run, stages)
        if _way(run.recipe, stages):
            _write_config(run)
        for number, stage in enumerate(stages):
            started = time.monotonic()
            if stage.is_done(run):
                outcome[stage.name] = "skipped"
                say(f"{stage.name}: already done, skipped")
                continue
            with _told(run, stage):
                if stage.uses_ray:
                    start_ray()
                _require_earlier(run, stage)
                check_pairs(run, [*_way(run.recipe, stages), *stages[number:]])
                check_room(run, stages[number:])
                with times.stage(stage.name):
                    counts = stage.run(run, say, quiet)["counts"]
            outcome[stage.name] = "done"
            summary = stage.summary(counts)
            took = f"done in {time.monotonic() - started:.1f} s"
            words = [stage.name, *([took] if stage.has_record else []), summary]
            say(": ".join(word for word in words if word))


def _has_work_for_ray(recipe: Recipe, stages: Sequence[Stage[Any]]) -> bool:
    """Whether a stage that uses Ray has left nothing yet, as a look at the disk tells."""
    paths = RunPaths.of(recipe)
    return any(
        stage.uses_ray and stage.has_record and not stage.folder(paths).exists(MANIFEST)
        for stage in stages
    )


def _told(run: Run, stage: Stage[Any]) -> AbstractContextManager[None]:
    """`status` finds that this process works on the stage."""
    if not stage.has_record:
        return nullcontext()
    return present(stage.folder(run.paths), stage=stage.name, run_dir=run.recipe.run_dir)


def settled(recipe: Recipe, start_ray: Callable[[], None]) -> Run:
    """The run with what `auto` leaves to the devices decided, on a cluster by its devices."""
    if cluster_address(recipe.ray):
        start_ray()
    for stage in STAGES:
        recipe = stage.settle(recipe)
    return Run(recipe)


def _write_config(run: Run) -> None:
    """Keep the recipe. One of an evaluation with a name lies beside it, and leaves the run's own
    evaluation as it was.
    """
    recipe, paths = run.recipe, run.paths
    text = write_yaml(recipe)
    if recipe.evaluate.name is not None:
        paths.evaluation.write_bytes(CONFIG, text.encode())
        text = write_yaml(recipe.without_a_name())
        if paths.run.exists(CONFIG):
            if recipe.evaluate.model is not None:
                return
            text = write_yaml_beside(recipe, read_config(paths.run, CONFIG)[0])
    paths.run.write_bytes(CONFIG, text.encode())


def _way(recipe: Recipe, stages: Sequence[Stage[Any]]) -> list[Stage[Any]]:
    """The stages to the model of the recipe, if any of these is on the way from pairs to a report:
    one alone looks at what the recipe asks of all of them.
    """
    if not any(stage in RUN for stage in stages):
        return []
    return [stage for stage in RUN if not stage.is_optional and stage.applies(recipe)]


def check_before(run: Run, stages: Sequence[Stage[Any]], is_settled: bool = True) -> None:
    """UserError for what these stages will refuse, before any of them works.

    `run` and `plan` ask the same.

    Args:
        is_settled: whether `auto` is decided by the machines that the run will work on. Otherwise
            what earlier stages have left cannot be compared with it.
    """
    asked = [*_way(run.recipe, stages), *stages]
    # First of all: what cannot be a model's has no tokenizer to ask either.
    if _way(run.recipe, stages):
        check_families(run.recipe)
    if is_settled:
        _check_records(run, stages)
        check_stages(run, asked)
        _check_places(run, stages)
    else:
        for stage in dict.fromkeys(asked):
            stage.check(run)
    check_session(run.recipe.ray)
    resources = known_resources(run.recipe)
    for stage in stages:
        if resources is not None and not (is_settled and stage.is_done(run)):
            stage.check_place(run, resources)


def check_stages(run: Run, stages: Sequence[Stage[Any]]) -> None:
    """What the stages that have work to do will refuse."""
    for stage in dict.fromkeys(stages):
        if not stage.is_done(run):
            stage.check(run)


def _check_places(run: Run, stages: Sequence[Stage[Any]]) -> None:
    """UserError where nothing can be written."""
    if _way(run.recipe, stages):
        run.paths.run.check_writable()
    for stage in stages:
        if stage.has_record and not stage.is_done(run):
            stage.folder(run.paths).check_writable()


def check_pairs(run: Run, stages: Sequence[Stage[Any]]) -> None:
    """UserError if a stage that has work to do lacks the pairs that it needs; once they are
    prepared.
    """
    if not run.record(PREPARE).store.exists(MANIFEST):
        return
    kept = run.record(PREPARE).manifest()["counts"]["pairs"]
    for stage in dict.fromkeys(stages):
        if not stage.is_done(run):
            stage.check_pairs(run.recipe, kept)


def check_room(run: Run, stages: Sequence[Stage[Any]]) -> None:
    """UserError if a disk has no room for what these stages have still to write; once the pairs
    are prepared.
    """
    if run.record(PREPARE).store.exists(MANIFEST):
        for stage in stages:
            if not stage.is_done(run):
                stage.check_room(run)


class LazyRay:
    """Starts Ray at the first call, stops it at the end.

    A run whose stages are all done never starts it.

    Raises: UserError if the cluster has a machine that does not see the recipe's local paths.
    """

    def __init__(self, recipe: Recipe, say: Say = print) -> None:
        self._recipe, self._say = recipe, say
        self._session = EarlySession(recipe.ray)
        self._sees_paths = False

    def __enter__(self) -> Callable[[], None]:
        return self._start

    def begin(self) -> None:
        """What can begin before it is called for."""
        self._session.begin()

    def _start(self) -> None:
        self._session.start()
        if not cluster_address(self._recipe.ray):
            return
        wait_for_workers(self._recipe, self._say)  # idle machines may have gone since
        if not self._sees_paths:
            check_shared(self._recipe)
            self._sees_paths = True

    def __exit__(self, *error: Any) -> None:
        self._session.__exit__(*error)


def _require_earlier(run: Run, stage: Stage[Any]) -> None:
    for earlier in stage.needs(run.recipe):
        if not earlier.is_done(run):
            raise UserError(
                f"{stage.name} needs the {earlier.name} stage of {run.recipe.run_dir}: run "
                f"`sparsepo {earlier.name}` (or `sparsepo run`) first"
            )


def _check_records(run: Run, stages: Sequence[Stage[Any]]) -> None:
    """UserError for the first stage whose place holds another run's, by the setting that differs.

    A place keeps its own configuration until every stage of a run has agreed.
    """
    way = RUN if any(stage in RUN for stage in stages) else ()
    for stage in STAGES:
        asked = stage in stages or (stage in way and stage.applies(run.recipe))
        if asked and stage.has_record:
            run.record(stage).check()
