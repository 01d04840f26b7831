"""execute: run the code benchmark's sampled programs against their tests, in sandboxes.

It is a step of its own, started only on request.
"""

import json
from dataclasses import dataclass
from typing import Any

from evaluation.benchmarks.code import code_benchmark
from pipelines.cluster import Pool, local_paths, run_tasks
from pipelines.errors import UserError
from pipelines.evaluate.code_tasks import read_code_tasks
from pipelines.evaluate.history import append_history
from pipelines.evaluate.sandbox import Limits, require_isolation, run_programs
from pipelines.recipe import (
    CODE_SAMPLES,
    MANIFEST,
    VERDICTS,
    CodeSection,
    Run,
    StageRecord,
    read_manifest,
)
from pipelines.storage import TaskResults, read_lines

_PROGRAMS_PER_TASK = 64
_SAMPLED = {"task_id": str, "start_texts": list, "policy_texts": list}


@dataclass(frozen=True)
class RunPrograms:
    """Run programs, each with its tests."""

    number: int
    programs: tuple[tuple[str, str], ...]
    kind = "programs"


def run_execute(run: Run, record: StageRecord, quiet: bool = False) -> dict[str, Any]:
    """Run every program in evaluation/samples/code.jsonl; returns the manifest.

    Needs a running Ray.

    Raises: UserError if a machine that would run them cannot isolate them; nothing has run there
        then.
    """
    recipe, section = run.recipe, run.recipe.evaluate.code
    assert section is not None
    tasks = {task.task_id: task for task in read_code_tasks(section)}
    evaluation = run.paths.evaluation
    require_isolation()
    record.begin()
    known = read_manifest(evaluation)["outputs"].get(CODE_SAMPLES)
    cure = f"remove {MANIFEST} beside its folder and run `sparsepo evaluate` again"
    samples = read_lines(evaluation, CODE_SAMPLES, _SAMPLED, known, cure)
    if unknown := sorted({row["task_id"] for row in samples} - tasks.keys()):
        raise UserError(f"evaluate.code.tasks = {section.tasks!r}: no task is {unknown[0]!r} now")
    programs = [
        (row["task_id"], who, tasks[row["task_id"]].program(text), tasks[row["task_id"]].tests)
        for row in samples
        for who in ("start", "policy")
        for text in row[f"{who}_texts"]
    ]
    chunks = [
        RunPrograms(number, tuple(p[2:] for p in programs[first : first + _PROGRAMS_PER_TASK]))
        for number, first in enumerate(range(0, len(programs), _PROGRAMS_PER_TASK))
    ]
    parts = TaskResults(record.store)
    todo = parts.missing(chunks)
    pool = Pool(
        "execute",
        recipe.ray,
        local_paths(recipe),
        recipe.evaluate.num_actors,
        gpus_per_actor=0,
        lighter="lower evaluate.code.num_runners or evaluate.code.memory_mib",
    )
    parts.add(todo, run_tasks(todo, ProgramRunner, section, pool, quiet))
    verdicts = [verdict for found in parts.results(chunks) for verdict in found]
    records = {
        row["task_id"]: {
            "task_id": row["task_id"],
            "start_passed": [],
            "policy_passed": [],
            "start_timeout": 0,
            "policy_timeout": 0,
        }
        for row in samples
    }
    lines = []
    for (task_id, who, program, _), (status, message) in zip(programs, verdicts, strict=True):
        records[task_id][f"{who}_passed"].append(status == "passed")
        records[task_id][f"{who}_timeout"] += status == "timeout"
        lines.append(
            json.dumps(
                {
                    "task_id": task_id,
                    "model": who,
                    "status": status,
                    "message": message,
                    "program": program,
                }
            )
        )
    result = code_benchmark(list(records.values()), section.k)
    record.store.write_bytes(VERDICTS, "".join(line + "\n" for line in lines).encode())
    append_history(evaluation, {"code": result}, record, None)
    manifest = record.finish({"benchmarks": ["code"], "results": {"code": result}})
    parts.clear()
    return manifest


class ProgramRunner:
    """Actor: runs programs on its node, several at once."""

    def __init__(self, section: CodeSection) -> None:
        self._limits = Limits(
            wall_seconds=section.timeout_seconds,
            cpu_seconds=max(1, round(section.timeout_seconds)),
            memory_bytes=section.memory_mib * 2**20,
        )
        self._at_once = section.num_runners

    def __call__(self, task: RunPrograms) -> list[tuple[str, str]]:
        found = run_programs(list(task.programs), self._limits, self._at_once)
        return [(verdict.status, verdict.message) for verdict in found]
