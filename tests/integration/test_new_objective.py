"""What adding an objective touches, shown by adding one to a copy of the packages and training with
it.

Its file, its declaration, its config class, its test and its recipe: nothing else knows it.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from processes import said_by

EXAMPLE = Path(__file__).parent / "new_objective"
# Its own test, a run and a wrong value, one after the other in a process that has the copy.
PROGRAM = """
import contextlib, io, json, sys
import pytest
import sparsepo
from runs import run_here
from pipelines.cluster import ray_session
from pipelines.commands.cli import main
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.recipe.files import load_recipe

def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([*arguments])
        except SystemExit as end:
            return end.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()

options = sys.argv[1:]
tests = int(pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_hinge.py"]))
recipe = load_recipe("hh-hinge", options)
with ray_session(recipe.ray):
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE))
    again = command("run", "hh-hinge", *options)
wrong = command("plan", "hh-hinge", *options, "objective.beta=0")
print(json.dumps([sparsepo.__file__, tests, again, wrong]))
"""
CONFIG_CLASS = """
class HingeConfig(PreferenceConfig):
    name: Literal["hinge"] = "hinge"
    beta: float = Field(0.1, gt=0)

"""


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(root)): f.read_bytes()
        for f in root.rglob("*")
        if f.suffix in (".py", ".yaml", ".j2")
    }


@pytest.mark.slow
def test_a_new_objective_touches_five_things(
    tmp_path: Path, model_dir: Path, pairs_file: Path, ray_environment: dict[str, str]
) -> None:
    copy = tmp_path / "copy"
    for package in ("sparsepo", "evaluation", "pipelines"):
        shutil.copytree(ROOT / package, copy / package)
    before = contents(copy)

    shutil.copy(EXAMPLE / "hinge.py", copy / "sparsepo" / "objectives" / "hinge.py")
    declarations = copy / "sparsepo" / "objectives" / "declarations.py"
    ipo = '        ObjectiveDeclaration("ipo", "IPO"),\n'
    declarations.write_text(
        declarations.read_text().replace(
            ipo, ipo + ipo.replace("ipo", "hinge").replace("IPO", "Hinge")
        )
    )
    config = copy / "pipelines" / "recipe" / "objectives.py"
    config.write_text(
        config.read_text().replace("\nclass SFTConfig", CONFIG_CLASS + "\nclass SFTConfig")
    )
    (copy / "tests").mkdir()
    shutil.copy(EXAMPLE / "test_hinge.py", copy / "tests" / "test_hinge.py")
    recipe = (
        (ROOT / "pipelines" / "recipes" / "hh-dpo.yaml")
        .read_text()
        .replace("name: dpo", "name: hinge")
    )
    (copy / "pipelines" / "recipes" / "hh-hinge.yaml").write_text(recipe)

    after = contents(copy)
    assert {name for name in after if after[name] != before.get(name)} == {
        "sparsepo/objectives/hinge.py",
        "sparsepo/objectives/declarations.py",
        "pipelines/recipe/objectives.py",
        "tests/test_hinge.py",
        "pipelines/recipes/hh-hinge.yaml",
    }

    environment = {
        **ray_environment, "PYTHONPATH": f"{copy}:{ROOT / 'tests' / 'support'}"
    }  # fmt: skip
    options = [
        f"run_dir={copy / 'run'}", f"model.name_or_path={model_dir}",
        f"data.sources=[{{path: {pairs_file}}}]", "data.test=[]",
        "data.max_prompt_tokens=24", "data.max_response_tokens=24", "train.max_steps=2",
        "train.learning_rate=1e-3", "ray.num_cpus=2",
        "data.test_fraction=0.1", "evaluate.benchmarks=[preference]",
    ]  # fmt: skip
    said = said_by([sys.executable, "-c", PROGRAM, *options], copy, environment)
    imported, tests, again, wrong = json.loads(said.splitlines()[-1])
    assert imported.startswith(str(copy))
    assert tests == 0, said
    assert again[0] == 0 and "evaluate: already done, skipped" in again[1], again
    assert (copy / "run" / "report" / "index.html").is_file()
    logged = sorted((copy / "run" / "train" / "metrics").glob("*-train.jsonl"))
    losses = [json.loads(line)["loss"] for file in logged for line in file.read_text().splitlines()]
    assert losses[0] == pytest.approx(
        1.0, abs=1e-5
    )  # what the hinge is while the policy is the reference
    assert losses[1] < 1.0
    assert (wrong[0], "objective.beta = 0" in wrong[2]) == (2, True)
