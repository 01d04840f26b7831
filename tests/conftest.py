"""Shared fixtures: a tiny model and pairs made on the spot, one local Ray for the session."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# Where the tests' own object store will listen: Ray's processes inherit it, so it is settled before
# they start. The port stays bound, so that nobody else gets it meanwhile; the server may have it.
with socket.socket() as _probe:
    _probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _probe.bind(("0.0.0.0", 0))
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{_probe.getsockname()[1]}"
    _HELD = _probe.dup()
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Ray makes its workers yield to everything else (15); beside other work the tests would starve.
    "RAY_worker_niceness": "0",
    # An actor of its own would count what Ray's users use of its data library.
    "RAY_USAGE_STATS_ENABLED": "0",
}

from ranks import Ranks
from ray_tables import living_actors, places
from runs import MakeRecipe, tiny_recipe

from pipelines.commands.quickstart_world import (
    TEST_OPENINGS,
    TRAIN_OPENINGS,
    continuation,
    opening,
    write_untrained_model,
)
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import RaySection, Recipe

# Parts of the example that test_new_objective.py puts into a copy of the packages.
collect_ignore = ["integration/new_objective"]

# Files that take longest, in this order: with several workers none of them is begun last.
LONGEST = (
    "integration/test_many_hosts.py",
    "integration/test_quickstart.py",
    "integration/test_training_failures.py",
    "pipelines/sweep/test_tune.py",
    "integration/test_autoscaling.py",
    "pipelines/train/test_training.py",
    "integration/test_sweep_kills.py",
    "pipelines/evaluate/test_benchmarks.py",
    "integration/test_kill.py",
    "pipelines/evaluate/test_schedule.py",
    "integration/test_reference_kills.py",
    "pipelines/commands/test_damaged_files.py",
    "pipelines/models/test_model_families.py",
    "pipelines/train/test_objective_training.py",
    "pipelines/train/test_strategies.py",
    "pipelines/commands/test_stages.py",
    "pipelines/commands/test_packaged_recipes.py",
    "pipelines/commands/test_security.py",
    "pipelines/train/test_mask_training.py",
    "pipelines/train/test_compilation.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive", action="store_true", help="also what `make test-exhaustive` runs"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the longest files first, all others as they were; the exhaustive ones on request."""
    if not config.getoption("--exhaustive"):
        asked: list[pytest.Item] = []
        left: list[pytest.Item] = []
        for item in items:
            (left if item.get_closest_marker("exhaustive") else asked).append(item)
        config.hook.pytest_deselected(items=left)
        items[:] = asked
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    """120 preference rows of the quickstart's grammar."""
    rng = random.Random(7)
    return [
        {
            "prompt": opening(rng, TRAIN_OPENINGS + TEST_OPENINGS),
            "chosen": continuation(rng),
            "rejected": continuation(rng),
        }
        for _ in range(120)
    ]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    """An untrained Llama of about a million parameters with its own tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_untrained_model(folder, [r["prompt"] + r["chosen"] + r["rejected"] for r in rows], seed=3)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """One local Ray with two CPUs for all tests of the session.

    Actors that import torch are slow tests' alone: without these it has no warm process.
    """
    from pipelines.cluster.session import ray_session

    has_slow = any(item.get_closest_marker("slow") for item in request.session.items)
    with ray_session(RaySection(num_cpus=2, warm_workers=has_slow)):
        yield


@pytest.fixture
def ray_environment(ray_cluster: None) -> Iterator[dict[str, str]]:
    """The environment of a process that joins the session's Ray instead of starting its own.

    Its workers import what it imports: Ray puts its working directory in front of theirs.
    Afterwards nothing that such a process has started holds a CPU, whether it was killed or not.
    """
    import ray

    yield {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    if not comes_free():
        left = taken_away()
        assert comes_free() and not left, f"CPUs are taken a minute after the test; left: {left}"


def comes_free() -> bool:
    """Whether all CPUs of the session's Ray are free; waits while they become so."""
    import ray

    seen, limit = -1.0, 0.0
    while (free := ray.available_resources().get("CPU", 0.0)) < ray.cluster_resources()["CPU"]:
        if free != seen:
            seen, limit = free, time.monotonic() + 60
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def taken_away() -> list[str]:
    """End what holds a part of the session's Ray, so that no other test waits for it.

    Returns: what other processes than this one left; this one's places go with its last command.
    """
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    mine = ray.get_runtime_context().get_job_id()
    actors, groups = living_actors(), places()
    for actor in actors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(actor.pid, signal.SIGKILL if actor.pid else 0)
    for group in groups:
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
    # An id of a group ends with that of its job.
    return [str(actor) for actor in actors if actor.job != mine] + [
        str(told) for group, told in groups.items() if not group.endswith(mine)
    ]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two processes that train together, without Ray."""
    pair = Ranks(2)
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def recipe_in(model_dir: Path, pairs_file: Path) -> MakeRecipe:
    """A recipe on the tiny model: recipe_in(run_dir, "train.seed=1", ..., paths=...)."""

    def make(run_dir: Path | str, *overrides: str, **top: Any) -> Recipe:
        return validate_recipe({**tiny_recipe(run_dir, model_dir, pairs_file), **top}, overrides)

    return make


@pytest.fixture
def make_recipe(tmp_path: Path, recipe_in: MakeRecipe) -> MakeRecipe:
    """The same in a run directory of the test's own: make_recipe("train.seed=1", ...,
    run_dir=...).
    """

    def make(*overrides: str, **top: Any) -> Recipe:
        return recipe_in(top.pop("run_dir", tmp_path / "run"), *overrides, **top)

    return make
