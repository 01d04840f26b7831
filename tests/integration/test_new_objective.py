"""What adding an objective touches, shown by adding one to a copy of the packages and training with
it.

Its file, its declaration, its config class, its test and its recipe: nothing else knows it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

EXAMPLE = Path(__file__).parent / "new_objective"
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
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
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

    environment = {**ray_environment, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    tests = run("-m", "pytest", "-q", "tests/test_hinge.py", "-p", "no:cacheprovider")
    assert tests.returncode == 0, tests.stdout
    options = [
        f"run_dir={tmp_path / 'run'}", f"model.name_or_path={model_dir}",
        f"data.sources=[{{path: {pairs_file}}}]", "data.test=[]",
        "data.max_prompt_tokens=24", "data.max_response_tokens=24", "train.max_steps=2",
        "train.learning_rate=1e-3", "ray.num_cpus=2",
        "data.test_fraction=0.1", "evaluate.benchmarks=[preference]",
    ]  # fmt: skip
    assert run("-c", "import sparsepo; print(sparsepo.__file__)").stdout.startswith(str(copy))
    result = run("-m", "pipelines", "run", "hh-hinge", *options, "--quiet")
    assert result.returncode == 0, result.stderr[-3000:]
    logged = sorted((tmp_path / "run" / "train" / "metrics").glob("*-train.jsonl"))
    losses = [json.loads(line)["loss"] for file in logged for line in file.read_text().splitlines()]
    assert losses[0] == pytest.approx(
        1.0, abs=1e-5
    )  # what the hinge is while the policy is the reference
    assert losses[1] < 1.0
    wrong = run("-m", "pipelines", "plan", "hh-hinge", *options, "objective.beta=0")
    assert (wrong.returncode, "objective.beta = 0" in wrong.stderr) == (2, True)
