"""The jobs of a Ray cluster that `sparsepo submit` starts, through its dashboard."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pipelines.errors import StageFailed, UserError
from pipelines.recipe import Say
from pipelines.storage import did_you_mean

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_REDIRECTS = (301, 302, 303, 307, 308)
_LARGEST_LIST = 2**28  # bytes
_WORKER_COMMAND = re.compile(r"--python_worker_command=(.+?) \S*(?:setup|default)_worker\.py")
_POLL_SECONDS, _PATIENCE_SECONDS = 1.0, 120.0
_TOLD_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """A job of the cluster.

    Attributes:
        name: as the user knows it. id: of this attempt (name, then name-2, ...). digest: of command
            and recipe.
    """

    id: str
    name: str
    status: str
    command: str
    digest: str
    exit_code: int | None = None
    started_ms: int | None = None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    @property
    def attempt(self) -> int:
        return int(self.id.removeprefix(self.name).removeprefix("-") or 1)

    def line(self) -> str:
        started = (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.started_ms / 1000)) + "Z"
            if self.started_ms
            else "not started"
        )
        code = f" (exit code {self.exit_code})" if self.exit_code else ""
        return f"{self.id:<40} {self.status + code:<24} {started:<22} {self.command}"


class Cluster:
    """The jobs of one cluster, through its dashboard.

    Raises: UserError if nothing answers at the address, or if it refuses the token (or the lack of
        one).
    """

    def __init__(self, address: str | None, say: Say) -> None:
        self.address = _checked_address(address)
        token, place = _token()
        _check_access(self.address, token, place, say)
        # Read by Ray when it is imported, and preferred by its client over what it is told.
        os.environ["RAY_AUTH_MODE"] = "token" if token else "disabled"
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        for chatty in (
            "ray.dashboard.modules.dashboard_sdk",
            "ray.dashboard.modules.job.sdk",
            "ray._private.runtime_env.packaging",
        ):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._client = _client(self.address, token)

    def jobs(self) -> list[Job]:
        """Jobs that `sparsepo submit` has started, oldest first."""
        found = [
            _job(details)
            for details in self._client.list_jobs()
            if "sparsepo_name" in (details.metadata or {})
        ]
        return sorted(found, key=lambda job: job.started_ms or 0)

    def attempts(self, name: str) -> list[Job]:
        return sorted((job for job in self.jobs() if job.name == name), key=lambda job: job.attempt)

    def command(self, *words: str) -> str:
        """`sparsepo job` with these words, as it is typed to ask this cluster."""
        return shlex.join(("sparsepo", "job", *words, "--address", self.address))

    def latest(self, name: str) -> Job:
        """The last attempt of a name, or the attempt with that id. UserError if there is none."""
        jobs = self.jobs()
        named = [job for job in jobs if name in (job.name, job.id)]
        if not named:
            known = sorted({job.name for job in jobs})
            raise UserError(
                f"job {name!r}: no such job on {self.address}"
                + (f"; it has {', '.join(known)}" if known else "")
                + did_you_mean(name, known)
            )
        return max(named, key=lambda job: job.attempt)

    def start(
        self, job: Job, entrypoint: Sequence[str], package: Path, environment: dict[str, str]
    ) -> Job:
        """Send the package and start its command.

        UserError if the cluster has a job of that id, or will not have this one.
        """
        try:
            self._client.submit_job(
                entrypoint=shlex.join((self._python(), "-m", "pipelines", *entrypoint)),
                submission_id=job.id,
                runtime_env={
                    "working_dir": str(package),
                    "env_vars": {"PYTHONUNBUFFERED": "1", **environment},
                },
                metadata={
                    "sparsepo_name": job.name,
                    "sparsepo_command": job.command,
                    "sparsepo_digest": job.digest,
                },
            )
        except RuntimeError as error:
            reasons = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{self.address} does not take the job {job.id}: "
                f"{reasons[-1] if reasons else error}"
            ) from error
        return self.latest(job.id)

    def _python(self) -> str:
        """The Python that Ray itself runs with on the head, where jobs start.

        The `python` of its shell may be another, without what the program imports. A dashboard
        that has just started knows it some seconds later.
        """
        limit = time.monotonic() + _TOLD_SECONDS
        while time.monotonic() < limit:
            try:
                answer = self._client._do_request("GET", "/nodes?view=summary").json()
                found = python_of(answer["data"]["summary"])
            except (OSError, RuntimeError, LookupError, TypeError, ValueError):
                break  # it does not tell at all
            if found is not None:
                return found
            time.sleep(_POLL_SECONDS)
        return "python"

    def stop(self, job: Job) -> None:
        self._client.stop_job(job.id)

    def logs(self, job: Job) -> str:
        found: str = self._client.get_job_logs(job.id)
        return found

    def follow(self, job: Job, write: Callable[[str], None]) -> Job:
        """Write the job's output as it comes, until the job ends.

        A connection that breaks is made again.
        """
        shown = 0

        def show(text: str, end: int) -> None:
            nonlocal shown
            if end > shown:
                write(text[len(text) - (end - shown) :])
                shown = end

        async def read() -> None:
            received = 0
            async for text in self._client.tail_job_logs(job.id):
                received += len(text)
                show(text, received)

        while not (job := self._state(job)).ended:
            if job.status != "PENDING":
                with contextlib.suppress(
                    Exception
                ):  # aiohttp's and Ray's; the job's state is asked for next
                    asyncio.run(read())
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(RuntimeError, OSError):  # the machine that had the log is gone
            text = self.logs(job)
            show(text, len(text))
        return job

    def _state(self, job: Job) -> Job:
        """The job as it is now; a dashboard that is gone for a moment is waited for.

        Raises: StageFailed if it stays away.
        """
        limit = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self.latest(job.id)
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
                if time.monotonic() > limit:
                    raise StageFailed(
                        f"{self.address} has not answered for {_PATIENCE_SECONDS:.0f} s; the job "
                        f"may go on: {self.command('logs', job.name, '--follow')}"
                    ) from error
                time.sleep(_POLL_SECONDS)


def python_of(nodes: Sequence[dict[str, Any]]) -> str | None:
    """The Python of the head's workers, by the dashboard's summary of the nodes; None if it does
    not say.
    """
    for node in nodes:
        if not node["raylet"].get("isHeadNode"):
            continue
        for part in node.get("cmdline") or ():
            if found := _WORKER_COMMAND.match(part):
                return found[1].strip('"')
    return None


def _checked_address(address: str | None) -> str:
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ""
    if not found:
        raise UserError(
            "give --address http://HEAD:8265 (or set RAY_API_SERVER_ADDRESS): where the "
            "cluster's dashboard listens"
        )
    if "://" not in found:
        found = f"http://{found}"
    if not re.fullmatch(r"https?://[^/\s]+/?", found):
        raise UserError(
            f"--address {address!r}: must be http://HOST:PORT or https://HOST:PORT of the "
            "cluster's dashboard"
        )
    return found.rstrip("/")


def _token() -> tuple[str | None, str]:
    """(token, where it is from), looked for in Ray's order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).is_file():
        raise UserError(f"RAY_AUTH_TOKEN_PATH = {path!r}: no such file")
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    return (file.read_text().strip() or None, str(file)) if file.is_file() else (None, "")


def _check_access(address: str, token: str | None, place: str, say: Say) -> None:
    """A question without the token first: a cluster that answers it lets everybody in."""
    status = _status(address, None)
    if status == 200:
        say(
            f"warning: {address} answers without a token: whoever reaches it can run code there. "
            "Start Ray with RAY_AUTH_MODE=token (docs/clusters.md)"
        )
        return
    if status not in (401, 403):
        raise UserError(
            f"--address {address}: no Ray dashboard answers there (HTTP status {status})"
        )
    if token is None:
        raise UserError(
            f"{address} wants a token: put the cluster's into ~/.ray/auth_token, or name its file "
            "in RAY_AUTH_TOKEN_PATH"
        )
    if (refused := _status(address, token)) != 200:
        raise UserError(f"{address} refuses the token of {place} (HTTP status {refused})")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Python's own takes the token along to any host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _status(address: str, token: str | None) -> int:
    """The status of a question for the cluster's jobs; 200 only with a list of jobs.

    Raises: UserError if nothing answers, or another page does (a login's, say), or a redirect.
    """
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=30) as answer:
            status: int = answer.status
            try:
                is_list = isinstance(json.loads(answer.read(_LARGEST_LIST)), list)
            except ValueError:
                is_list = False
    except urllib.error.HTTPError as error:
        if error.code in _REDIRECTS:
            raise UserError(_redirected(address, error.headers.get("Location"))) from error
        return error.code
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({getattr(error, 'reason', error)})"
        ) from error
    if status != 200 or not is_list:
        raise UserError(
            f"--address {address}: no Ray dashboard answers there (HTTP status {status}, but no "
            "list of jobs: a login page, perhaps)"
        )
    return status


def _redirected(address: str, location: str | None) -> str:
    """The line that refuses a redirect; of its target no more than the host."""
    host = urlsplit(urljoin(address, location or "")).netloc.rpartition("@")[2]
    return (
        f"--address {address}: it redirects to {host}, and the token follows no redirect; name "
        "the dashboard itself"
    )


def _client(address: str, token: str | None) -> "JobSubmissionClient":
    """Ray's client, following no redirect: what it sends holds the token and the job."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            response = super()._do_request(method, endpoint, allow_redirects=False, **kwargs)
            if response.status_code in _REDIRECTS:
                raise UserError(_redirected(address, response.headers.get("Location")))
            return response

    return Client(address, headers={"Authorization": f"Bearer {token}"} if token else None)


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        name=details.metadata["sparsepo_name"],
        status=str(details.status.value),
        command=details.metadata["sparsepo_command"],
        digest=details.metadata["sparsepo_digest"],
        exit_code=details.driver_exit_code,
        started_ms=details.start_time,
    )


def exit_code_of(job: Job) -> int:
    """What the command itself would have ended with; a stopped job counts as interrupted."""
    if job.status == "STOPPED":
        return 130
    if job.status == "SUCCEEDED":
        return 0
    return job.exit_code or 1
