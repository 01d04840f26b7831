"""Workers of Ray that are forks of warm processes, for all that the tests start.

`start` puts two variables into this process's environment. Whatever is started with them has
such workers; `started_as_always` leaves them out. A fork has all that the raylet would have given
the worker but the session of processes, of which it has one of its own.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from checkout import ROOT

SOCKET = "TESTS_WARM"
_SITE = ROOT / "tests" / "support" / "warm_site"
# What a session of Ray adds to it; an import looks at them.
OF_SESSIONS = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
_ROOM_FOR_TITLES = "a warm process of the tests; its forks become workers of Ray " + "-" * 300
_LIFELINES: list[int] = []  # open until this process ends, and what was started with it


def start() -> None:
    """Unless who started this process has; nothing is imported before `warm_up` or a worker."""
    if SOCKET in os.environ or "OMP_NUM_THREADS" not in os.environ:
        return  # without it, numpy and Ray's workers would have threads
    address = Path(tempfile.mkdtemp(prefix="warm-")) / "socket"
    lifeline, ours = os.pipe()
    here = Path(__file__).with_name("warm_process.py")
    os.environ["PYTHONPATH"] = python_path(_SITE)
    command = [sys.executable, str(here), str(address), str(lifeline), _ROOM_FOR_TITLES]
    # Its first variable is one that no fork changes.
    environment = {SOCKET: str(address), **os.environ}
    with Path(f"{address}.out").open("wb") as said:
        subprocess.Popen(
            command,
            env=environment,
            pass_fds=(lifeline,),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            start_new_session=True,
        )
    os.close(lifeline)
    os.environ[SOCKET] = str(address)
    _LIFELINES.append(ours)


def warm_up(environment: Mapping[str, str]) -> bool:
    """Have a warm process import what workers with that environment do; whether it has by now."""
    if not (address := os.environ.get(SOCKET)):
        return False
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        text = json.dumps({"environment": dict(environment), "executable": sys.executable}).encode()
        connection.sendall(struct.pack("!I", len(text)) + text)
        return connection.recv(3) == b"at "


def notes() -> Iterator[str]:
    """What the warm processes of this process's tests have noted, and how often."""
    if _LIFELINES:
        with contextlib.suppress(FileNotFoundError):
            lines = Path(os.environ[SOCKET]).with_name("notes").read_text().splitlines()
            yield from (f"{count} x {line}" for line, count in Counter(lines).items())


def python_path(*places: Path) -> str:
    """PYTHONPATH with these in front of what is there for warm workers."""
    rest = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([*map(str, places), *([rest] if rest else [])])


def started_as_always(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment for a process whose Ray starts each worker by itself."""
    return {name: value for name, value in environment.items() if name != SOCKET}
