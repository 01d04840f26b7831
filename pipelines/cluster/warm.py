"""Workers of a Ray of our own that are forks of a warm process, which imports once what they do."""

import contextlib
import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.cluster.warm_process import MARK, ONE_THREAD

# What workers import before Ray: most of their time to start. None opens the GPUs.
IMPORTED = (
    # What Ray imports besides its own modules.
    "google.protobuf.text_format",
    "click",
    "colorful",
    "jsonschema",
    "pydantic.v1",
    # What work is done with.
    "torch",
    "torch._dynamo",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.fs",
    "datasets",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
    "transformers.masking_utils",
    "transformers.modeling_layers",
    "pipelines.cluster.warm_models",
    "pipelines.reference.actor",
    "pipelines.train.trainer",
    "pipelines.train.worker",
    "pipelines.evaluate.actor",
    "pipelines.evaluate.sample",
)
# What compiled layers and FlexAttention need besides, which run on GPUs.
COMPILER = ("pipelines.cluster.warm_compiler",)
# Ray's own, for workers of the first job: imported when the first worker starts.
OF_RAY = (
    "ray",
    "ray.dag",
    "ray.data",
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray.data._internal.issue_detection",
    "ray.train.torch",
    "ray.tune",
    "pipelines.cluster.actor_pool",
    "pipelines.train.lean_trainer",
)
_ROOM_FOR_TITLES = "a warm process; its forks become workers of Ray " + "-" * 300
_END_SECONDS = 5.0
_WORKERS = "--python_worker_command"


@contextlib.contextmanager
def warm_process(modules: Sequence[str], of_ray: Sequence[str] = ()) -> Iterator[str | None]:
    """A warm process for the duration of a block; gives its name, None where there is none.

    Returns before it has imported anything.

    Args:
        modules: what it imports. None of them may import Ray or ask which devices there are.
        of_ray: what a fork of it imports, of which the first job's workers are forks.
    """
    if not modules or not sys.platform.startswith("linux"):
        yield None
        return
    name = f"sparsepo-{uuid.uuid4().hex}"
    lifeline, ours = os.pipe()
    script = Path(__file__).with_name("warm_process.py")
    arguments = [name, str(lifeline), ",".join(modules), ",".join(of_ray), _ROOM_FOR_TITLES]
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env={MARK: name, **os.environ, **ONE_THREAD},
        pass_fds=(lifeline,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(lifeline)
    try:
        yield name
    finally:
        process.terminate()  # at once, if it still imports
        os.close(ours)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def warm_raylets(name: str | None) -> Iterator[None]:
    """Ray's raylets that this process starts in the block have workers that are forks.

    Args:
        name: of the warm process; None leaves Ray as it is.
    """
    from ray._private import services

    start_process = services.start_ray_process

    def started(command: list[str], *given: Any, **named: Any) -> Any:
        return start_process([with_warm_workers(part, name) for part in command], *given, **named)

    services.start_ray_process = started
    try:
        yield
    finally:
        services.start_ray_process = start_process


def with_warm_workers(argument: str, name: str | None) -> str:
    """An argument of the raylet's as it is, but for the command that starts a Python worker."""
    key, _, value = argument.partition("=")
    if name is None or key != _WORKERS:
        return argument
    command = shlex.split(value)
    worker = next(n for n, part in enumerate(command) if Path(part).name == "default_worker.py")
    command[worker:worker] = [str(Path(__file__).with_name("warm_worker.py")), name]
    return f"{key}={subprocess.list2cmdline(command)}"


def told_by(name: str) -> dict[str, Any]:
    """What the warm process of that name has done: forks, and refused, a count per reason.

    With what its fork that has Ray has done. Waits until both have imported everything.

    Raises: ConnectionRefusedError if there is none.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{name}")
        text = json.dumps({}).encode()
        connection.sendall(struct.pack("!I", len(text)) + text)
        with connection.makefile("r") as answer:
            told: dict[str, Any] = json.load(answer)
    if other := told.pop("other"):
        more = told_by(other)
        told["with_ray"] = more["forks"]
        told["forks"] += more["forks"]
        told["refused"] = dict(Counter(told["refused"]) + Counter(more["refused"]))
    return told
