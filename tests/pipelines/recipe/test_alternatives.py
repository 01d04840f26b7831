"""Unions whose alternatives a tag names: those of recipes and sweeps, nested ones and those in
tuples.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from pipelines.errors import UserError
from pipelines.recipe.files import validate, validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.section import Section
from pipelines.sweep.files import load_sweep

BASE: dict[str, Any] = {
    "run_dir": "r",
    "model": {"name_or_path": "m"},
    "data": {"sources": [{"path": "p"}]},
}
# Key of the tag -> (an alternative with a key of its own, another alternative's overrides).
UNIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "objective.name": ({"name": "tdpo2", "alpha": 0.3}, ("objective.name=ipo",)),
    "mask.kind": (
        {"kind": "random", "seed": 3},
        ("mask.kind=activation", "mask.hooks=mlp"),
    ),
    "evaluate.reward.kind": (
        {"kind": "classifier", "model": "m"},
        ("evaluate.reward.kind=vader",),
    ),
    "evaluate.judge.kind": (
        {"kind": "openai", "base_url": "http://x", "model": "m"},
        ("evaluate.judge.model=m", "evaluate.judge.kind=reward_model"),
    ),
    "discriminator.editor.kind": (
        {"kind": "openai", "base_url": "http://x", "model": "m"},
        ("discriminator.editor.kind=model", "discriminator.editor.name_or_path=m"),
    ),
    "sample.reward.kind": ({"kind": "classifier", "model": "m"}, ("sample.reward.kind=vader",)),
}


def recipe_with(tag: str, section: dict[str, Any]) -> dict[str, Any]:
    mapping: dict[str, Any] = {**BASE, "objective": {"name": "mapo"}}
    *outer, last, _ = tag.split(".")
    inner = mapping
    for name in outer:
        inner = inner.setdefault(name, {})
    inner[last] = section
    return mapping


def value_at(recipe: Recipe, key: str) -> Any:
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name)
    return found


def tags_of(schema: dict[str, Any], definitions: dict[str, Any], key: str = "") -> Iterator[str]:
    """Keys of the tags of a JSON schema's unions."""
    if "$ref" in schema:
        yield from tags_of(definitions[schema["$ref"].rpartition("/")[2]], definitions, key)
    if "discriminator" in schema:
        yield f"{key}.{schema['discriminator']['propertyName']}"
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from tags_of(inner, definitions, key)
    if "items" in schema:
        yield from tags_of(schema["items"], definitions, f"{key}[]")
    for name, inner in schema.get("properties", {}).items():
        yield from tags_of(inner, definitions, f"{key}.{name}".lstrip("."))


def test_all_unions_of_the_recipe_are_tested_here() -> None:
    """The terms of a sum are the union of objectives again."""
    schema = Recipe.model_json_schema()
    assert set(tags_of(schema, schema["$defs"])) - {"objective.of[].name"} == set(UNIONS)


@pytest.mark.parametrize("tag", UNIONS)
def test_a_tag_switches_the_alternative_and_discards_the_others_keys(tag: str) -> None:
    section, overrides = UNIONS[tag]
    mapping = recipe_with(tag, section)
    assert value_at(validate_recipe(mapping), tag) == section[tag.rpartition(".")[2]]
    switched = validate_recipe(mapping, overrides)
    wanted = next(o.partition("=")[2] for o in overrides if o.startswith(f"{tag}="))
    assert value_at(switched, tag) == wanted


@pytest.mark.parametrize("tag", UNIONS)
def test_what_is_wrong_with_an_alternative_is_one_line(tag: str) -> None:
    section, _ = UNIONS[tag]
    parent, _, name = tag.rpartition(".")
    mapping = recipe_with(tag, section)

    def line(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            validate_recipe(mapping, overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert line(f"{tag}=unheard").startswith(f"{tag} = 'unheard': allowed are '")
    assert section[name] in line(f"{tag}=unheard")
    # For masks an objective without one of its own, which {} would mean.
    missing = line(f"{parent}={{}}", *["objective.name=sparsepo"] * (parent == "mask"))
    assert missing.startswith(f"{parent}: needs the key '{name}': one of '")
    assert section[name] in missing
    own = next(key for key in section if key != name)
    assert line(f"{parent}.{own}s=1") == (
        f"unknown config key '{parent}.{own}s': did you mean '{parent}.{own}'?"
    )


def test_a_key_of_another_alternative_is_not_suggested_under_its_own_name() -> None:
    for overrides, line in (
        (
            ("objective.name=dpo", "mask.kind=none", "objective.l1_kl=1"),
            "config key 'objective.l1_kl' is none of objective.name=dpo, whose keys are name, "
            "nll_coef, label_smoothing, beta, loss, divergence, divergence_alpha",
        ),
        (
            ("sample.reward.kind=vader", "sample.reward.label=x"),
            "config key 'sample.reward.label' is none of sample.reward.kind=vader, whose keys are "
            "kind",
        ),
    ):
        with pytest.raises(UserError) as caught:
            validate_recipe({**BASE, "objective": {"name": "dpo"}}, overrides)
        assert str(caught.value) == line


class Leaf(Section):
    kind: Literal["leaf"] = "leaf"
    size: int = 1


class Inner(Section):
    shape: Literal["round", "oval"]
    radius: float = Field(1.0, gt=0)


class Square(Section):
    shape: Literal["square"] = "square"
    side: float = 1.0


class Branch(Section):
    kind: Literal["branch"] = "branch"
    inner: Annotated[Inner | Square, Field(discriminator="shape")] = Square()


class Forest(Section):
    """A union in a tuple, with another one in one of its alternatives."""

    trees: tuple[Annotated[Leaf | Branch, Field(discriminator="kind")], ...] = ()


FOREST: dict[str, Any] = {
    "trees": [{"kind": "leaf", "size": 2}, {"kind": "branch", "inner": {"shape": "round"}}]
}


@pytest.mark.parametrize(
    ("overrides", "trees"),
    [
        (
            ("trees[0].inner.side=3", "trees[0].inner.shape=square", "trees[0].kind=branch"),
            (Branch(inner=Square(side=3)), Branch(inner=Inner(shape="round"))),
        ),
        (
            ("trees[1].inner.shape=square",),
            (Leaf(size=2), Branch()),
        ),
        (  # from round: the other tag of the same section is another alternative all the same
            ("trees[1].inner.radius=2", "trees[1].inner.shape=oval"),
            (Leaf(size=2), Branch(inner=Inner(shape="oval", radius=2))),
        ),
        (("trees[1].kind=leaf",), (Leaf(size=2), Leaf())),
        (  # what is set whole before a tag does not undo it
            ("trees=[{kind: leaf, size: 5}]", "trees[0].kind=branch"),
            (Branch(),),
        ),
        (("trees[0].kind=branch", "trees=[{kind: leaf, size: 5}]"), (Leaf(size=5),)),
    ],
)
def test_unions_in_tuples_and_in_unions(
    overrides: tuple[str, ...], trees: tuple[Section, ...]
) -> None:
    assert validate(Forest, FOREST, overrides).trees == trees


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trees[0].kind=root", "trees[0].kind = 'root': allowed are 'leaf', 'branch'"),
        ("trees[1]={}", "trees[1]: needs the key 'kind': one of 'leaf', 'branch'"),
        (
            "trees[1].inner.shape=flat",
            "trees[1].inner.shape = 'flat': allowed are 'round', 'oval', 'square'",
        ),
        (
            "trees[1].inner={}",
            "trees[1].inner: needs the key 'shape': one of 'round', 'oval', 'square'",
        ),
        ("trees[0].sise=3", "unknown config key 'trees[0].sise': did you mean 'trees[0].size'?"),
        (
            "trees[1].inner.side=3",
            "config key 'trees[1].inner.side' is none of trees[1].inner.shape=round, whose keys "
            "are shape, radius",
        ),
        ("trees[1].inner.radius=0", "trees[1].inner.radius = 0: input should be greater than 0"),
    ],
)
def test_lines_name_the_key_in_tuples_and_in_unions(override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Forest, FOREST, [override])
    assert str(caught.value) == line


def test_a_sweep_searches_over_tags_and_switches_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                **BASE,
                "data": {"sources": [{"path": "p"}], "validation_fraction": 0.1},
                "sample": {"reward": {"kind": "classifier", "model": "m"}},
            }
        )
    )
    file = tmp_path / "sweep.yaml"
    space = {
        "sample.reward.kind": {"choice": ["classifier", "vader"]},
        "sample.reward.model": {"choice": ["m"], "when": {"sample.reward.kind": "classifier"}},
    }
    mapping = {"run_dir": "s", "recipe": str(tmp_path / "recipe.yaml"), "num_samples": 8}
    searcher = {"name": "nsga2", "population": 4}
    file.write_text(yaml.safe_dump({**mapping, "space": space, "searcher": searcher}))
    sweep = load_sweep(str(file), ["searcher.name=tpe"])
    assert sweep.searcher.model_dump() == {"name": "tpe", "startup_trials": 10}
    kinds = {sweep.recipe_at(point, "r").sample.reward.kind for point in sweep.sample_of_points()}
    assert kinds == {"classifier", "vader"}
    for override, line in (
        ("searcher.name=grid", "searcher.name = 'grid': allowed are 'random', 'tpe', 'nsga2'"),
        ("scheduler={}", "scheduler: needs the key 'name': one of 'none', 'asha'"),
        (
            "scheduler.name=asha",
            "config key 'scheduler.grace_steps' is required and missing",
        ),
    ):
        with pytest.raises(UserError) as caught:
            load_sweep(str(file), ["searcher.name=random", override])
        assert str(caught.value) == f"sweep file {str(file)!r}: {line}"
