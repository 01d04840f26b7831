"""A node provider for Ray's autoscaler: Ray's fake machines, each with a directory of its own, and
SPOT_MACHINES spot ones at most.

Ray's own ones share one directory, and a machine that comes removes the packages that the job on
the head is running from.
"""

import os
import threading
import uuid
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

_ONE_AT_A_TIME = threading.Lock()
_MAKE = ray._private.parameter.RayParams


class FakeMachines(FakeMultiNodeProvider):
    spot_left = int(os.environ.get("SPOT_MACHINES", "9"))

    def _create_node_with_resources_and_labels(
        self, config: Any, tags: dict[str, str], count: int, *more: Any
    ) -> None:
        def with_directory(**settings: Any) -> Any:
            return _MAKE(**settings, temp_dir=f"/tmp/machine-{uuid.uuid4().hex[:8]}")

        with _ONE_AT_A_TIME, mock.patch.object(ray._private.parameter, "RayParams", with_directory):
            is_spot = tags[TAG_RAY_USER_NODE_TYPE] == "spot_gpu"
            found = min(count, FakeMachines.spot_left) if is_spot else count
            if is_spot:
                FakeMachines.spot_left -= found
            if found:
                super()._create_node_with_resources_and_labels(config, tags, found, *more)
        if found < count:
            raise RuntimeError(f"no capacity for {count - found} spot machines")
