"""The programming tasks of the code benchmark."""

from pathlib import Path

from evaluation.benchmarks.code import CodeTask, code_tasks
from pipelines.errors import UserError
from pipelines.recipe import CodeSection
from pipelines.storage import nearest_path, parse_json


def read_code_tasks(section: CodeSection) -> list[CodeTask]:
    """The tasks of evaluate.code.tasks.

    UserError naming the file, the row and what is wrong with it.
    """
    path = Path(section.tasks)
    if not path.is_file():
        near = nearest_path(section.tasks)
        raise UserError(f"evaluate.code.tasks = {section.tasks!r}: no such file{near}")
    rows = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"evaluate.code.tasks = {section.tasks!r}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}, row {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: not a JSON object")
        rows.append(row)
    try:
        return code_tasks(rows, str(path))[: section.max_tasks]
    except ValueError as error:
        raise UserError(str(error)) from error
