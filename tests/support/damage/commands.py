"""The readers that are commands, through the command line: its output and its exit code."""

import io
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from local_executor import LocalExecutor

from damage import readers as by
from damage.readers import Reader, Said
from damage.world import World
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.cli import main
from pipelines.errors import UserError

Found = Callable[[World, str], Any]


def _printed(world: World, text: str) -> Any:
    return text


def _left(folder: str, *patterns: str) -> Found:
    return lambda world, text: by.hashes(world.folder / folder, *patterns)


def _command(reader: Reader, found: Found, *words: str) -> Reader:
    """The command line of a reader, and what is compared of it.

    It ends well, or with one line that begins with `error: `; what else it prints is said.
    """

    def read(world: World, said: Said) -> Any:
        given = [word.replace("WORLD", str(world.folder)) for word in words]
        out, errors, code = io.StringIO(), io.StringIO(), 0
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with executed_by(LocalExecutor()), redirect_stdout(out), redirect_stderr(errors):
                main(given)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            signal.signal(signal.SIGTERM, handler)
        said += [*out.getvalue().splitlines(), *errors.getvalue().splitlines()]
        failed = [line for line in said if line.startswith("error: ")]
        assert "Traceback" not in errors.getvalue(), errors.getvalue()
        assert len(failed) == (code != 0), said
        if failed:  # a check of many files has a line for each before
            bad = [line for line in said if "damaged" in line or " is missing: " in line]
            named = [line.strip() for line in bad if line not in failed]
            raise UserError("; ".join([failed[0].removeprefix("error: "), *named]))
        return found(world, out.getvalue())

    read.__name__ = f"sparsepo {words[0]}"
    if before := getattr(reader, "before", None):
        read.before = before  # type: ignore[attr-defined]
    return read


_RUN, _HALF, _SWEEP = "WORLD/run.yaml", "WORLD/half.yaml", ("best.yaml", "trials.csv")
_RESULTS, _GATES = "run/report", "checkpoints/*/gates.json"
_EVALUATION, _CODE = "run/evaluation", "run/evaluation/code"
# Training and a sweep that goes on are not among them: what takes their time are Ray's processes.
COMMANDS: dict[Reader, Reader] = {
    reader: _command(reader, *rest)
    for reader, *rest in (
        (by.status, _printed, "status", "WORLD/run"),
        (by.status_half, _printed, "status", "WORLD/half"),
        (by.timeline, _printed, "status", "WORLD/run", "--timeline"),
        (by.plan, _printed, "plan", _RUN),
        (by.of_files, _printed, "plan", _RUN, "run_dir=WORLD/new"),
        (by.show, _printed, "prepare", _RUN, "--show", "3"),
        (by.check, _left("run/reference", "*/*.parquet"), "reference", _RUN, "--check"),
        (by.report, _left("out/report", "*.json"), "report", "WORLD/run", "--output", "WORLD/out"),
        (by.run, _left(_RESULTS, "results.json"), "run", _RUN),
        (by.evaluate, _left("half/evaluation", "samples/*"), "evaluate", _HALF),
        (by.evaluate_again, _left(_EVALUATION, "samples/*"), "evaluate", _RUN),
        (by.execute, _left(_CODE, "verdicts.jsonl"), "evaluate", _RUN, "--allow-code-execution"),
        (by.sample, _left("half/sample", "candidates.jsonl"), "sample", _HALF),
        (by.schedule, _left(_EVALUATION, _GATES), "schedule", _RUN, "--once"),
        (by.look_at_gates, _left(_EVALUATION, _GATES), "schedule", _RUN, "--once"),
        (by.sweep_status, _printed, "status", "WORLD/sweep"),
        (by.tune, _left("sweep", *_SWEEP), "tune", "WORLD/sweep.yaml"),
    )
}
