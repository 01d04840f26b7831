"""Ray's raylet starts this in the place of a worker: it stands for a fork of a warm process.

    python warm_worker.py NAME SCRIPT ARGUMENT...

What a start by the raylet would have given the worker is told to the warm process at the abstract
socket NAME, which gives it to a fork. This process then waits. It ends when the fork does, and the
fork with it: whoever kills the one, or its group, ends both. Where no fork is to be had, this
process becomes SCRIPT's, as always.
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
from typing import Any

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ANSWER_SECONDS = 30.0  # half of what Ray waits for a worker


def ask(name: str, argv: list[str], may_have_ray: bool = True) -> None:
    """Does not return if there is a fork."""
    with contextlib.suppress(OSError, ValueError):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(f"\0{name}")
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", told)[1] != os.geteuid():
            return
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        text = json.dumps({**wanted(argv), "may_have_ray": may_have_ray}).encode()
        files = array.array("i", [0, 1, 2, folder])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
        connection.sendmsg([struct.pack("!I", len(text))], rights)
        connection.sendall(text)
        os.close(folder)
        answer = connection.makefile("r")
        said, _, value = answer.readline().strip().partition(" ")
        if said == "pid":
            connection.settimeout(None)
            _stand_for(int(value), answer)
        if said == "ask":  # the one that has Ray
            connection.close()
            ask(value, argv)
            ask(name, argv, may_have_ray=False)


def wanted(argv: list[str]) -> dict[str, Any]:
    """What a fork is to have of this process's."""
    masked = os.umask(0o77)
    os.umask(masked)
    with open("/proc/self/status") as status, open("/proc/self/oom_score_adj") as oom:
        ignored = int(status.read().split("SigIgn:")[1].split()[0], 16)
        return {
            "argv": argv,
            "executable": sys.executable,
            "environment": dict(os.environ),
            "umask": masked,
            "ignored": [int(n) for n in signal.valid_signals() if ignored >> (n - 1) & 1],
            "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "limits": {
                name: resource.getrlimit(getattr(resource, name))
                for name in dir(resource)
                if name.startswith("RLIMIT_")
            },
            "nice": os.nice(0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "oom": oom.read(),
        }


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


def _main(name: str, script: str, *arguments: str) -> None:
    ask(name, [script, *arguments])
    os.execv(sys.executable, [sys.executable, script, *arguments])


if __name__ == "__main__":
    _main(*sys.argv[1:])
