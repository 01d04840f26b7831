"""The page's numbers as files: written beside it, and inside it, so that it can be mailed alone."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from evaluation.report.formats import readable
from evaluation.report.view import RunView

NUMBERS_FILE = "numbers.csv"


def numbers_csv(runs: Sequence[RunView]) -> str:
    """Every number of every run with its interval: run, evaluation, benchmark, number, mean, ..."""
    rows: list[list[Any]] = []
    for run in runs:
        for name, view in {"": run, **run.others}.items():
            for benchmark, result in view.results.items():
                for key, value in result.items():
                    if isinstance(value, dict) and "mean" in value:
                        ends = [value.get(part) for part in ("mean", "low", "high", "n")]
                    elif isinstance(value, int | float) and not isinstance(value, bool):
                        ends = [value, None, None, None]
                    else:
                        continue
                    rows.append([run.name, name, benchmark, key, *ends])
    head = ["run", "evaluation", "benchmark", "number", "mean", "low", "high", "prompts"]
    return _csv(head, rows)


def curves_csv(runs: Sequence[RunView]) -> str:
    """Every metric of every training step, one row per run and step."""
    records = [(run.name, m) for run in runs for m in run.metrics if "kind" not in m]
    keys = list(dict.fromkeys(k for _, m in records for k in m if k != "step"))
    return _csv(
        ["run", "step", *keys],
        ([name, m.get("step"), *(m.get(key) for key in keys)] for name, m in records),
    )


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return readable(text.getvalue())


def _cell(value: Any) -> Any:
    """A text that a table's program would read as a formula gets a quote before it."""
    if isinstance(value, str) and value[:1] in tuple("=+-@\t\r"):
        return f"'{value}"
    return value
