"""What the documents show works: python blocks run, commands and recipes exist, linked files are there."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from pipelines.cli import app
from pipelines.recipe import packaged, validate_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_readme_library_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Log ratios 0.5 - 0.1 chosen, 0.3 rejected: DPO's logit is 0.1 * 0.1, the loss log(1 + exp(-0.01)) = 0.6882. Five statements."""
    (example,) = [b for b in blocks((ROOT / "README.md").read_text(), "python") if "TokenScores" in b]
    assert len(ast.parse(example).body) <= 6  # five and the import
    exec(compile(example, "README.md", "exec"), {})
    assert "0.6882" in capsys.readouterr().out


def test_readme_recipe_is_valid() -> None:
    (recipe,) = blocks((ROOT / "README.md").read_text(), "yaml")
    assert validate_recipe(yaml.safe_load(recipe)).objective.name == "sparsepo"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_and_links_exist(document: Path) -> None:
    text = document.read_text()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"\bsparsepo ([a-z]+)\b(?= [A-Za-z./-]+\.yaml| RECIPE| SWEEP| runs/| seed=|`)", text))
    assert named <= commands
    for recipe in re.findall(r"sparsepo run ((?:imdb|hh)-[a-z0-9-]+)", text):
        assert recipe in packaged("recipe")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (document.parent / link).exists(), link
