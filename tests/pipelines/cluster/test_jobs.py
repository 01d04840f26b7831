"""Jobs of a cluster: which attempt is the last, and what one ends with."""

import random
import re
import sys
import tomllib

import pytest
from checkout import ROOT

from pipelines.__main__ import OLDEST, REQUIRED, obstacle
from pipelines.cluster.jobs import Cluster, Job, exit_code_of, python_of
from pipelines.errors import UserError


def job(id: str, name: str, status: str = "FAILED", code: int | None = None) -> Job:
    return Job(id, name, status, "run mine.yaml", "digest", code)


class Known(Cluster):
    """Some jobs, without a dashboard."""

    def __init__(self, jobs: list[Job]) -> None:
        self.address, self._known = "http://head:8265", jobs

    def jobs(self) -> list[Job]:
        return self._known


def test_the_tenth_attempt_comes_after_the_ninth() -> None:
    """Of a name that ends in a number itself."""
    ids = ["night-2", *(f"night-2-{number}" for number in range(2, 12))]
    jobs = [*(job(id, "night-2") for id in ids), job("noon", "noon")]
    random.Random(0).shuffle(jobs)
    cluster = Known(jobs)
    assert [found.id for found in cluster.attempts("night-2")] == ids
    assert cluster.latest("night-2").id == "night-2-11"
    assert cluster.latest("night-2-9").id == "night-2-9"
    with pytest.raises(UserError, match=r"job 'dawn': no such job on .*; it has night-2, noon"):
        cluster.latest("dawn")


def test_what_to_type_next_names_the_cluster() -> None:
    cluster = Known([job("night", "night")])
    typed = "sparsepo job logs night --follow --address http://head:8265"
    assert cluster.command("logs", "night", "--follow") == typed
    with pytest.raises(UserError, match=r"it has night; did you mean 'night'\?"):
        cluster.latest("nigth")


def test_the_python_that_ray_runs_with() -> None:
    """As a dashboard tells of its nodes: the head's, also with a blank in its path."""

    def node(python: str, is_head: bool) -> dict[str, object]:
        command = f"{python} /lib/ray/_private/workers/setup_worker.py /lib/default_worker.py --x"
        told = ["/lib/raylet", "--node_id=a", f"--python_worker_command={command}"]
        return {"raylet": {"isHeadNode": is_head}, "cmdline": told}

    nodes = [node("/usr/bin/python3", False), node("/opt/venv/bin/python", True)]
    assert python_of(nodes) == "/opt/venv/bin/python"
    assert python_of([node('"/my venv/bin/python"', True)]) == "/my venv/bin/python"
    assert python_of([{"raylet": {"isHeadNode": True}, "cmdline": []}]) is None
    assert python_of(nodes[:1]) is None


def test_what_a_python_lacks_is_said() -> None:
    assert obstacle() == ""
    lacks = obstacle(required=("json", "nothing_of_that_name", "another_one"))
    assert lacks.startswith(f"{sys.executable} (Python ")
    assert "lacks nothing_of_that_name, another_one: start Ray with the Python" in lacks
    assert "(Python 3.9) is too old: Python 3.11 is needed" in obstacle(version=(3, 9))


def test_all_dependencies_are_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[><=]", text)[0] for text in project["dependencies"]}
    imported = {"pyyaml": "yaml", "rouge-score": "rouge_score"}
    assert {imported.get(name, name) for name in names} == set(REQUIRED)
    oldest = f">={OLDEST[0]}.{OLDEST[1]}"
    assert project["requires-python"] == oldest


def test_a_job_ends_as_its_command_did() -> None:
    ends = [("SUCCEEDED", 0), ("FAILED", 3), ("FAILED", None), ("STOPPED", None), ("STOPPED", 1)]
    assert [exit_code_of(job("a", "a", *end)) for end in ends] == [0, 3, 1, 130, 130]
