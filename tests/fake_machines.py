"""A node provider for Ray's autoscaler: Ray's fake machines, each with a directory of its own.

Ray's own ones share one, and a machine that comes removes the packages that the job on the head is running from.
"""

import threading
import uuid
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

_ONE_AT_A_TIME = threading.Lock()
_MAKE = ray._private.parameter.RayParams


class FakeMachines(FakeMultiNodeProvider):
    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        def with_directory(**settings: Any) -> Any:
            return _MAKE(**settings, temp_dir=f"/tmp/machine-{uuid.uuid4().hex[:8]}")

        with _ONE_AT_A_TIME, mock.patch.object(ray._private.parameter, "RayParams", with_directory):
            super()._create_node_with_resources_and_labels(*arguments)
