"""A worker's process that stands for a fork of a warm process (`warm_process.py`).

What a start by the raylet would have given the worker is told to the warm process, which gives it
to a fork. This process then waits. It ends when the fork does, and the fork with it: whoever kills
the one, or its group, ends both. Where no fork is to be had, the worker starts here as always.
"""

import array
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def ask() -> None:
    """Does not return if there is a fork."""
    with contextlib.suppress(OSError):
        said = wanted()
        where, _ = _asked(os.environ["TESTS_WARM"], said)
        if where.startswith("at "):
            line, answer = _asked(where.removeprefix("at ").strip(), said)
            if line.startswith("pid "):
                _stand_for(int(line.split()[1]), answer)


def wanted() -> dict[str, Any]:
    """What a fork is to have of this process's."""
    masked = os.umask(0o77)
    os.umask(masked)
    status = Path("/proc/self/status").read_text()
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    return {
        "argv": sys.orig_argv[1:],
        "executable": sys.executable,
        "environment": dict(os.environ),
        "umask": masked,
        "ignored": [n for n in range(1, 65) if ignored >> (n - 1) & 1],
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "limits": {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "nice": os.nice(0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
    }


def _asked(address: str, said: dict[str, Any]) -> tuple[str, Any]:
    """The first line of an answer, and where more of it comes from.

    Standard input, output, errors and the working directory go with the question.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    text = json.dumps(said).encode()
    files = array.array("i", [0, 1, 2, folder])
    size = struct.pack("!I", len(text))
    connection.sendmsg([size], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    connection.sendall(text)
    os.close(folder)
    answer = connection.makefile("r")
    return answer.readline(), answer


def _stand_for(fork: int, answer: Any) -> None:
    def forward(number: int, _: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(fork, number)

    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    line = answer.readline()
    if not line:  # the warm process is gone
        forward(signal.SIGKILL, None)
    code = int(line or 1)
    os._exit(code if code >= 0 else 128 - code)
