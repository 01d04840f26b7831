"""Evaluations of a model that was not trained here, and several of one run beside each other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from local_executor import LocalExecutor
from runs import MakeRecipe, run_here
from text_models import write_reward_model

from evaluation.metrics import vader_scores
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.cli import main
from pipelines.commands.plan import run_plan
from pipelines.commands.report import run_report
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, RUN, TRAIN
from pipelines.commands.status import run_status
from pipelines.commands.submit import packaged_command
from pipelines.errors import UserError
from pipelines.evaluate.history import read_results
from pipelines.evaluate.schedule import check_run
from pipelines.recipe.files import load_recipe, validate_recipe, write_yaml
from pipelines.recipe.run_paths import SAMPLES, RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL = (
    "data.max_prompt_tokens=24", "data.max_response_tokens=24", "evaluate.num_prompts=8",
    "evaluate.bootstrap_samples=200", "evaluate.generation.max_new_tokens=8",
)  # fmt: skip
Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(
    recipe_in: MakeRecipe, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """A finished run of DPO whose test split, test.jsonl beside it, is a file of its own."""
    folder = tmp_path_factory.mktemp("other")
    for name, part in (("train", rows[:60]), ("test", rows[60:80])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    recipe = recipe_in(
        folder / "run", *SMALL, "train.max_steps=3", "data.test_fraction=0",
        f"data.sources=[{{path: {folder / 'train.jsonl'}}}]",
        f"data.test=[{{path: {folder / 'test.jsonl'}}}]",
        "evaluate.benchmarks=[preference, sentiment]",
    )  # fmt: skip
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE))
    return recipe


def pairs_of(recipe: Recipe) -> str:
    return recipe.data.test[0].path


@pytest.fixture
def evaluate(capfd: pytest.CaptureFixture[str]) -> Evaluate:
    """evaluate(argument, ...) -> exit code, what is printed, and the errors."""

    def act(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with executed_by(LocalExecutor()), pytest.raises(SystemExit) as ended:
            main(["evaluate", *arguments])
        return int(ended.value.code or 0), *capfd.readouterr()

    return act


@pytest.mark.slow
def test_a_model_by_flags_is_what_its_own_run_found(
    trained: Recipe, evaluate: Evaluate, tmp_path: Path
) -> None:
    """The run's published model against its start on the same pairs: the same numbers, though no
    stage of training is there. Typed again it does nothing but write the page.
    """
    out = tmp_path / "out"
    flags = ("--model", RunPaths.of(trained).model, "--reference", trained.model.name_or_path)
    flags += ("--pairs", pairs_of(trained), "--output", str(out))
    code, said, errors = evaluate(*flags, *SMALL)
    assert code == 0, errors
    assert "nothing is compared" not in said and not (out / "train").exists()
    found = read_results(RunStore(f"{out}/evaluation"))
    assert found == read_results(RunPaths.of(trained).evaluation)
    assert found["sentiment"]["kl/policy_reference"]["mean"] > 0
    code, said, _ = evaluate(*flags, *SMALL)
    assert code == 0 and "prepare: already done" in said and "evaluate: already done" in said

    page = (out / "report" / "index.html").read_text()
    assert "What was evaluated" in page and "What was run" not in page
    assert "Training curves" not in page and "trained one" not in page
    assert f"<td>{RunPaths.of(trained).model}</td><td>{trained.model.name_or_path}</td>" in page
    states = {row["stage"]: row["state"] for row in run_status(str(out))}
    assert states == {
        "prepare": "done", "evaluate": "done", "report": "done",
    }, states  # fmt: skip
    # `run` and `plan` of what was kept are the same way.
    kept = load_recipe(str(out / "config.yaml"))
    assert run_stages(kept, RUN, lambda line: None) == {
        "prepare": "skipped", "evaluate": "skipped", "report": "done",
    }  # fmt: skip
    assert set(run_plan(kept)) == {"data", "evaluate", "total"}
    with pytest.raises(UserError, match=r"data.sources = \[\]: there are no pairs to train on"):
        run_stages(kept, (TRAIN,), lambda line: None)


def test_a_model_alone_is_compared_with_nothing(
    trained: Recipe, evaluate: Evaluate, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, errors = evaluate(
        "--model", RunPaths.of(trained).model, "--pairs", pairs_of(trained), "--output", str(out),
        *SMALL,
    )  # fmt: skip
    assert code == 0, errors
    assert "\nevaluate: nothing is compared: the model is its own reference" in said
    found = read_results(RunStore(f"{out}/evaluation"))
    of_run = read_results(RunPaths.of(trained).evaluation)
    for which in ("before", "after"):
        assert (
            found["preference"][f"accuracy/logps/{which}"]
            == (of_run["preference"]["accuracy/logps/after"])
        )
    assert found["sentiment"]["reward/gain"]["mean"] == 0
    assert found["sentiment"]["kl/policy_reference"]["mean"] == pytest.approx(0, abs=1e-5)
    page = (out / "report" / "index.html").read_text()
    assert "Nothing is compared" in page and "did not clearly change" not in page
    assert "Did it help" not in page and "largest gains" not in page


@pytest.mark.slow
def test_another_reward_stands_beside_the_first(
    trained: Recipe, evaluate: Evaluate, tmp_path: Path
) -> None:
    """By a name: the first stays byte for byte, status and page show both."""
    run = tmp_path / "run"
    shutil.copytree(trained.run_dir, run)
    words = sorted({w for line in Path(pairs_of(trained)).read_text().split() for w in [line]})
    judge = write_reward_model(tmp_path / "reward", words)
    file = tmp_path / "mine.yaml"
    file.write_text(write_yaml(trained.model_copy(update={"run_dir": str(run)})))
    other = f"evaluate.reward={{kind: classifier, model: {judge}, label: LABEL_0}}"
    assert evaluate(str(file))[1].startswith("evaluate: already done")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, errors = evaluate(str(file), other)
    assert code == 2 and "setting evaluate.reward.kind was" in errors
    assert errors.rstrip().endswith("or keep both: name this one with evaluate.name")

    code, _, errors = evaluate(str(file), other, "--name", "by-model")
    assert code == 0, errors
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert not changed, changed
    named = RunStore(f"{run}/evaluation/named/by-model")
    drawn, first = (
        [json.loads(line) for line in store.read_bytes(SAMPLES).splitlines()]
        for store in (named, RunStore(f"{run}/evaluation"))
    )
    assert [s["policy_text"] for s in drawn] == [s["policy_text"] for s in first]
    assert [s["policy_reward"] for s in first] == vader_scores([s["policy_text"] for s in first])
    assert [s["policy_reward"] for s in drawn] != [s["policy_reward"] for s in first]
    foreign = [f"evaluate.model={trained.model.name_or_path}", "objective.beta=0.7"]
    code, _, errors = evaluate(str(file), *foreign, "--name", "start")
    assert code == 0 and (run / "config.yaml").read_bytes() == before[run / "config.yaml"], errors
    assert evaluate(str(file), other, "--name", "by-model")[1].startswith("evaluate: already done")

    rows = {row["stage"]: row for row in run_status(str(run))}
    assert rows["evaluate"]["state"] == rows["evaluate by-model"]["state"] == "done"
    assert rows["evaluate by-model"]["path"] == named.root
    page = Path(run_report([str(run)])).read_text()
    assert ": evaluation by-model</h3>" in page and "classifier" in page
    numbers = json.loads((run / "report" / "results.json").read_text())["dpo"]
    assert numbers["evaluations"]["by-model"] == read_results(named)
    gain = numbers["evaluations"]["start"]["sentiment"]["reward/gain"]
    assert gain["low"] < gain["mean"] == 0 < gain["high"] and "Nothing is compared" in page
    assert numbers["sentiment"] == read_results(RunStore(f"{run}/evaluation"))["sentiment"]
    mean = numbers["evaluations"]["by-model"]["sentiment"]["reward/after"]
    assert f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in page
    (run / "evaluation" / "named" / "start" / "config.yaml").unlink()
    with pytest.raises(UserError, match="start/config.yaml is missing: give the evaluation's comm"):
        run_report([str(run)])
    shutil.rmtree(run / "evaluation")
    code, _, errors = evaluate(str(file), *foreign)
    assert code == 2 and "has a training of its own; name this evaluation with" in errors


def _words(**given: str) -> list[str]:
    return [word for key, value in given.items() for word in (f"--{key}", value)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "evaluate: name a RECIPE, or a model that was not trained here with --model DIR"),
        (["hh-dpo", *_words(model="m")], "a recipe (hh-dpo) and --model: flags make a recipe of"),
        (_words(pairs="p"), "--pairs: goes with --model DIR, which is missing"),
        (_words(model="m", output="o"), "--model: needs --pairs FILE: preference pairs"),
        (_words(model="m"), "--pairs FILE: preference pairs that the model has not seen and --out"),
        (_words(model="/no/m", pairs="p", output="o"), "'/no/m'"),
        (["hh-dpo", "--name", "a/b"], "evaluate.name"),
        (["sparsepo=1"], "a file or a packaged recipe comes first"),
    ],
)
def test_flags_that_do_not_go_together(
    arguments: list[str], message: str, evaluate: Evaluate, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, said, errors = evaluate(*arguments)
    assert (code, said) == (2, "") and errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.test=[]"], r"data.sources = \[\]: name pairs to train on \(only evaluate.model"),
        (["evaluate.split=validation"], "needs held-out pairs, and data.validation_fraction = 0"),
        (["evaluate.benchmarks=[masks]"], "evaluate.benchmarks names masks: evaluate.model has no"),
        (["data.test=[{path: EMPTY}]"], "no usable pair in .*empty response: 1"),
        (["evaluate.model=SWAPPED"], "its tokenizer has other tokens than the one that encodes"),
        (["data.max_prompt_tokens=4000"], "the model reads at most 128 tokens"),
    ],
)
def test_plan_refuses_what_evaluate_refuses(
    overrides: list[str], message: str, evaluate: Evaluate, tmp_path: Path, model_dir: Path,
    pairs_file: Path,
) -> None:  # fmt: skip
    (tmp_path / "empty.jsonl").write_text('{"prompt": "a", "chosen": "", "rejected": "b"}\n')
    swapped = tmp_path / "swapped"
    shutil.copytree(model_dir, swapped)
    known = json.loads((swapped / "tokenizer.json").read_text())
    words = known["model"]["vocab"]
    last, before = sorted(words, key=words.__getitem__)[-1:-3:-1]
    words[last], words[before] = words[before], words[last]
    (swapped / "tokenizer.json").write_text(json.dumps(known))
    given = [
        item.replace("EMPTY", f"{tmp_path / 'empty.jsonl'}").replace("SWAPPED", str(swapped))
        for item in overrides
    ]
    out = tmp_path / "out"
    code, _, errors = evaluate(
        *_words(model=str(model_dir), pairs=str(pairs_file), output=str(out)),
        *SMALL, "-q", *given,
    )  # fmt: skip
    assert code == 2 and errors.count("\n") == 1 and not out.exists()
    mapping = {
        "run_dir": str(out),
        "model": {"name_or_path": str(model_dir)},
        "data": {"sources": [], "test": [{"path": str(pairs_file)}]},
        "evaluate": {"model": str(model_dir), "benchmarks": ["preference", "sentiment"]},
    }
    with pytest.raises(UserError, match=message) as caught:
        run_plan(validate_recipe(mapping, [*SMALL, *given]))
    assert errors == f"error: {caught.value}\n"


def test_schedules_and_sweeps_evaluate_what_they_train(trained: Recipe, tmp_path: Path) -> None:
    from pipelines.sweep.files import load_sweep

    for key, value in (("model", trained.model.name_or_path), ("name", "other")):
        section = trained.evaluate.model_copy(update={key: value})
        recipe = trained.model_copy(update={"evaluate": section})
        with pytest.raises(UserError, match=f"evaluate.{key} = .*: a schedule evaluates every"):
            check_run(Run(recipe))
        (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
        sweep = {
            "recipe": str(tmp_path / "recipe.yaml"), "run_dir": str(tmp_path / "sweep"),
            "space": {"objective.beta": {"grid": [0.1, 0.2]}},
            "objectives": [{"metric": "train/loss", "mode": "min"}],
        }  # fmt: skip
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        with pytest.raises(UserError, match=f"evaluate.{key} = .*: a trial evaluates the model"):
            load_sweep(str(tmp_path / "sweep.yaml"))


def test_a_job_gets_the_recipe_of_the_flags(model_dir: Path, pairs_file: Path) -> None:
    """With absolute places, as a recipe that `run` takes the same way."""
    import typer

    from pipelines.commands.cli import app

    command = ["evaluate", *_words(model=str(model_dir), pairs=str(pairs_file), output="out"), "-q"]
    with packaged_command([*command, *SMALL], typer.main.get_command(app)) as (package, resolved):
        assert resolved == ["run", "recipe.yaml", "-q"]
        sent = load_recipe(str(package / "recipe.yaml"))
    assert (sent.evaluate.model, sent.run_dir) == (str(model_dir), str(Path.cwd() / "out"))
    assert sent.evaluate.num_prompts == 8
