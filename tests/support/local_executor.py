"""The actors' work in the test's own process: the logic of a stage without starting any."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray import cloudpickle

from pipelines.cluster.actor_pool import Pool
from pipelines.cluster.shared_paths import require_seen


class LocalExecutor:
    """One actor per call, which is told and tells as actors of other processes are: pickled."""

    def run_tasks(
        self, tasks: Sequence[Any], actor: Callable[[Any], Any], facts: Any, pool: Pool
    ) -> Iterator[Any]:
        require_seen(pool.paths)
        work = actor(_sent(facts))
        for task in tasks:
            yield _sent(work(_sent(task)))

    def run_alone(
        self, task: Any, actor: Callable[[Any], Any], facts: Any, paths: dict[str, str]
    ) -> Any:
        require_seen(paths)
        return _sent(actor(_sent(facts))(_sent(task)))


def _sent(value: Any) -> Any:
    return cloudpickle.loads(cloudpickle.dumps(value))
