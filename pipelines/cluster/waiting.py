"""Processes of a Ray of our own that wait for work: started, and imports done, before it is there.

An actor takes a process that has never had work, and each is taken once. Ray starts one when an
actor needs it, which then waits for its imports.
"""

import contextlib
import os

from pipelines.cluster import early
from pipelines.models import quick_imports

_KEPT_SECONDS = 24 * 3600  # of a process that nobody asks for anything
_ANSWER_SECONDS = 10.0


def start_waiting(count: int) -> None:
    """Have Ray start so many processes that import early; returns before they are there.

    Does nothing where none imports early. A Ray that does not answer starts them when they are
    needed.
    """
    if early.EARLY not in os.environ:
        return
    with quick_imports():
        import grpc  # type: ignore[import-untyped]
        import ray
        from ray._private.grpc_utils import init_grpc_channel
        from ray._private.worker import global_worker
        from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    node = global_worker.node
    early.ask_for(count, early.claims_of(node))
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
