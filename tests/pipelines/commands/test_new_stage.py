"""What adding a stage touches, shown by adding one to a copy of the packages: its room and its
place in the list of stages. Every command takes it from there.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from processes import ended

from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

EXAMPLE = Path(__file__).parent / "new_stage" / "stage.py"
DOOR = """
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
"""
PROGRAM = """
import contextlib, io, json, sys, tempfile
import typer
from pipelines.commands import cli
from pipelines.commands.submit import packaged_command

found = []
for command in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if command[0] == "package":
                with packaged_command(command[1:], typer.main.get_command(cli.app)) as made:
                    print(made[1], (made[0] / "pipelines" / "audit" / "stage.py").is_file())
            else:
                cli.main(command)
        except SystemExit as end:
            code = end.code
        except Exception as error:
            code, _ = 2, print(error, file=err)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_new_stage_is_a_room_and_a_place_in_the_list(copied: Recipe, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for package in ("sparsepo", "evaluation", "pipelines"):
        shutil.copytree(ROOT / package, copy / package)
    room = copy / "pipelines" / "audit"
    room.mkdir()
    shutil.copy(EXAMPLE, room / "stage.py")
    (room / "__init__.py").write_text('"""An audit of the pairs."""\n' + DOOR)
    (room / "__init__.pyi").write_text("from .stage import AUDIT as AUDIT\n")
    stages = copy / "pipelines" / "commands" / "stages.py"
    text = stages.read_text()
    listed = text.replace("PREPARE, EDIT", "PREPARE, AUDIT, EDIT", 1)
    assert listed != text
    stages.write_text(
        listed.replace(
            "from pipelines.evaluate",
            "from pipelines.audit import AUDIT\nfrom pipelines.evaluate",
            1,
        )
    )

    file = tmp_path / "recipe.yaml"
    file.write_text(write_yaml(copied))
    recipe = str(file)
    refused = [recipe, "data.max_response_tokens=13"]
    commands = [
        ["--help"], ["status", copied.run_dir], ["audit", recipe], ["audit", recipe],
        ["status", copied.run_dir], ["plan", recipe, "--json"], ["package", "audit", recipe],
        ["plan", *refused], ["run", *refused], ["package", "run", *refused],
        ["audit", recipe, "data.max_prompt_tokens=11"],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(copy), "RAY_ADDRESS": ""}
    done = ended([sys.executable, "-c", PROGRAM, json.dumps(commands)], environment, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    help_, before, first, again, after, plan, package, *refusals, other = found

    pairs = open_pairs(Run(copied))
    rows = pairs.pairs("train", range(pairs.num_rows("train")))
    longer = sum(len(row.chosen) > len(row.prompt) for row in rows)
    assert "prepare -> audit -> reference -> train" in " ".join(help_[1].split())
    assert "Count responses that are longer" in help_[1]
    assert [line.split()[:2] for line in before[1].splitlines()][2] == ["audit", "not"]
    assert f": {longer} of {len(rows)} responses" in first[1]
    assert "audit: already done, skipped" in again[1]
    assert f"{longer} longer" in after[1]
    assert json.loads(plan[1])["audit"] == {"pairs": len(rows)}
    assert package[:2] == [0, "['audit', 'recipe.yaml'] True\n"]
    for code, _, error in refusals:
        assert code == 2 and "13: audit refuses it" in error
    assert other[0] == 2 and "another run's prepare stage" in other[2]
