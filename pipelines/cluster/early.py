"""Imported by each process that Ray starts for a session of our own: what it will need, early.

RAY_preload_python_modules names this module, the only one whose import does something. The first
processes are those that wait for work, and import it all. A later one is started for work that is
there, and imports what that asks for.
"""

import contextlib
import importlib
import logging
import os
from pathlib import Path

from pipelines.models import quick_imports

EARLY = "SPARSEPO_EARLY"  # how many processes, and which modules: 7:torch,ray.data


def import_early(named: str, claims: Path) -> bool:
    """Import the modules if this is one of the first processes; returns whether it is.

    Args:
        named: the value of EARLY. claims: a folder, where the first leave a file each.
    """
    most, modules = named.split(":")
    claims.mkdir(exist_ok=True)
    for number in range(int(most)):
        try:
            with (claims / str(number)).open("x") as claim:
                claim.write(str(os.getpid()))
        except FileExistsError:
            continue
        break
    else:
        return False
    with quick_imports():
        for name in modules.split(","):
            try:
                importlib.import_module(name)
            except Exception:  # whoever needs it says so
                logging.getLogger(__name__).exception("cannot import %s early", name)
    return True


def _in_this_process() -> None:
    import ray
    from ray._private.worker import global_worker

    if global_worker.mode == ray.WORKER_MODE and (named := os.environ.get(EARLY)):
        with contextlib.suppress(OSError):
            import_early(named, Path(global_worker.node.get_session_dir_path()) / "early")


_in_this_process()
