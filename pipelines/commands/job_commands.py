"""`sparsepo job`: the jobs of a cluster that `submit` has started."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.cluster import Cluster, Job

jobs = typer.Typer(
    no_args_is_help=True, help="Jobs that `submit` has started: list, status, logs, stop."
)
Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard, e.g. http://HEAD:8265; RAY_API_SERVER_ADDRESS by default."
    ),
]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="As `sparsepo submit` has shown it.")]


@jobs.command("list")
def list_jobs(address: Address = None) -> None:
    """The jobs that were submitted to the cluster."""
    from pipelines.cluster import Cluster

    for job in Cluster(address, _warn).jobs():
        print(job.line())


@jobs.command("status")
def job_status(name: JobName, address: Address = None) -> None:
    """State, exit code and command of every attempt."""
    from pipelines.cluster import Cluster

    cluster = Cluster(address, _warn)
    latest = cluster.latest(name)
    for job in cluster.attempts(latest.name):
        print(job.line())


@jobs.command("logs")
def job_logs(
    name: JobName,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends.")] = False,
) -> None:
    """What the job has printed."""
    from pipelines.cluster import Cluster

    cluster = Cluster(address, _warn)
    job = cluster.latest(name)
    if follow:
        follow_job(cluster, job)
    else:
        print(cluster.logs(job), end="")


@jobs.command("stop")
def stop_job(name: JobName, address: Address = None) -> None:
    """End the job; what it has written stays, and the same submission goes on from there."""
    from pipelines.cluster import Cluster

    cluster = Cluster(address, _warn)
    job = cluster.latest(name)
    if job.ended:
        print(f"{job.id} has ended already: {job.status}")
    else:
        cluster.stop(job)
        print(f"{job.id}: asked to stop")


def follow_job(cluster: "Cluster", job: "Job") -> None:
    """Print what the job prints until it ends, and end with its exit code."""
    from pipelines.cluster import exit_code_of

    try:
        job = cluster.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _warn(
            f"error: {job.id} goes on; `{cluster.command('logs', job.name, '--follow')}` shows it, "
            f"`{cluster.command('stop', job.name)}` ends it"
        )
        sys.exit(130)
    _warn(f"{job.id}: {job.status.lower()}")
    if code := exit_code_of(job):
        sys.exit(code)


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
