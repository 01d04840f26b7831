"""Jobs of a cluster: which attempt is the last, and what one ends with."""

import random

import pytest

from pipelines.cluster.jobs import Cluster, Job, exit_code_of
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


def test_a_job_ends_as_its_command_did() -> None:
    ends = [("SUCCEEDED", 0), ("FAILED", 3), ("FAILED", None), ("STOPPED", None), ("STOPPED", 1)]
    assert [exit_code_of(job("a", "a", *end)) for end in ends] == [0, 3, 1, 130, 130]
