"""Every location of the schema, found in its JSON schema: absolute wherever it starts, looked for
on every machine, and a name where it is one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.shared_paths import _inputs, _outputs, local_paths
from pipelines.errors import UserError
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.location import locations
from pipelines.recipe.schema import Recipe
from pipelines.sweep.files import load_sweep

MODELS = {
    "model.name_or_path", "model.reference", "model.tokenizer", "model.positive_scorer",
    "model.negative_scorer", "model.embedder", "evaluate.model", "evaluate.reward.model",
    "evaluate.judge.model",
    "evaluate.summarization.bert_score_model", "evaluate.summarization.entailment_model",
    "sample.reward.model", "data.chat_template", "discriminator.editor.name_or_path",
}  # fmt: skip
DATA = {"data.sources[].path", "data.validation[].path", "data.test[].path"}
FILES = {"evaluate.key_words", "evaluate.code.tasks"}
DIRECTORIES = {
    "evaluate.leaderboard.include_path", "schedule.release", "model.discriminator",
}  # fmt: skip
STORES = {"paths.pairs", "paths.reference"}
ALL = MODELS | DATA | FILES | DIRECTORIES | STORES | {"run_dir", "ray.temp_dir"}
# Texts of the schema that name nothing on a disk.
OTHER_TEXTS = {
    "data.sources[].split", "data.sources[].subset", "data.sources[].data_dir", "mask.hooks",
    "mask.hooks[]", "train.lora.target_modules[]", "train.lora.modules_to_save[]",
    "train.selection.metric", "sft.control.good", "sft.control.bad",
    "train.tracker_project", "train.tracker_group", "evaluate.name", "evaluate.reward.label",
    "evaluate.judge.label", "evaluate.judge.base_url", "evaluate.judge.api_key_env",
    "evaluate.summarization.entailment_label", "evaluate.leaderboard.tasks[]",
    "sample.reward.label", "schedule.cron", "schedule.timezone", "schedule.gates[].metric",
    "schedule.webhook", "schedule.webhook_env", "ray.address", "ray.fallback_resource",
    "discriminator.editor.base_url", "discriminator.editor.model",
    "discriminator.editor.api_key_env",
}  # fmt: skip


def texts(schema: dict[str, Any], definitions: dict[str, Any], key: str = "") -> Iterator[str]:
    """Keys of a JSON schema that take a text of any wording."""
    if "$ref" in schema:
        yield from texts(definitions[schema["$ref"].rpartition("/")[2]], definitions, key)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from texts(choice, definitions, key)
    if schema.get("type") == "string" and not {"enum", "const"} & schema.keys():
        yield key
    if schema.get("type") == "array" and "items" in schema:
        yield from texts(schema["items"], definitions, f"{key}[]")
    for name, inner in schema.get("properties", {}).items():
        yield from texts(inner, definitions, f"{key}.{name}".lstrip("."))


def test_every_text_of_the_schema_is_a_location_or_known_to_be_none() -> None:
    schema = Recipe.model_json_schema()
    found = set(texts(schema, schema["$defs"]))
    split = {key for key in found if re.match(r"data\.(validation|test)\[\]", key)}
    columns = {key for key in found if ".columns." in key}  # names of columns
    assert found - split - columns == (ALL | OTHER_TEXTS) - split


def with_all(text: str, **more: Any) -> dict[str, Any]:
    """A recipe that names the same thing everywhere."""
    section = dict.fromkeys(
        ("positive_scorer", "negative_scorer", "embedder", "discriminator"), text
    )
    return {
        "run_dir": text,
        "model": {"name_or_path": text, "reference": text, "tokenizer": text, **section},
        "data": {
            **{split: [{"path": text}] for split in ("sources", "validation", "test")},
            "chat_template": text,
        },
        "evaluate": {
            "model": text,
            "reward": {"kind": "classifier", "model": text},
            "judge": {"kind": "reward_model", "model": text},
            "summarization": {"bert_score_model": text, "entailment_model": text},
            "code": {"tasks": text},
            "leaderboard": {"tasks": ["arc"], "include_path": text},
            "key_words": text,
        },
        "sample": {"reward": {"kind": "classifier", "model": text}},
        "discriminator": {"editor": {"kind": "model", "name_or_path": text}},
        "schedule": {"release": text},
        "paths": {"pairs": text, "reference": text},
        "ray": {"temp_dir": text},
        **more,
    }


def named(recipe: Recipe) -> dict[str, str]:
    """Key without numbers -> text, read from the recipe as it is written."""
    found: dict[str, str] = {}

    def walk(value: Any, key: str) -> None:
        for name, item in value.items() if isinstance(value, dict) else ():
            walk(item, f"{key}.{name}".lstrip("."))
        for item in value if isinstance(value, list) else ():
            walk(item, f"{key}[]")
        if key in ALL and isinstance(value, str):
            found[key] = value

    walk(recipe.model_dump(mode="json"), "")
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, and the user's home too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "below"),
    [
        ("here", "here"),
        ("~/here", "here"),
        ("~/missing", "missing"),
        ("./missing", "missing"),
        ("../missing", "../missing"),
        ("some/folder/missing", "some/folder/missing"),
        ("file:///{}/a%20b", "a b"),
    ],
)
def test_what_is_written_as_a_path_or_is_there_becomes_absolute(
    home: Path, text: str, below: str
) -> None:
    recipe = validate_recipe(with_all(text.format(str(home)[1:])))
    assert named(recipe) == dict.fromkeys(ALL, f"{home}/{below}")


@pytest.mark.parametrize("text", ["gpt2", "Qwen/Qwen3-0.6B"])
def test_names_stay_names(home: Path, text: str) -> None:
    paths = named(validate_recipe(with_all(text)))
    assert {key for key, value in paths.items() if value == text} == MODELS | DATA
    assert {value for value in paths.values() if value != text} == {f"{home}/{text}"}


def test_stores_and_endpoints_stay(home: Path) -> None:
    """`here` is a directory, and a judge's name at an endpoint all the same."""
    uri = "s3://bucket/here"
    assert named(validate_recipe(with_all(uri))) == dict.fromkeys(ALL, uri)
    judge = {"kind": "openai", "base_url": "http://localhost/v1", "model": "here"}
    recipe = validate_recipe(with_all("here", evaluate={"judge": judge}))
    assert named(recipe)["evaluate.judge.model"] == "here"


def test_patterns_are_absolute_and_looked_for_by_a_file(home: Path) -> None:
    (home / "here" / "below").mkdir()
    for name in ("one.jsonl", "below/a.jsonl"):
        (home / "here" / name).write_text("")
    recipe = validate_recipe(with_all("here/*.jsonl"))
    paths = named(recipe)
    assert {paths[key] for key in DATA} == {f"{home}/here/*.jsonl"}
    assert {paths[key] for key in MODELS} == {"here/*.jsonl"}, "a model is no pattern"
    keys = [f"data.{group}[0].path" for group in ("sources", "validation", "test")]
    assert local_paths(recipe) == dict.fromkeys(keys, str(home / "here" / "one.jsonl"))
    deep = validate_recipe(with_all("here/**/a.jsonl"))
    assert local_paths(deep) == dict.fromkeys(keys, str(home / "here" / "below" / "a.jsonl"))
    assert local_paths(validate_recipe(with_all("~/here/*.parquet"))) == {}


def test_every_machine_has_to_see_what_is_there(home: Path) -> None:
    recipe = validate_recipe(with_all("here"))
    shared = {re.sub(r"\[\d+\]", "[]", key) for key in local_paths(recipe)}
    assert shared == ALL - {"ray.temp_dir"}, "that is of one machine"
    assert {key for key, _ in _outputs(recipe)} == {"run_dir"}
    inputs = {re.sub(r"\[\d+\]", "[]", key) for key, _ in _inputs(recipe)}
    assert inputs == ALL - {"ray.temp_dir", "run_dir"}
    missing = validate_recipe(with_all("./missing"))
    assert {key for key, _ in _outputs(missing)} == STORES | {"run_dir"}
    assert dict(_inputs(missing)) == {} == local_paths(missing)


def test_a_second_entry_counts_and_none_does_not(home: Path) -> None:
    recipe = validate_recipe(
        {
            "run_dir": "run",
            "model": {"name_or_path": "gpt2"},
            "data": {"sources": [{"path": "s3://b/x.jsonl"}, {"path": "./y.jsonl"}]},
        }
    )
    assert {key: text for key, text, _ in locations(recipe)} == {
        "run_dir": f"{home}/run",
        "model.name_or_path": "gpt2",
        "data.sources[0].path": "s3://b/x.jsonl",
        "data.sources[1].path": f"{home}/y.jsonl",
    }


def test_a_sweeps_relative_paths_start_where_its_command_ran(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials run in directories of their own: paths in the recipe, in overrides, in the space."""
    recipe = {
        "run_dir": "unused",
        "model": {"name_or_path": "./model"},
        "data": {"sources": [{"path": "./pairs.jsonl"}], "validation_fraction": 0.1},
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    space = {"sample.reward.model": {"grid": ["./one", "./two"]}}
    overrides = ["sample.reward.kind=classifier", "schedule.release=./release"]
    sweep_file = {"run_dir": "sweep", "recipe": "recipe.yaml", "overrides": overrides}
    (home / "sweep.yaml").write_text(yaml.safe_dump({**sweep_file, "space": space}))
    sweep = load_sweep("sweep.yaml")
    monkeypatch.chdir(home / "here")
    assert sweep.run_dir == f"{home}/sweep"
    trial = sweep.recipe_at({"sample.reward.model": "./two"}, sweep.run_dir)
    found = {key: text for key, text, _ in locations(trial)}
    assert found == {
        "run_dir": f"{home}/sweep",
        "model.name_or_path": f"{home}/model",
        "data.sources[0].path": f"{home}/pairs.jsonl",
        "sample.reward.model": f"{home}/two",
        "schedule.release": f"{home}/release",
    }


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x" * 300, "a name in it has 300 bytes, at most 255 are possible"),
        ("missing/" + "é" * 128 + "/run", "a name in it has 256 bytes, at most 255"),
        ("d/" * 2100, "bytes, at most 4095 are possible"),
        ("a\0b", "no file can be called so"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused_by_its_key(
    tmp_path: Path, name: str, line: str
) -> None:
    """Case 12: run_dir, a store, a source; the longest name that there can be is taken."""
    path = f"{tmp_path}/{name}"
    plain = {
        "run_dir": "r",
        "model": {"name_or_path": "m"},
        "data": {"sources": [{"path": "p"}]},
    }
    for key, value in (
        ("run_dir", {"run_dir": path}),
        ("paths.pairs", {"paths": {"pairs": path}}),
        ("data.sources[0].path", {"data": {"sources": [{"path": path}]}}),
    ):
        with pytest.raises(UserError, match=line) as raised:
            validate_recipe({**plain, **value})
        assert str(raised.value).startswith(f"{key} = ")
        assert len(str(raised.value)) < 250 and "\n" not in str(raised.value)
    validate_recipe({**plain, "run_dir": f"{tmp_path}/{'x' * 255}"})
