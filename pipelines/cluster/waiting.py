"""Processes of a Ray of our own that wait for work: started, and imports done, before it is there.

An actor takes a process that has never had work, and each is taken once. Ray starts one when an
actor needs it, which then waits for its imports.
"""

import contextlib
import os
from collections.abc import Iterator

from pipelines.models import quick_imports

PRELOADS = "RAY_preload_python_modules"  # which Ray gives to every process that it starts
# What a warm process may not have imported: Ray's parts that trials, controllers and workers need.
_OF_RAY = ("ray.data", "ray.tune", "pipelines.train.lean_trainer")
_KEPT_SECONDS = 24 * 3600  # of a process that nobody asks for anything
_ANSWER_SECONDS = 10.0


@contextlib.contextmanager
def waiting_with_imports() -> Iterator[None]:
    """Processes of a Ray that starts in this block import Ray's parts before there is work."""
    given = os.environ.get(PRELOADS)
    os.environ.setdefault(PRELOADS, ",".join(_OF_RAY))
    try:
        yield
    finally:
        if given is None:
            del os.environ[PRELOADS]


def start_waiting(count: int) -> None:
    """Have Ray start so many processes; returns before they are there.

    Does nothing where none imports before it is asked for work. A Ray that does not answer starts
    them when they are needed.
    """
    if PRELOADS not in os.environ:
        return
    with quick_imports():
        import grpc  # type: ignore[import-untyped]
        import ray
        from ray._private.grpc_utils import init_grpc_channel
        from ray._private.worker import global_worker
        from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    node = global_worker.node
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        keep_alive_duration_secs=_KEPT_SECONDS,
        num_workers=count,
    )
    with (
        contextlib.closing(
            init_grpc_channel(f"{node.node_ip_address}:{node.node_manager_port}")
        ) as channel,
        contextlib.suppress(grpc.RpcError),
    ):
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        stub.PrestartWorkers(request, timeout=_ANSWER_SECONDS)
