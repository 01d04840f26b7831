"""Runs generated programs against their tests where they can do no harm, or not at all.

Every program gets processes, files, network and users of its own (Linux namespaces), through
sandbox_init.py; its tests run in a second such place (sandbox_program.py says why). What this does
not stop: reading world-readable files below /usr and the interpreter's own directory, and faults of
the kernel.

Memory is watched, not held by a cgroup: containers may write to none, and a verdict should not
depend on the machine.
"""

import fcntl
import itertools
import json
import os
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError
from pipelines.evaluate.sandbox_calls import system_call_filter

_INIT = (Path(__file__).parent / "sandbox_init.py").read_text()
_PROGRAM = (Path(__file__).parent / "sandbox_program.py").read_text()
_ISOLATED, _MEMORY = b"isolated", b"memory"  # what sandbox_init.py reports
_LONGEST_ANSWER, _LONGEST_MESSAGE = 2**16, 300  # bytes, characters
_SEALS = fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_UIDS = 1 << 30  # above any account; each sandbox its own, so that process limits count it alone
_numbers = itertools.count(os.getpid() << 12)


@dataclass(frozen=True)
class Limits:
    """Of one program; the wall clock runs from its start, the other limits are per process.

    Attributes:
        memory_bytes: address space; also what all processes together hold. file_bytes: largest
            file, and all files together. processes: threads count.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 2**29
    file_bytes: int = 2**22
    processes: int = 16
    open_files: int = 64

    def resources(self) -> dict[str, int]:
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_SIGPENDING": 256,
        }


@dataclass(frozen=True)
class Verdict:
    """status: passed; failed = an assertion, an error or an early end, said by message; timeout."""

    status: Literal["passed", "failed", "timeout"]
    message: str = ""


def require_isolation() -> None:
    """UserError saying what is missing if programs cannot be isolated on this machine."""
    verdict = run_program("def answer():\n    return 42\n", "assert answer() == 42\n", Limits())
    if verdict.status != "passed":
        raise UserError(
            "generated code is not run here, because the sandbox does not work: "
            f"{verdict.message or verdict.status}"
        )


def run_programs(
    programs: list[tuple[str, str]], limits: Limits, at_once: int | None = None
) -> list[Verdict]:
    """Verdicts of (program, tests) pairs, in order.

    `at_once` of them run side by side, by default as many as there are cores.
    """
    with ThreadPoolExecutor(at_once or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda pair: run_program(pair[0], pair[1], limits), programs))


def run_program(program: str, tests: str, limits: Limits) -> Verdict:
    """Whether the tests, which call the program's functions, all hold.

    Raises: UserError if the machine cannot isolate a program; nothing has run then.
    """
    if not sys.platform.startswith("linux"):
        raise UserError(
            f"generated code is not run on {sys.platform}: isolating it needs Linux namespaces"
        )
    filtered = system_call_filter()
    deadline = time.monotonic() + limits.wall_seconds
    to_candidate, to_tester, reports = os.pipe(), os.pipe(), (os.pipe(), os.pipe())
    ends = (to_candidate[0], to_tester[1], reports[0][1])
    candidate = _start("candidate", program, limits, filtered, ends)
    ends = (to_tester[0], to_candidate[1], reports[1][1])
    tester = _start("tester", tests, limits, filtered, ends)
    for descriptor in (*to_candidate, *to_tester, reports[0][1], reports[1][1]):
        os.close(descriptor)
    answer, timed_out = _answer(tester, deadline)
    stopped = {candidate: candidate.poll() is None, tester: tester.poll() is None}
    for process in (tester, candidate):
        process.kill()
        process.wait()
    said = {
        process: _read(report)
        for process, (report, _) in zip((candidate, tester), reports, strict=True)
    }
    for process, report in said.items():
        # Not by exit code or output: what runs inside chooses those.
        if report not in (_ISOLATED, _ISOLATED + _MEMORY) and not (
            stopped[process] and report == b""
        ):
            reason = (
                report.removeprefix(_ISOLATED).decode(errors="replace").strip()[:200]
                or "the sandbox ended before the program began"
            )
            raise UserError(
                f"generated code is not run here, because it cannot be isolated: {_cure(reason)}"
            )
    for process, who in ((candidate, "the program's"), (tester, "the tests'")):
        if said[process].endswith(_MEMORY):
            ceiling = f"{limits.memory_bytes / 2**20:g} MiB"
            return Verdict("failed", f"{who} processes together hold more than {ceiling}")
    if timed_out:
        return Verdict("timeout", f"not done after {limits.wall_seconds:g} s")
    return _verdict(answer, tester.returncode)


def _answer(tester: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """(what the tests say, whether time ran out first); no more than the longest is read."""
    assert tester.stdout is not None
    ready = select.poll()
    ready.register(tester.stdout, select.POLLIN)
    said = b""
    with tester.stdout as pipe:
        while len(said) <= _LONGEST_ANSWER:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return said, True
            piece = os.read(pipe.fileno(), _LONGEST_ANSWER)
            if not piece:
                tester.wait()
                break
            said += piece
    return said, False


def _verdict(answer: bytes, exit_code: int) -> Verdict:
    """What the tests said, cut to one readable line."""
    try:
        found = json.loads(
            answer[4:] if int.from_bytes(answer[:4], "big") == len(answer) - 4 else ""
        )
        passed, message = found["passed"] is True, str(found["message"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return Verdict("failed", f"the tests ended with exit code {exit_code}")
    message = "".join(c if c.isprintable() else " " for c in message[:_LONGEST_MESSAGE])
    return Verdict("passed" if passed else "failed", message)


def _cure(reason: str) -> str:
    """The reason, and what to do where a container or a kernel gives no namespaces."""
    if not reason.startswith(("unshare:", "mount ", "sandbox: PermissionError")):
        return reason
    return (
        f"{reason} (this machine or container gives no namespaces: allow user namespaces with "
        "`sysctl user.max_user_namespaces` and `kernel.apparmor_restrict_unprivileged_userns=0`, "
        "or start the container with CAP_SYS_ADMIN and a seccomp profile that allows unshare and "
        "mount)"
    )


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as pipe:
        return pipe.read()


def _start(
    role: str, text: str, limits: Limits, filtered: bytes, ends: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """A sandbox with its ends of pipes: to read from, to write to, to report by."""
    read, write, report = ends
    interpreter = os.path.realpath(sys.executable)
    settings = {
        "parent": os.getpid(),
        "prefixes": sorted({os.path.realpath(sys.base_prefix), str(Path(interpreter).parent)}),
        "disk_bytes": limits.file_bytes,
        "memory_bytes": limits.memory_bytes,
        "uid": _spare_user(),
        "limits": limits.resources(),
        "filter": filtered.hex(),
        "report": report,
        "command": [interpreter, "-I", "-S", "-B", "-c", _PROGRAM, role, str(read), str(write)],
    }
    source = os.memfd_create("source", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(source, "wb", closefd=False) as file:
            file.write(text.encode(errors="surrogatepass"))  # what is no text fails inside
        os.lseek(source, 0, os.SEEK_SET)
        fcntl.fcntl(source, *_SEALS)
        return subprocess.Popen(
            [interpreter, "-I", "-S", "-B", "-c", _INIT, json.dumps(settings)],
            stdin=source,
            stdout=subprocess.PIPE if role == "tester" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read, write, report),
            env={},
            cwd="/",
        )
    finally:
        os.close(source)


def _spare_user() -> int:
    """A user of its own for a sandbox that root starts; 0 where root has no such users to give."""
    if os.geteuid() != 0:
        return 0
    user = _UIDS + next(_numbers) % _UIDS
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= user < first + count:
            return user
    return 0
