"""Read by every Python process that tests start, since this folder is on their PYTHONPATH.

A worker of Ray asks for a fork of the warm process; every other process goes on as it is.
"""

import os
import sys

_WORKER = "/ray/_private/workers/default_worker.py"

if len(sys.orig_argv) > 1 and sys.orig_argv[1].endswith(_WORKER) and os.environ.get("TESTS_WARM"):
    import asks_for_fork

    asks_for_fork.ask()
