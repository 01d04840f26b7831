"""docs/keys.md is the schema's, and says something of every key."""

from pathlib import Path

import pytest
from checkout import ROOT

from pipelines.recipe.files import validate_recipe
from pipelines.recipe.key_table import KeyRow, key_groups, page
from pipelines.recipe.keys import all_keys
from pipelines.recipe.schema import Recipe
from pipelines.recipe.section import stage_settings

REPEATED = ("data.validation.", "data.test.", "sample.generation.", "sample.reward.",
            "evaluate.code.generation.", "objective.of.")  # fmt: skip


def rows() -> dict[str, KeyRow]:
    return {row.key: row for group in key_groups() for row in group.rows}


def test_the_page_is_the_schemas() -> None:
    written = (ROOT / "docs" / "keys.md").read_text()
    assert written == page(), "run: python -m pipelines.recipe.key_table > docs/keys.md"


def test_every_key_is_there_with_a_meaning() -> None:
    """Keys of sections that repeat stand once; sections themselves have no row."""
    found = {key.replace("[]", "") for key in rows()}
    every = all_keys(Recipe)
    sections = {key for key in every if any(other.startswith(f"{key}.") for other in every)}
    assert {key for key in every if not key.startswith(REPEATED)} - sections <= found
    assert [key for key, row in rows().items() if not row.meaning] == []
    assert "sample.num_candidates" in found


def test_stages_are_those_of_the_settings(tmp_path: Path) -> None:
    """A key has a stage exactly if a recipe's settings have it."""
    recipe = validate_recipe(
        {"run_dir": str(tmp_path), "model": {"name_or_path": "m"},
         "data": {"sources": [{"path": "p.jsonl"}]}}
    )  # fmt: skip
    settings = {key.replace("[0]", "[]") for key in stage_settings(recipe)}
    known = rows()
    assert len(settings & known.keys()) > 90
    for key in settings & known.keys():
        assert known[key].stage, key
    for key in ("train.num_workers", "ray.num_cpus", "run_dir", "evaluate.num_actors"):
        assert not known[key].stage and key not in settings


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("train.learning_rate", "number > 0", "`1e-06`"),
        ("model.name_or_path", "path or name of a hub", "required"),
        ("train.strategy", "`ddp`, `fsdp`", "`ddp`"),
        ("train.adam_betas", "list of 2: number, number", "`[0.9, 0.999]`"),
        ("evaluate.temperatures", "list of number ≥ 0", "-"),
        ("train.lora.rank_pattern", "name: whole number ≥ 1", "-"),
        ("mask.hooks", "text or list of text", "`all`"),
        ("train.auto_microbatch", "true or false", "`false`"),
    ],
)
def test_values_and_defaults(key: str, kind: str, default: str) -> None:
    assert (rows()[key].kind, rows()[key].default) == (kind, default)
