"""What a merge and its plan refuse: in one line, with exit code 2, before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from pipelines.commands.cli import main
from pipelines.commands.quickstart_world import write_untrained_model
from pipelines.recipe.schema import Recipe

Case = Callable[[Path, list[str]], tuple[list[str], list[str]]]  # -> models, overrides


def models(*changed: str | int, overrides: tuple[str, ...] = ()) -> Case:
    """A number stands for one of the two finished runs, a text for a folder of the test's own."""
    return lambda folder, runs: (
        [runs[m] if isinstance(m, int) else str(folder / m) for m in changed],
        list(overrides),
    )


def given(*overrides: str) -> Case:
    return lambda folder, runs: (runs, [item.replace("FOLDER", str(folder)) for item in overrides])


def changed(name: str, change: Callable[[Path], object]) -> Case:
    """A copy of the first run with another file."""

    def make(folder: Path, runs: list[str]) -> tuple[list[str], list[str]]:
        shutil.copytree(runs[0], folder / "copy")
        change(folder / "copy" / name)
        return [str(folder / "copy"), runs[1]], []

    return make


def a_sweep(folder: Path, runs: list[str]) -> tuple[list[str], list[str]]:
    begun = {"schema_version": 2, "stage": "tune", "settings": {}, "inputs": {}}
    (folder / "sweep").mkdir()
    (folder / "sweep" / "started.json").write_text(json.dumps(begun))
    return [runs[0], str(folder / "sweep")], []


def another_tokenizer(folder: Path, runs: list[str]) -> tuple[list[str], list[str]]:
    write_untrained_model(folder / "other", ["other words than before"] * 20, seed=1)
    return [runs[0], str(folder / "other")], []


def more_rows(folder: Path, runs: list[str]) -> tuple[list[str], list[str]]:
    shutil.copytree(f"{runs[0]}/train/model", folder / "more")
    model = AutoModelForCausalLM.from_pretrained(folder / "more")
    model.resize_token_embeddings(2100, mean_resizing=False)
    model.save_pretrained(folder / "more")
    return [runs[0], str(folder / "more")], []


def prompts(*lines: dict[str, object], column: str = "lambda", **more: str) -> Case:
    def make(folder: Path, runs: list[str]) -> tuple[list[str], list[str]]:
        (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        of_file = [f"prompts={{path: {folder}/p.jsonl}}", f"weights_column={column}"]
        return runs, [*of_file, *(f"{key}={value}" for key, value in more.items())]

    return make


def models_alone(*overrides: str) -> Case:
    return lambda folder, runs: ([f"{run}/train/model" for run in runs], list(overrides))


REFUSED: dict[str, tuple[Case, str]] = {
    "one model": (models(0), "a merge takes at least two"),
    "one model twice": (models(0, 0), "one of them occurs twice"),
    "nowhere": (models(0, "nowhere"), "nowhere: no run here (no such directory"),
    "no run": (models(0, "."), "no run here (no config.yaml)"),
    "a recipe": (models(0, "config.yaml"), "the run itself is meant: "),
    "a sweep": (a_sweep, "is a sweep, which has a model per trial"),
    "untrained": (
        changed("train/manifest.json", Path.unlink),
        "has no finished training (",
    ),
    "without a model": (
        changed("train/model", shutil.rmtree),
        "is missing or damaged: it is not what training published",
    ),
    "damaged": (
        changed("train/model/model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-1])),
        "is missing or damaged",
    ),
    "another tokenizer": (another_tokenizer, "has another tokenizer than "),
    "more rows": (more_rows, "has 2100 tokens, "),
    "too few weights": (given("weights=[[1]]"), "weights [1.0]: must be 2, one per model"),
    "nan": (given("weights=[[.nan,1]]"), "must be finite"),
    "negative in a mixture": (given("weights=[[1.5,-0.5]]"), "a mixture takes none below 0 (form"),
    "no weight": (given("weights=[[0,0]]"), "their sum must be above 0"),
    "no point": (given("steps=0"), "steps = 0: no weights are left"),
    "an unknown form": (given("forms=[sum]"), "input should be 'mixture' or 'product'"),
    "a form twice": (given("forms=[mixture,mixture]"), "one of them occurs twice"),
    "one reward": (given("rewards=[{kind: brevity}]"), "rewards = [brevity]: a frontier takes"),
    "an unknown reward": (given("rewards=[{kind: short},{kind: vader}]"), "'brevity'"),
    "no classifier": (
        given("rewards=[{kind: vader},{kind: classifier, model: FOLDER/gone}]"),
        "rewards[1].model: model '",
    ),
    "vllm": (given("generation.engine=vllm"), "merged samples are drawn with transformers"),
    "too long": (given("generation.max_new_tokens=500"), "generation.max_new_tokens = 500 are"),
    "a run's place": (lambda f, runs: (runs, [f"run_dir={runs[1]}"]), "a run is there"),
    "a deep folder": (given(f"ray.temp_dir=/{'d' * 90}"), "Ray's sockets lie deep below it"),
    "an unknown key": (given("weigths=[[1,0]]"), "weigths"),
    "a column of no file": (given("weights_column=lambda"), "it is a column of a file of prompts"),
    "no column": (prompts({"prompt": "a film"}), "p.jsonl:1: weights_column = 'lambda' holds no"),
    "no list": (prompts({"prompt": "a", "lambda": 0.5}), "holds no list of 2 numbers"),
    "a row's weights": (
        prompts({"prompt": "a", "lambda": [1, 0]}, {"prompt": "b", "lambda": [2, -1]}),
        "p.jsonl:2: weights [2, -1]: a mixture takes none below 0",
    ),
    "no prompt": (prompts({"prompt": " ", "lambda": [1, 0]}), "no prompt to sample from"),
    "no run with prompts": (models_alone(), "none of them is a run with held-out prompts"),
    "no run with pairs": (
        models_alone("map={}", "prompts={path: FILE}"), "none of the models is a run with pairs",
    ),
    "no pairs": (given("map={pairs: FOLDER}"), "holds no prepared pairs"),
    "no packaged name": (lambda f, runs: ([], []), "it is a packaged merge: sparsepo merge"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(
    case: str, learned_run: Recipe, adapter_run: Recipe, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make, said = REFUSED[case]
    named, overrides = make(tmp_path, [learned_run.run_dir, adapter_run.run_dir])
    (tmp_path / "FILE").write_text('{"prompt": "a film"}\n')
    overrides = [item.replace("path: FILE", f"path: {tmp_path}/FILE, format: jsonl")
                 for item in overrides]  # fmt: skip
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "merged"), "models": named}))
    named_merge = [[command, str(file), *overrides] for command in ("plan", "merge")]
    for command in named_merge if named else [["run", "two-rewards"]]:
        with pytest.raises(SystemExit) as ended:
            main(command)
        err = capsys.readouterr().err
        assert ended.value.code == 2
        line = [one for one in err.splitlines() if one.startswith("error: ")]
        assert len(line) == 1 and said in line[0], err
        assert "Traceback" not in err and not (tmp_path / "merged").exists()
