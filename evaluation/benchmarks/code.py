"""code: whether sampled programs pass their tasks' tests, in the formats of HumanEval and MBPP."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.intervals import rate_interval
from evaluation.metrics.pass_at_k import pass_at_k

# Where a completion has run into something that is not the function any more (HumanEval), or not
# the program (MBPP).
_STOPS = {
    "humaneval": (
        "\nclass ",
        "\ndef ",
        "\n#",
        "\nif ",
        "\nprint(",
        "\n@",
        "\nassert ",
        "\n```",
        "<|endoftext|>",
    ),
    "mbpp": (
        '\n"""',
        "\nassert ",
        "\nprint(",
        "\nif __name__",
        "\n# Test",
        "\n```",
        "<|endoftext|>",
    ),
}
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.S)


@dataclass(frozen=True)
class CodeTask:
    """A programming task.

    Attributes:
        prompt: what the model continues; without the white space at its end, which tokenizers join
            to what follows. header: what the program starts with besides the completion
            (HumanEval's signature, MBPP's set-up).
        tests: source that calls the program's functions and asserts.
    """

    task_id: str
    form: Literal["humaneval", "mbpp"]
    prompt: str
    header: str
    tests: str

    def program(self, completion: str) -> str:
        """The program that a completion makes: a fenced block if it has one.

        The text is cut where something else begins.
        """
        fenced = _FENCED.search(completion)
        text = fenced.group(1) if fenced else completion
        cuts = [found for stop in _STOPS[self.form] if (found := text.find(stop, 1)) > 0]
        text = text[: min(cuts)] if cuts and not fenced else text
        if fenced and self.form == "humaneval" and re.search(r"^def ", text, re.M):
            imports = "\n".join(
                line for line in self.header.splitlines() if line.startswith(("import ", "from "))
            )
            return f"{imports}\n{text}\n"
        if self.form == "humaneval" and not text.startswith("\n"):
            text = "\n" + text
        return self.header + text + "\n"


def chat_question(prompt: str) -> str:
    """A chat message that asks for the function that a prompt begins or describes."""
    return (
        "Write this in Python. Answer with the whole function in one code block.\n\n```python\n"
        f"{prompt.strip()}\n```"
    )


def code_tasks(rows: Sequence[Mapping[str, Any]], source: str) -> list[CodeTask]:
    """Tasks of a file's rows. ValueError naming the row and what it lacks.

    HumanEval: task_id, prompt, entry_point, test. MBPP: task_id, text (or prompt), test_list, and
    optionally test_setup_code or test_imports.
    """
    tasks = []
    for number, row in enumerate(rows, 1):
        if "entry_point" in row or "test" in row:
            _require(
                row,
                {"task_id": (str, int), "prompt": (str,), "entry_point": (str,), "test": (str,)},
                source,
                number,
            )
            tests = f"{row['test']}\ncheck({row['entry_point']})\n"
            start = row["prompt"].rstrip()
            tasks.append(CodeTask(str(row["task_id"]), "humaneval", start, start, tests))
        else:
            _require(row, {"task_id": (str, int), "test_list": (list, tuple)}, source, number)
            text = row.get("text") or row.get("prompt")
            if not isinstance(text, str):
                raise ValueError(f"{source}, row {number}: needs a column text or prompt")
            prompt = row.get("prompt")
            if not (isinstance(prompt, str) and prompt.lstrip().startswith('"""')):
                prompt = (
                    f'"""\n{text.strip()}\n{row["test_list"][0] if row["test_list"] else ""}\n"""\n'
                )
            setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
            header = (
                f"{setup}\n" if setup else ""
            )  # MBPP's programs may use what the set-up imports
            tasks.append(
                CodeTask(
                    str(row["task_id"]),
                    "mbpp",
                    prompt,
                    header,
                    "\n".join([setup, *row["test_list"]]) + "\n",
                )
            )
    if not tasks:
        raise ValueError(f"{source}: no tasks")
    names = [task.task_id for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{source}: task_id {repeated[0]} occurs more than once")
    return tasks


def _require(
    row: Mapping[str, Any], columns: Mapping[str, tuple[type, ...]], source: str, number: int
) -> None:
    for name, kinds in columns.items():
        if not isinstance(row.get(name), kinds):
            known = ", ".join(sorted(row))
            raise ValueError(
                f"{source}, row {number}: column {name} is missing or no {kinds[0].__name__}; it "
                f"has {known}"
            )


def code_benchmark(records: list[dict[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """pass@k of both models with 95 % intervals over tasks, and the gain paired by task.

    Args:
        records: per task: task_id, start_passed, policy_passed (one bool per sample), <who>_timeout
            (counts).
        ks: those above the number of samples are left out.
    """
    if not records:
        raise ValueError("the code benchmark needs at least one task")
    drawn = min(len(r[f"{who}_passed"]) for r in records for who in ("start", "policy"))
    found: dict[str, Any] = {"num_tasks": len(records), "num_samples": drawn}
    for k in [k for k in ks if k <= drawn]:
        value = {
            who: [pass_at_k(len(r[f"{who}_passed"]), sum(r[f"{who}_passed"]), k) for r in records]
            for who in ("start", "policy")
        }
        found[f"pass@{k}/before"] = rate_interval(value["start"]).as_dict()
        found[f"pass@{k}/after"] = rate_interval(value["policy"]).as_dict()
        gain = [a - b for a, b in zip(value["policy"], value["start"], strict=True)]
        found[f"pass@{k}/gain"] = rate_interval(gain, None, (-1.0, 1.0)).as_dict()
    for who, label in (("start", "before"), ("policy", "after")):
        total = sum(len(r[f"{who}_passed"]) for r in records)
        found[f"timeout_fraction/{label}"] = sum(r[f"{who}_timeout"] for r in records) / total
    return found
