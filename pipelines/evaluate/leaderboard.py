"""lm-evaluation-harness on a model in memory.

Only what a task file names is fetched. No code of a task is run.
"""

import copy
import difflib
import functools
import hashlib
from importlib import metadata, util
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models import ResponseEnds, generation_config
from pipelines.recipe import LeaderboardSection


def check_tasks(section: LeaderboardSection) -> None:
    """UserError if the harness is not installed, or does not know a task."""
    if util.find_spec("lm_eval") is None:
        raise UserError(
            "evaluate.benchmarks names leaderboard: install lm-evaluation-harness with `pip "
            "install sparsepo[leaderboard]`"
        )
    known = _manager(section).all_tasks
    for task in section.tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            raise UserError(
                f"evaluate.leaderboard.tasks: no task {task!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )


def task_files_hash(include_path: str) -> str:
    """Content hash of a directory of task files. UserError if there is none."""
    folder = Path(include_path)
    if not folder.is_dir():
        raise UserError(f"evaluate.leaderboard.include_path = {include_path!r}: no such directory")
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:32]


def run_tasks_of(
    section: LeaderboardSection, causal_lm: Any, tokenizer: Any, ends: ResponseEnds, seed: int
) -> dict[str, Any]:
    """The section's tasks on a model. What it generates stops at `ends`, and where a task says.

    Returns: values: task -> metric -> one number per document, in order; settings: how the harness
        was run.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    own = copy.deepcopy(tokenizer)  # the harness gives it a padding token
    model = HFLM(pretrained=causal_lm, tokenizer=own, batch_size=section.batch_size)
    config = copy.deepcopy(causal_lm.generation_config)
    config.eos_token_id = list(ends.ids)
    with generation_config(causal_lm, config):
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=list(section.tasks),
            task_manager=_manager(section),
            num_fewshot=section.num_fewshot,
            limit=section.limit,
            apply_chat_template=section.apply_chat_template,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    values: dict[str, dict[str, list[float]]] = {}
    for task, documents in results["samples"].items():
        ordered = sorted(
            documents, key=lambda document: (document.get("filter", ""), document["doc_id"])
        )
        for metric in ordered[0]["metrics"]:
            numbers = [document[metric] for document in ordered]
            if all(isinstance(number, int | float) for number in numbers):
                values.setdefault(task, {})[metric] = [float(number) for number in numbers]
    template = getattr(tokenizer, "chat_template", None) if section.apply_chat_template else None
    settings = {
        "lm_eval": metadata.version("lm_eval"),
        "batch_size": section.batch_size,
        "num_fewshot": dict(results["n-shot"]),
        "task_versions": dict(results["versions"]),
        "chat_template_sha256": None
        if template is None
        else hashlib.sha256(str(template).encode()).hexdigest(),
    }
    return {"values": values, "settings": settings}


def _manager(section: LeaderboardSection) -> Any:
    path = section.include_path
    return _manager_of(path, "" if path is None else task_files_hash(path))


@functools.lru_cache(maxsize=2)
def _manager_of(include_path: str | None, files: str) -> Any:
    """Kept while its task files are the same: the harness reads thousands of files of its own."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
