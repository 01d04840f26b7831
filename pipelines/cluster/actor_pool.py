"""Small tasks through a Ray Data actor pool: what reference, sample and evaluate share."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipelines.cluster.bars import Bar
from pipelines.cluster.failures import told_in_a_line
from pipelines.cluster.machines import tell_of_wait
from pipelines.cluster.resources import Places, Resources
from pipelines.cluster.shared_paths import require_seen
from pipelines.errors import Failure, StageFailed, UserError
from pipelines.models import quick_imports
from pipelines.recipe import RaySection
from pipelines.storage import Span, add_spans, recorded, spent

Task = TypeVar("Task")
Result = TypeVar("Result")
Facts = TypeVar("Facts")

# Ray Data's driver keeps about 9 KiB per block: more tasks than this share blocks, so that its
# memory does not grow with them. An actor still gets many, so that they end at about the same time.
_MOST_BLOCKS, _BLOCKS_PER_ACTOR = 4000, 32


@dataclass(frozen=True)
class Pool:
    """The actors that work on a stage's tasks.

    Attributes:
        label: of the progress bar and in errors. ray: what the run may take of the cluster.
        paths: local paths that every actor has to see (`local_paths`).
        num_actors: by default one per GPU (or group of GPUs), or per node with all its cores.
        gpus_per_actor: 0 for work that needs none.
        calls_at_once: calls of one actor that may overlap, from several threads.
        lighter: what to change where a machine's memory runs out.
    """

    label: str
    ray: RaySection
    paths: dict[str, str]
    num_actors: int | None = None
    gpus_per_actor: int = 1
    calls_at_once: int = 1
    lighter: str = ""


class Executor(Protocol):
    """What may stand in for Ray's actors: see `run_tasks` and `run_alone` for what they promise."""

    def run_tasks(
        self,
        tasks: Sequence[Task],
        actor: Callable[[Facts], Callable[[Task], Result]],
        facts: Facts,
        pool: Pool,
    ) -> Iterator[Result]: ...

    def run_alone(
        self,
        task: Task,
        actor: Callable[[Facts], Callable[[Task], Result]],
        facts: Facts,
        paths: dict[str, str],
    ) -> Result: ...


_EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)


@contextlib.contextmanager
def executed_by(executor: Executor) -> Iterator[None]:
    """Have tasks that this thread starts run by something other than Ray's actors."""
    token = _EXECUTOR.set(executor)
    try:
        yield
    finally:
        _EXECUTOR.reset(token)


def pool_gpus(pool: Pool) -> float:
    """GPUs for a pool's actors; 0 where something else does their work."""
    return 0.0 if _EXECUTOR.get() is not None else Resources.now(pool.ray).gpus()


def run_tasks(
    tasks: Sequence[Task],
    actor: Callable[[Facts], Callable[[Task], Result]],
    facts: Facts,
    pool: Pool,
    quiet: bool,
) -> Iterator[Result]:
    """Yield the result of every task, in task order.

    `actor(facts)` is built once per actor and called with one task after the other. Facts, tasks
    and results travel pickled.

    Raises: UserError if the cluster has not the GPUs of one actor; a call's UserError or
        StageFailed.
    """
    if not tasks:
        return
    executor = _EXECUTOR.get()
    if executor is not None:
        yield from executor.run_tasks(tasks, actor, facts, pool)
        return
    with quick_imports():
        import ray.data
    from ray import cloudpickle

    quieten_ray_data()
    actors = Resources.now(pool.ray).actors(
        pool.label, len(tasks), pool.num_actors, pool.gpus_per_actor
    )
    one = {"CPU": float(actors.cpus), "GPU": actors.gpus}
    tell_of_wait(pool.label, Places({k: v for k, v in one.items() if v}, 1))
    blocks = min(len(tasks), max(_MOST_BLOCKS, _BLOCKS_PER_ACTOR * actors.count))
    dataset = ray.data.from_items(
        [{"task": cloudpickle.dumps(task)} for task in tasks], override_num_blocks=blocks
    ).map_batches(
        _Worker,
        fn_constructor_args=(cloudpickle.dumps((actor, facts)), actors.cpus, pool.paths),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=actors.count,
            max_tasks_in_flight_per_actor=2 * pool.calls_at_once,
            max_concurrent_calls_per_actor=pool.calls_at_once,
            enable_true_multi_threading=pool.calls_at_once > 1,
        ),
        num_gpus=actors.gpus,
        num_cpus=actors.cpus,
    )
    with (
        told_in_a_line(pool.label, pool.lighter),
        Bar(total=len(tasks), desc=pool.label, unit="task", disable=quiet) as progress,
    ):
        batches = iter(
            dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )
        while True:
            with spent("ray"):  # what its actors do meanwhile comes before it
                batch = next(batches, None)
            if batch is None:
                return
            for encoded in batch["outcome"].to_pylist():
                outcome, spans = cloudpickle.loads(encoded)
                add_spans(spans)
                if isinstance(outcome, Failure):
                    raise outcome.error()
                progress.update(1)
                yield outcome.value


def run_alone(
    task: Task,
    actor: Callable[[Facts], Callable[[Task], Result]],
    facts: Facts,
    paths: dict[str, str],
) -> Result:
    """The result of one task on one CPU, for work that needs no pool and no torch.

    Raises: what `run_tasks` raises.
    """
    executor = _EXECUTOR.get()
    if executor is not None:
        return executor.run_alone(task, actor, facts, paths)
    import ray

    # Named, or a trial of Ray Tune would place it within its own resources, which hold no CPU.
    alone = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_alone)
    tell_of_wait("a task", Places({"CPU": 1.0}, 1))
    with told_in_a_line("a task"):
        outcome = ray.get(alone.remote(task, actor, facts, paths))
    if isinstance(outcome, Failure):
        raise outcome.error()
    result: Result = outcome.value
    return result


def quieten_ray_data() -> None:
    """Keep task order, and keep Ray Data's own bars and information lines off the terminal."""
    with quick_imports():
        import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass(frozen=True)
class _Done:
    value: Any


def _alone(task: Any, actor: Callable[[Any], Any], facts: Any, paths: dict[str, str]) -> Any:
    """Ray task: build the actor and call it once."""

    def work() -> Any:
        require_seen(paths)
        with quick_imports():
            call = actor(facts)
        return call(task)

    return _outcome_of(work)


def _outcome_of(work: Callable[[], Any]) -> "_Done | Failure":
    """What is raised where the outcomes are read, in one line, or the result."""
    try:
        return _Done(work())
    except (UserError, StageFailed) as error:
        return Failure.of(error)


class _Worker:
    """The actor in Ray Data's terms: a batch of encoded tasks in, their encoded outcomes out."""

    def __init__(self, actor_and_facts: bytes, threads: int, paths: dict[str, str]) -> None:
        with recorded() as spans:
            self._start(actor_and_facts, threads, paths)
        self._spans: list[Span] = spans  # that no outcome has told of yet

    def _start(self, actor_and_facts: bytes, threads: int, paths: dict[str, str]) -> None:
        from ray import cloudpickle

        with quick_imports():
            import torch

            actor, facts = cloudpickle.loads(actor_and_facts)
        if not torch.cuda.is_available():
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self._obstacle: Failure | None = None
        try:
            require_seen(paths)
            with quick_imports():
                self._actor = actor(facts)
        except (UserError, StageFailed) as error:
            self._obstacle = Failure.of(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from ray import cloudpickle

        outcomes = [self._outcome(cloudpickle.loads(task)) for task in batch["task"].to_pylist()]
        return pa.table({"outcome": [cloudpickle.dumps(outcome) for outcome in outcomes]})

    def _outcome(self, task: Any) -> "tuple[_Done | Failure, list[Span]]":
        with recorded() as spans, spent("compute"):
            outcome = self._obstacle or _outcome_of(lambda: self._actor(task))
        before, self._spans = self._spans, []
        return outcome, before + spans
