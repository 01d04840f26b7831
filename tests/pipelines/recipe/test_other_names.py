"""Names of other trainers, of keys without their section, and of files: what is meant is named."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.recipe.files import load_recipe, read_mapping, validate_recipe
from pipelines.recipe.keys import all_keys, plain_keys, values_of
from pipelines.recipe.other_names import OTHER_NAMES
from pipelines.recipe.problems import key_meant
from pipelines.recipe.schema import Recipe
from pipelines.storage.near_names import did_you_mean, nearest_path
from pipelines.sweep.files import load_sweep
from pipelines.sweep.space import Sweep


def test_every_other_name_means_a_key_and_is_none() -> None:
    keys = all_keys(Recipe)
    assert {name: key for name, key in OTHER_NAMES.items() if key not in keys} == {}
    assert not [name for name in OTHER_NAMES if name in keys]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("lr", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("LR", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("batch_size", "train.global_batch_size"),
        ("beta", "objective.beta"),
        ("epochs", "train.epochs"),
        ("dataset", "data.sources"),
        ("output_dir", "run_dir"),
        ("l1_kl", "objective.l1_kl"),
        ("data.sources[0].path", "data.sources[0].path"),
        ("model", "model"),
        ("sample.lr", None),
        ("columns.prompt.x", None),
        ("num_prompts", "evaluate.num_prompts"),
    ],
)
def test_the_key_that_is_meant(name: str, key: str | None) -> None:
    assert key_meant(Recipe, name) == key


def test_a_name_that_two_sections_have_is_asked_about() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("hh-dpo", ["layout=packed"])
    assert str(caught.value).startswith(
        "unknown config key 'layout': did you mean 'reference.layout' or 'train.layout'?"
    )


def test_an_unknown_key_is_said_before_a_missing_one() -> None:
    """What is missing is often what the unknown key means."""
    with pytest.raises(UserError) as caught:
        validate_recipe({"run_dir": "a", "data": {"sources": [{"path": "b"}]}, "model_name": "c"})
    line = "unknown config key 'model_name': model.name_or_path is meant (and 1 more problem)"
    assert str(caught.value) == line


@pytest.mark.slow
def test_no_message_names_a_class() -> None:
    """Every key given a text, a number and a mapping that it does not take."""
    sections = {type_.__name__ for type_ in _subclasses(Recipe.__mro__[1])}
    assert "ModelSection" in sections
    mapping = read_mapping("hh-sparsepo-common", "recipe")
    mapping["model"]["name_or_path"] = "m"
    for key in all_keys(Recipe):
        way = key.replace("sources.", "sources[0].")
        for value in ("word", "7", "{nothing: 1}", "[word]", "null"):
            try:
                validate_recipe(mapping, [f"{way}={value}"])
            except UserError as error:
                line = str(error)
                words = set(line.replace("'", " ").replace(".", " ").split())
                assert not words & sections and "instance of" not in line, line
                assert "valid tuple" not in line and "valid dictionary" not in line, line


def _subclasses(type_: type) -> set[type]:
    return {type_} | {found for sub in type_.__subclasses__() for found in _subclasses(sub)}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\nmodel: {name: a\nb: [\n", "line 3, column 2"),
        ("a:\n\tb: 1\n", "line 2, column 1"),
        ("a: 1\na: 2\n", "line 2, column 1: found duplicate key a"),
    ],
)
def test_broken_yaml_says_line_and_column(tmp_path: Path, text: str, where: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    for load in (load_recipe, load_sweep):
        with pytest.raises(UserError, match=f"is not valid YAML: {where}"):
            load(str(file))


def test_names_of_recipes_sweeps_and_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "config.yaml").write_text("a: 1\n")
    for name, kind, line in (
        ("imdb-dop", "recipe", "nor a packaged recipe; did you mean 'imdb-dpo'?"),
        ("imdb-frontir", "sweep", "nor a packaged sweep; did you mean 'imdb-frontier'?"),
        ("imdb-frontier", "recipe", "it is a packaged sweep: sparsepo tune imdb-frontier"),
        ("imdb-dpo", "sweep", "it is a packaged recipe: sparsepo run imdb-dpo"),
        (f"{tmp_path}/mien.yaml", "recipe", f"did you mean '{tmp_path}/mine.yaml'?"),
        (f"{tmp_path}/runs", "recipe", f"is a folder; it holds {tmp_path}/runs/config.yaml"),
        ("train.epochs=1", "recipe", "a packaged recipe comes first, overrides after it"),
        ("nothing-like-it", "recipe", "nor a packaged recipe (code-dpo, "),
    ):
        with pytest.raises(UserError) as caught:
            read_mapping(name, kind)  # type: ignore[arg-type]
        assert line in str(caught.value)


def test_the_nearest_name() -> None:
    assert did_you_mean("dop", ["dpop", "dpo"]) == "; did you mean 'dpo'?"
    assert did_you_mean("chosen", ["rejected", "chosn"]) == "; did you mean 'chosn'?"
    assert did_you_mean("x", ["rejected"]) == ""


def test_the_nearest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs.jsonl").touch()
    (tmp_path / "models").mkdir()
    assert nearest_path(f"{tmp_path}/pair.jsonl") == f"; did you mean '{tmp_path}/pairs.jsonl'?"
    assert nearest_path(f"{tmp_path}/model") == f"; did you mean '{tmp_path}/models'?"
    assert nearest_path(f"{tmp_path}/model", (".jsonl",)) == ""
    assert nearest_path(f"{tmp_path}/gone/model") == ""
    monkeypatch.chdir(tmp_path)
    assert nearest_path("pairs.json") == "; did you mean 'pairs.jsonl'?"


def test_what_a_shell_completes() -> None:
    keys = plain_keys(Recipe)
    assert {"train.learning_rate", "data.sources", "mask.hooks", "run_dir"} <= set(keys)
    assert not {"train", "data.sources.path", "train.lora"} & set(keys)
    assert values_of(Recipe, "train.layout") == ["auto", "packed", "padded"]
    assert {"dpo", "sparsepo"} <= set(values_of(Recipe, "objective.name"))
    assert values_of(Recipe, "train.gradient_checkpointing") == ["true", "false"]
    assert values_of(Recipe, "train.learning_rate") == []
    assert values_of(Sweep, "searcher.name") == ["random", "tpe", "nsga2"]
