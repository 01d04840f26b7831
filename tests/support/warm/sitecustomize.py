"""Hands a Ray worker that Python is about to become to the server of tests/support/warm_workers.py.

Python imports this file as it starts, since its directory is on PYTHONPATH. The process stays as
long as the worker that was forked for it, and ends as that does.
"""

import os
import sys

_SCRIPT = sys.orig_argv[1] if len(sys.orig_argv) > 1 else ""
_SETS_UP = _SCRIPT.endswith("/ray/_private/workers/setup_worker.py")
_PLACE = os.environ.get("WARM_WORKERS", "0")
if _PLACE != "0" and (_SETS_UP or _SCRIPT.endswith("/ray/_private/workers/default_worker.py")):
    import json
    import signal
    import socket
    import struct

    def hand_over() -> None:
        """Returns if the server cannot make this worker: then it becomes one by itself."""
        arguments = sys.orig_argv[1:]
        if _SETS_UP:
            arguments = arguments[1:]
            start = "--serialized-runtime-env-context="
            told = next((a for a in arguments if a.startswith(start)), f"{start}{{}}")
            context = json.loads(told.removeprefix(start))
            if context.get("command_prefix") or context.get("override_worker_entrypoint"):
                return  # it sets up what these name, and comes here again
            if context.get("py_executable", sys.executable) != sys.executable:
                return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(_PLACE)
        except OSError:
            return
        asked = json.dumps(
            {
                "argv": arguments,
                "sets_up": _SETS_UP,
                "executable": sys.executable,
                "environment": dict(os.environ),
                "cwd": os.getcwd(),  # noqa: PTH109 -- pathlib is slow to import
                "path": sys.path,
                "niceness": os.nice(0),
            }
        ).encode()
        socket.send_fds(connection, [struct.pack("i", len(asked))], [0, 1, 2])
        connection.sendall(asked)
        if not struct.unpack("i", connection.recv(4) or bytes(4))[0]:
            return
        try:
            stand_for(connection)
        finally:
            os._exit(1)  # whatever happens, there is no second worker

    def stand_for(connection: socket.socket) -> None:
        """Pass signals on until the worker ends, and end as it did."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda sent, _: connection.send(struct.pack("i", sent)))
        status = connection.recv(4)
        code = struct.unpack("i", status)[0] if status else 1
        if code < 0:
            if -code not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)

    hand_over()
