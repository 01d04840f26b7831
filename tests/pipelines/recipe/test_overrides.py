"""Only the sections that an override names go through OmegaConf: the same as if all had gone."""

import datetime
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from pipelines.errors import UserError
from pipelines.recipe.files import _merged, packaged, read_mapping, set_keys, validate_recipe
from pipelines.recipe.schema import Recipe

OVERRIDES = {
    "train.learning_rate": 1e-5,
    "data.sources[0].path": "other",
    "train.lora": {"rank": 4},
    "sample": {"num_candidates": 3, "generation": {"temperature": 0.5}},
    "run_dir": "elsewhere",
    "evaluate.temperatures": [0.0, 1.0],
    "train.max_steps": None,
}


def whole(mapping: dict[str, Any], merge: bool) -> DictConfig:
    base = OmegaConf.create(mapping)
    for key, value in OVERRIDES.items():
        OmegaConf.update(base, key, value, merge=merge, force_add=True)
    return base


@pytest.mark.parametrize(
    "name", ["hh-sparsepo-common", "imdb-mapo", "tldr-mapo", "relative references"]
)
def test_sections_apart_are_what_the_whole_gives(name: str) -> None:
    mapping = read_mapping("hh-dpo" if name == "relative references" else name, "recipe")
    if name == "relative references":
        mapping["objective"] = {"name": "dpo", "beta": "${train.learning_rate}", "a": "${.beta}"}
        mapping["run_dir"] = "runs/${objective.name}"
    before = yaml.safe_dump(mapping)
    items = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in
             OVERRIDES.items()]  # fmt: skip
    items = [item.removesuffix("\n").removesuffix("\n...") for item in items]
    found = _merged(Recipe, mapping, items)
    expected = OmegaConf.to_container(whole(mapping, merge=False), resolve=True)
    assert found == expected and list(found) == list(expected)  # type: ignore[call-overload]
    if name == "relative references":
        assert found["objective"]["beta"] == 1e-5
    set_ = set_keys(mapping, OVERRIDES)
    assert set_ == OmegaConf.to_container(whole(mapping, merge=True))
    found["data"]["sources"].append("x")
    set_["model"]["name_or_path"] = "y"
    assert yaml.safe_dump(mapping) == before, "copies"


def test_references_of_references_are_resolved() -> None:
    mapping = read_mapping("hh-dpo", "recipe")
    mapping["objective"]["beta"] = "${train.learning_rate}"
    mapping["train"]["learning_rate"] = "${mask.number}"
    mapping["mask"] = {"kind": "none", "number": 0.25}
    found = _merged(Recipe, mapping, ["model.name_or_path=m"])
    assert found["objective"]["beta"] == found["train"]["learning_rate"] == 0.25


def test_an_override_may_refer_to_any_section() -> None:
    mapping = read_mapping("hh-dpo", "recipe")
    found = validate_recipe(mapping, ["train.tracker_project=of-${objective.name}"])
    assert found.train.tracker_project == "of-dpo"


def test_a_value_that_omegaconf_does_not_take_is_refused_in_any_section() -> None:
    mapping = read_mapping("hh-dpo", "recipe")
    mapping["model"]["name_or_path"] = datetime.date(2026, 1, 1)
    with pytest.raises(UserError, match="date' is not a supported primitive type"):
        validate_recipe(mapping, ["train.seed=1"])


def test_every_packaged_recipe_is_taken_as_it_is_written() -> None:
    """References among their sections too."""
    for name in packaged("recipe"):
        mapping = read_mapping(name, "recipe")
        expected = OmegaConf.to_container(OmegaConf.create(mapping), resolve=True)
        assert _merged(Recipe, mapping, ()) == expected
