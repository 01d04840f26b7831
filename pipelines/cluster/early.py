"""Imported by each process that Ray starts for a session of our own: what it will need, early.

RAY_preload_python_modules names this module, the only one whose import does something. The first
processes are those that wait for work, and import it all, as those do that `start_waiting` asks
for. Another one is started for work that is there, and imports what that asks for.
"""

import contextlib
import importlib
import logging
import os
import uuid
from pathlib import Path
from typing import Any

from pipelines.models import quick_imports

_ASKED_FOR = "asked-for-"  # a file of that name is one process more
EARLY = "SPARSEPO_EARLY"  # how many processes, and which modules: 7:torch,ray.data


def import_early(named: str, claims: Path) -> bool:
    """Import the modules if this is one of the first processes; returns whether it is.

    Args:
        named: the value of EARLY. claims: a folder, where the first leave a file each.
    """
    most, modules = named.split(":")
    claims.mkdir(exist_ok=True)
    if not (_claimed(int(most), claims) or _was_asked_for(claims)):
        return False
    with quick_imports():
        for name in modules.split(","):
            try:
                importlib.import_module(name)
            except Exception:  # whoever needs it says so
                logging.getLogger(__name__).exception("cannot import %s early", name)
    return True


def _claimed(most: int, claims: Path) -> bool:
    for number in range(most):
        with contextlib.suppress(FileExistsError), (claims / str(number)).open("x") as claim:
            claim.write(str(os.getpid()))
            return True
    return False


def _was_asked_for(claims: Path) -> bool:
    """Takes one of the files that `ask_for` has left, if there is one."""
    for asked in claims.glob(f"{_ASKED_FOR}*"):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            asked.unlink()
            return True
    return False


def ask_for(count: int, claims: Path) -> None:
    """So many processes more are to import early."""
    claims.mkdir(exist_ok=True)
    for _ in range(count):
        (claims / f"{_ASKED_FOR}{uuid.uuid4().hex}").touch()


def claims_of(node: Any) -> Path:
    """The folder for it of the session that this process belongs to, by Ray's node."""
    return Path(node.get_session_dir_path()) / "early"


def _in_this_process() -> None:
    import ray
    from ray._private.worker import global_worker

    if global_worker.mode == ray.WORKER_MODE and (named := os.environ.get(EARLY)):
        with contextlib.suppress(OSError):
            import_early(named, claims_of(global_worker.node))


_in_this_process()
