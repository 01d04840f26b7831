"""`ray start` of a host whose workers are forks of a warm process.

    python start_warm.py OPTION...

The packages are not among what it has imported: a job may bring its own.
"""

import sys

from ray._private import services
from ray.scripts.scripts import cli

from pipelines.cluster.warm import IMPORTED, warm_process, with_warm_workers

if __name__ == "__main__":
    start_process = services.start_ray_process
    libraries = [name for name in IMPORTED if not name.startswith("pipelines.")]
    with warm_process(libraries) as name:

        def started(command: list[str], *given: object, **named: object) -> object:
            return start_process([with_warm_workers(p, name) for p in command], *given, **named)

        services.start_ray_process = started
        cli(["start", *sys.argv[1:]])
