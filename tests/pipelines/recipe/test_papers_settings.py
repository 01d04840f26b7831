"""Recipes that say "the paper's setting" have it, key by key, and no other says so."""

import re
import shlex
from typing import Any

import pytest
import yaml
from checkout import ROOT

from pipelines.commands.sft import load_sft
from pipelines.recipe.files import load_recipe, packaged

TABLE = yaml.safe_load((ROOT / "tests/pipelines/recipe/papers_settings.yaml").read_text())
SETTINGS = [part for name, part in TABLE.items() if name not in ("everywhere", "methods")]
ROWS = {name: (part["same"], row) for part in SETTINGS for name, row in part["rows"].items()}
PAPER = "2410.05102"


def header(name: str) -> str:
    return packaged("recipe")[name].read_text().partition("\nrun_dir:")[0]


def value_of(mapping: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        if mapping is None:
            raise KeyError(key)
        mapping = mapping[int(part)] if part.isdigit() else mapping[part]
    return mapping


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_of_the_papers_setting_is_it(name: str) -> None:
    """The recipe as it is resolved, against the table; masks at the policy's own rate."""
    recipe = load_recipe(name).model_dump(mode="json")
    same, row = ROWS[name]
    method = name.split("-")[1]
    assert recipe["objective"]["name"] == method
    wanted = TABLE["everywhere"] | TABLE["methods"][method] | same | row
    assert {key: value_of(recipe, key) for key in wanted} == wanted
    if method == "sparsepo":
        assert recipe["mask"]["learning_rate"] == recipe["train"]["learning_rate"]
        changed = load_recipe(name, ["train.learning_rate=3e-5"])
        assert changed.mask.model_dump()["learning_rate"] == 3e-5


def test_the_table_has_every_recipe_that_says_so_and_no_other() -> None:
    said = {
        name for name in packaged("recipe") if re.search(rf"{PAPER}|paper's setting", header(name))
    }
    assert said == set(ROWS)
    assert all("the paper's setting" in header(name) and PAPER in header(name) for name in said)


@pytest.mark.parametrize("name", sorted(packaged("recipe")))
def test_the_commands_of_a_header_load(name: str) -> None:
    """What is launched is the recipe; what makes its starting model and scorers loads too."""
    commands = re.findall(r"sparsepo (sft|run) ([^`\n]+)", header(name))
    for command, rest in commands:
        recipe, *overrides = shlex.split(rest)
        load = load_sft if command == "sft" else load_recipe
        assert load(recipe, overrides).run_dir
    (launch,) = re.findall(r"^# Launch: sparsepo run (\S+) run_dir=(\S+)", header(name), re.M)
    assert launch == (name, f"runs/{name}")
