"""Nothing from outside a recipe or sweep gets into it: every resolver of OmegaConf is refused,
in every place a value can come from.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from pipelines.errors import UserError
from pipelines.recipe.files import load_recipe, validate_recipe, write_yaml
from pipelines.sweep.files import load_sweep

SECRET = "plain-text-of-a-key"
MINIMAL: dict[str, Any] = {
    "run_dir": "r",
    "model": {"name_or_path": "m"},
    "data": {"sources": [{"path": "p"}]},
}
WAYS = [
    "${oc.env:PLANTED}",
    "runs/${oc.env:PLANTED,fallback}/x",
    "${oc.decode:${oc.env:PLANTED}}",
    "${oc.decode:'\\${oc.env:PLANTED}'}",
    "${oc.create:'\\${oc.env:PLANTED}'}",
    "${oc.select:objective.name,${oc.env:PLANTED}}",
    "${${model.tokenizer}:PLANTED}",
    "${data.sources[${oc.env:PLANTED}].path}",
    "${planted_by_another_package:}",
]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PLANTED", SECRET)
    with warnings.catch_warnings(action="ignore"):  # it has another name from omegaconf 2.4 on
        OmegaConf.register_new_resolver("planted_by_another_package", lambda: SECRET)
    yield
    OmegaConf.clear_resolver("planted_by_another_package")


@pytest.mark.parametrize("text", WAYS)
def test_resolvers_are_refused_wherever_a_value_comes_from(text: str, tmp_path: Path) -> None:
    model = {"name_or_path": "m", "tokenizer": "oc.env"}
    cases = {
        "train.tracker_project": {**MINIMAL, "model": model, "train": {"tracker_project": text}},
        "data.sources[0].path": {**MINIMAL, "model": model, "data": {"sources": [{"path": text}]}},
        "objective.name": {**MINIMAL, "model": model, "objective": {"name": text}},
    }
    for key, mapping in cases.items():
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mapping))
        for overrides in (
            (),
            ("objective.name=dpo",),
        ):  # an override of a tag looks at the value that it replaces
            _refused(key, load_recipe, str(tmp_path / "recipe.yaml"), overrides)
            _refused(key, validate_recipe, mapping, overrides)
    _refused(
        "evaluate.key_words",
        validate_recipe,
        {**MINIMAL, "model": model},
        [f"evaluate.key_words={yaml.safe_dump(text)}"],
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**MINIMAL, "model": model}))
    sweep = {
        "run_dir": "s",
        "recipe": str(tmp_path / "recipe.yaml"),
        "space": {"train.seed": {"grid": [0, 1]}},
    }
    for key, changed in (
        ("run_dir", {"run_dir": text}),
        ("overrides[0]", {"overrides": [f"train.tracker_project={text}"]}),
        (
            "space.train.tracker_project.grid[1]",
            {"space": {"train.tracker_project": {"grid": ["a", text]}}},
        ),
    ):
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**sweep, **changed}))
        _refused(key, load_sweep, str(tmp_path / "sweep.yaml"))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    given = yaml.safe_dump(text, default_style='"').strip()
    _refused("run_dir", load_sweep, str(tmp_path / "sweep.yaml"), [f"run_dir={given}"])
    _refused(
        "train.tracker_project",
        load_sweep,
        str(tmp_path / "sweep.yaml"),
        [f"train.tracker_project={given}"],
    )


def _refused(key: str, load: Any, *arguments: Any) -> None:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert f"{key}: a resolver" in message and "\n" not in message and SECRET not in message


def test_references_to_keys_work_and_what_would_change_in_config_yaml_is_refused() -> None:
    """A reference is resolved once.

    A literal ${ would become a reference when config.yaml is read, so it cannot be had.
    """
    recipe = validate_recipe(
        {**MINIMAL, "train": {"tracker_project": "${objective.name}-${data.sources[0].path}"}},
        ["objective.name=ipo"],
    )
    assert recipe.train.tracker_project == "ipo-p"
    assert validate_recipe(yaml.safe_load(write_yaml(recipe))) == recipe
    for text in ("\\${oc.env:PLANTED}", "\\${run_dir}"):
        with pytest.raises(
            UserError, match=r"train.tracker_project: no value can hold the text '\$\{'"
        ):
            validate_recipe({**MINIMAL, "train": {"tracker_project": text}})
