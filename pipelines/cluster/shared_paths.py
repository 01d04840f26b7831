"""Whether every machine of a cluster sees the run's local paths; object stores always pass."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.cluster.resources import living_nodes
from pipelines.errors import UserError
from pipelines.recipe import Recipe, locations
from pipelines.storage import RunStore

_CURE = (
    "put it on a disk that every machine mounts at the same place, or on an object store (s3://, "
    "gs://)"
)
_PATIENCE_SECONDS = 5.0  # a network disk may show a new file late
_ANSWER_SECONDS = 120.0


def check_shared(recipe: Recipe) -> None:
    """Look from every machine of the cluster for the run's inputs, and for a file written here.

    Raises: UserError naming the key, the path and the machine that does not see it.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    working = [
        node
        for node in living_nodes()
        if node["Resources"].get("CPU", 0) or node["Resources"].get("GPU", 0)
    ]
    others = [node for node in working if node["NodeID"] != here]
    if not others:
        return
    with_marker: dict[str, tuple[str, Path]] = {}
    try:
        inputs = dict(_inputs(recipe))
        for key, path in list(_outputs(recipe)):
            marker = f".tmp-shared-{uuid.uuid4().hex}"
            RunStore(path).write_bytes(marker, b"")
            with_marker[key] = (path, Path(path, marker))
        looked_for = {key: (path, str(marker)) for key, (path, marker) in with_marker.items()}
        looked_for |= {key: (path, path) for key, path in inputs.items()}
        if looked_for:
            _look_everywhere(others, looked_for)
    finally:
        for _, marker_path in with_marker.values():
            marker_path.unlink(missing_ok=True)


def local_paths(named: BaseModel) -> dict[str, str]:
    """Key -> path of all local paths of a recipe, or of another file, that exist and that whoever
    works on it has to see.
    """
    return {
        key: path
        for key, text, location in locations(named)
        if location.is_shared and (path := location.local(text)) is not None
    }


def require_seen(paths: dict[str, str]) -> None:
    """Check that this machine, which does the work, sees the paths.

    It may have joined after `check_shared` asked the others.

    Raises: UserError naming the key, the path and this machine.
    """
    import ray

    for key in _missing(paths):
        raise UserError(
            f"{key} = {paths[key]}: the machine {ray.util.get_node_ip_address()} does not see it: "
            f"{_CURE}"
        )


def _look_everywhere(nodes: list[dict[str, Any]], looked_for: dict[str, tuple[str, str]]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    files = {key: file for key, (_, file) in looked_for.items()}
    look = ray.remote(num_cpus=0, max_retries=2)(_missing)
    asked = {
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(files): node
        for node in nodes
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    for answer in done:
        try:
            missing = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # the machine went away meanwhile: nothing will run there
        for key in missing:
            raise UserError(
                f"{key} = {looked_for[key][0]}: the machine {asked[answer]['NodeManagerAddress']} "
                f"does not see it: {_CURE}"
            )


def _missing(files: dict[str, str]) -> list[str]:
    """Keys of the files that this machine does not see."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        missing = []
        for key, file in files.items():
            try:
                Path(file).stat()
            except OSError:
                missing.append(key)
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.25)


def _outputs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Local directories that stages write and other machines read.

    Finished pairs and stores elsewhere are left out: they may be read-only.
    """
    for key, text, location in locations(recipe):
        if location.is_shared and "://" not in text:
            missing = location.written == "when missing" and location.local(text) is None
            if location.written == "always" or missing:
                yield key, text


def _inputs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Local models, data, files and finished stages that machines read for themselves.

    Names of a hub are none.
    """
    for key, text, location in locations(recipe):
        path = location.local(text)
        if location.is_shared and location.written != "always" and path is not None:
            yield key, path
