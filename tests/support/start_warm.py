"""`ray start` of a host whose workers are forks of a warm process.

    python start_warm.py OPTION...

The packages are not among what it has imported: a job may bring its own. A head has no CPUs, so
that few workers start there: it does without.
"""

import sys

from ray.scripts.scripts import cli

from pipelines.cluster.warm import IMPORTED, warm_process, warm_raylets

if __name__ == "__main__":
    is_head = "--head" in sys.argv
    libraries = [name for name in IMPORTED if not name.startswith("pipelines.") and not is_head]
    with warm_process(libraries) as name, warm_raylets(name):
        cli(["start", *sys.argv[1:]])
