"""How a command ends that fails or is stopped: one line, an exit code, what to type to go on."""

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any


class Terminated(BaseException):
    """Somebody ends this process (SIGTERM)."""


def end_of_process(*_: Any) -> None:
    raise Terminated


def way_on(arguments: Sequence[str]) -> str:
    """What to type to go on with a command that was stopped; nothing for one that has no work."""
    from pipelines.commands.stages import STAGES

    name = next((part for part in arguments if not part.startswith("-")), "")
    if name not in {
        "run",
        "sft",
        "tune",
        "merge",
        "schedule",
        "quickstart",
        "export",
        *(s.name for s in STAGES),
    }:
        return ""
    resume = ["--resume"] if name == "tune" and "--resume" not in arguments else []
    return f"; go on with: {shlex.join(['sparsepo', *arguments, *resume])}"


def fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def fail_at_once(message: str, code: int) -> None:
    """End without Python's own clearing up: a stage's thread may still be in Ray.

    It would run on while the interpreter is taken down, and crash. Nothing is lost: whoever holds
    files or processes has let go of them by now.
    """
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
