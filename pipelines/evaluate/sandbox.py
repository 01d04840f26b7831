"""Runs generated programs against their tests where they can do no harm, or not at all.

Every program gets processes, files, network and users of its own (Linux namespaces), through
sandbox_init.py; its tests run in a second such place (sandbox_program.py says why). What this does
not stop: reading world-readable files below /usr and the interpreter's own directory, and faults of
the kernel.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError

_INIT = (Path(__file__).parent / "sandbox_init.py").read_text()
_PROGRAM = (Path(__file__).parent / "sandbox_program.py").read_text()
_ISOLATED = b"isolated"
_UIDS = 1 << 30  # above any account; each sandbox its own, so that process limits count it alone
_numbers = itertools.count(os.getpid() << 12)


@dataclass(frozen=True)
class Limits:
    """Of one program; the wall clock runs from its start, the other limits are per process.

    Attributes:
        memory_bytes: address space. file_bytes: largest file, and all files together. processes:
            threads count.
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
    with tempfile.TemporaryDirectory(prefix="sparsepo-sandbox-") as folder:
        to_candidate, to_tester, reports = os.pipe(), os.pipe(), (os.pipe(), os.pipe())
        candidate = _start(
            "candidate", program, Path(folder), limits, to_candidate[0], to_tester[1], reports[0][1]
        )
        tester = _start(
            "tester", tests, Path(folder), limits, to_tester[0], to_candidate[1], reports[1][1]
        )
        for descriptor in (*to_candidate, *to_tester, reports[0][1], reports[1][1]):
            os.close(descriptor)
        try:
            answer = tester.communicate(timeout=limits.wall_seconds)[0]
            timed_out = False
        except subprocess.TimeoutExpired:
            tester.kill()
            answer = tester.communicate()[0]
            timed_out = True
        stopped = {candidate: candidate.poll() is None, tester: timed_out}
        candidate.kill()
        candidate.wait()
        said = {
            process: _read(report)
            for process, (report, _) in zip((candidate, tester), reports, strict=True)
        }
    for process, report in said.items():
        # Not by exit code or output: what runs inside chooses those.
        if report != _ISOLATED and not (stopped[process] and report == b""):
            reason = (
                report.removeprefix(_ISOLATED).decode(errors="replace").strip()[:200]
                or "the sandbox ended before the program began"
            )
            raise UserError(
                f"generated code is not run here, because it cannot be isolated: {reason}"
            )
    if len(answer) > 4 and len(answer) == 4 + int.from_bytes(answer[:4], "big"):
        found = json.loads(answer[4:])
        return Verdict("passed" if found["passed"] else "failed", found["message"])
    if timed_out:
        return Verdict("timeout", f"not done after {limits.wall_seconds:g} s")
    return Verdict("failed", f"the tests ended with exit code {tester.returncode}")


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as pipe:
        return pipe.read()


def _start(
    role: str, text: str, folder: Path, limits: Limits, read: int, write: int, report: int
) -> subprocess.Popen[bytes]:
    source, root = folder / f"{role}.txt", folder / role
    source.write_bytes(text.encode(errors="surrogatepass"))  # what is no text fails inside
    root.mkdir()
    interpreter = os.path.realpath(sys.executable)
    settings = {
        "root": str(root),
        "prefixes": sorted({os.path.realpath(sys.base_prefix), str(Path(interpreter).parent)}),
        "disk_bytes": limits.file_bytes,
        "uid": _UIDS + next(_numbers) % _UIDS,
        "limits": limits.resources(),
        "report": report,
        "command": [interpreter, "-I", "-S", "-B", "-c", _PROGRAM, role, str(read), str(write)],
    }
    with source.open("rb") as stdin:
        return subprocess.Popen(
            [interpreter, "-I", "-S", "-B", "-c", _INIT, json.dumps(settings)],
            stdin=stdin,
            stdout=subprocess.PIPE if role == "tester" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read, write, report),
            env={},
            cwd="/",
        )
