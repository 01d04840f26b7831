"""Every benchmark through the evaluate stage on a trained run: numbers recomputed from the kept
samples, kills, bad input.
"""

import json
import shutil
from pathlib import Path

import pytest
from by_hand import accept_files
from local_executor import LocalExecutor
from runs import MakeRecipe, run_here
from text_models import write_encoder, write_entailment, write_reward_model

from evaluation.metrics import rouge, self_bleu, vader_scores
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, EXECUTE, PREPARE, REFERENCE, TRAIN
from pipelines.errors import UserError
from pipelines.evaluate.benchmarks import CODE_SAMPLES, SAMPLES
from pipelines.evaluate.code_tasks import read_code_tasks
from pipelines.evaluate.history import read_history, read_results
from pipelines.evaluate.leaderboard import check_tasks, task_files_hash
from pipelines.evaluate.text_scorer import check_text_models
from pipelines.evaluate.vllm_generation import Request, vllm_processor
from pipelines.models.response_ends import ResponseEnds
from pipelines.recipe.evaluation import CodeSection, GenerationSection
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.storage.task_results import TaskResults

TASKS = [
    {
        "task_id": "T/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    },
    {"task_id": 1, "text": "Return two.", "test_list": ["assert two() == 2"]},
]


def write_task(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A multiple-choice task for lm-evaluation-harness: which of both responses continues the
    prompt; the first one is right.
    """
    place = folder / "harness"
    place.mkdir()
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "prefers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{[chosen, rejected]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (place / "prefers.yaml").write_text(json.dumps(task))
    return place


@pytest.fixture(scope="module")
def evaluated(
    recipe_in: MakeRecipe,
    rows: list[dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> Recipe:
    """A trained run with every benchmark evaluated, programs not yet run."""
    folder = tmp_path_factory.mktemp("benchmarks")
    words = sorted(
        {word for row in rows for text in row.values() for word in text.replace(".", " .").split()}
    )
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    recipe = recipe_in(
        folder / "run",
        "train.max_steps=4",
        "train.epochs=10",
        "train.checkpoint_every=2",
        "train.keep_checkpoints=10",
        "objective.name=mapo",
        "mask={kind: activation}",
        "evaluate.benchmarks=[preference, masks, sentiment, dialogue, summarization, code, "
        "leaderboard]",
        f"evaluate.leaderboard={{tasks: [prefers], include_path: {write_task(folder, rows)}, "
        f"batch_size: 3, limit: 20}}",
        "evaluate.temperatures=[1.0, 0.0]",
        "evaluate.samples_per_prompt=2",
        "evaluate.sequences_per_batch=5",
        f"evaluate.judge={{kind: reward_model, model: "
        f"{write_reward_model(folder / 'reward', words)}}}",
        f"evaluate.summarization={{bert_score_model: {write_encoder(folder / 'encoder', words)}, "
        "bert_score_layer: 2, entailment_model: "
        f"{write_entailment(folder / 'entailment', words)}}}",
        f"evaluate.code={{tasks: {folder / 'tasks.jsonl'}, num_samples: 3, k: [1, 2, 10], "
        f"generation: {{max_new_tokens: 6}}}}",
    )
    run_here(recipe, (PREPARE, REFERENCE, TRAIN, EVALUATE))
    return recipe


def samples_of(recipe: Recipe) -> list[dict[str, object]]:
    store = RunStore(f"{recipe.run_dir}/evaluation")
    return [json.loads(line) for line in store.read_bytes(SAMPLES).splitlines()]


@pytest.mark.slow
def test_numbers_are_those_of_the_kept_samples(evaluated: Recipe) -> None:
    """Rewards, ROUGE, self-BLEU and win rates from the samples file by other means; temperature
    0 has names of its own, and one sample of a prompt, which has nothing to be like.
    """
    results = read_results(RunStore(f"{evaluated.run_dir}/evaluation"))
    samples = samples_of(evaluated)
    assert set(results) == {
        "preference",
        "masks",
        "sentiment",
        "dialogue",
        "summarization",
        "leaderboard",
    }
    for number, prefix, each in ((0, "", 2), (1, "temperature=0/", 1)):
        count = 16 * each
        drawn = [s for s in samples if s["temperature_number"] == number]
        assert [(s["order"], s["sample"]) for s in drawn] == [
            (order, sample) for order in range(16) for sample in range(each)
        ]
        after, chosen = (
            [str(s["policy_text"]) for s in drawn],
            [str(s["chosen_text"]) for s in drawn],
        )
        mean = sum(vader_scores(after)) / count
        assert results["sentiment"][f"{prefix}reward/after"]["mean"] == pytest.approx(mean)
        assert results["summarization"][f"{prefix}rouge1/after"]["mean"] == pytest.approx(
            sum(rouge(after, chosen)["rouge1"]) / count
        )
        alike = results["summarization"].get(f"{prefix}self_bleu/after")
        assert (alike is None) == (each == 1)
        assert alike is None or alike["mean"] == pytest.approx(
            sum(sum(self_bleu(after[i : i + 2])) for i in range(0, 32, 2)) / 32
        )
        wins = [1.0 if s["policy_judge_score"] > s["start_judge_score"] else 0.0 for s in drawn]  # type: ignore[operator]
        ties = [0.5 for s in drawn if s["policy_judge_score"] == s["start_judge_score"]]
        assert results["dialogue"][f"{prefix}win_rate/start"]["mean"] == pytest.approx(
            (sum(wins) + sum(ties)) / count
        )
        assert 0 < results["summarization"][f"{prefix}entailment/after"]["mean"] < 1
        assert 0 < results["summarization"][f"{prefix}bert_score/after"]["mean"] <= 1
    assert (
        results["sentiment"]["temperature"] == 1.0
        and results["sentiment"]["temperature=0/temperature"] == 0.0
    )
    first = {s["order"]: s["chosen_text"] for s in samples if s["temperature_number"] == 0}
    assert all(first[s["order"]] == s["chosen_text"] for s in samples), (
        "the same prompt at both temperatures"
    )
    warm = [s["policy_text"] for s in samples if s["temperature_number"] == 0]
    assert warm[::2] != warm[1::2]
    sentiment = results["sentiment"]
    assert sentiment["kl/policy_reference"]["n"] == sentiment["num_prompts"] == 16
    assert "temperature=0/kl/policy_reference" not in sentiment, "those are no samples of its own"
    assert sentiment["temperature=0/kl/policy_reference_off_policy"]["n"] == 16
    for key in ("kl/policy_reference_floor", "temperature=0/kl/policy_reference_off_policy_floor"):
        assert sentiment[key] == 0.0, "policy and reference are computed alike"
    assert results["preference"]["kl/reference_policy_floor"] == 0.0


@pytest.mark.slow
def test_leaderboard_equals_log_probabilities_computed_apart(
    evaluated: Recipe, rows: list[dict[str, str]]
) -> None:
    """Accuracy on the first 20 documents: the chosen text has the larger sum of
    log-probabilities after the prompt, by a bare forward.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = read_results(RunStore(f"{evaluated.run_dir}/evaluation"))["leaderboard"]
    for who, folder in (
        ("before", evaluated.model.name_or_path),
        ("after", f"{evaluated.run_dir}/train/model"),
    ):
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder).eval(),
            AutoTokenizer.from_pretrained(folder),
        )
        hits = 0
        for row in rows[:20]:
            sums = []
            for text in (row["chosen"], row["rejected"]):
                prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
                whole = tokenizer(row["prompt"] + text, add_special_tokens=False).input_ids
                with torch.no_grad():
                    logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
                sums.append(
                    sum(float(logps[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
                )
            hits += sums[0] > sums[1]
        assert found[f"prefers/acc/{who}"]["mean"] == pytest.approx(hits / 20)
        assert found[f"prefers/acc/{who}"]["n"] == 20
    assert found["settings"]["batch_size"] == 3 and found["settings"]["num_fewshot"] == {
        "prefers": 0
    }


@pytest.mark.slow
def test_masks_by_class_and_position_add_up(evaluated: Recipe) -> None:
    masks = read_results(RunStore(f"{evaluated.run_dir}/evaluation"))["masks"]
    for table in ("by_class", "by_position"):
        rows = masks[f"reward_mask/{table}"]
        assert sum(row["count"] for row in rows) == masks["num_tokens"]
        mean = sum(row["count"] * row["mean_weight"] for row in rows) / masks["num_tokens"]
        assert mean == pytest.approx(masks["reward_mask/mean"])
    assert sum(row["weight_fraction"] for row in masks["reward_mask/by_class"]) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.actors
def test_programs_are_run_on_request_only(evaluated: Recipe) -> None:
    """Sampled, kept, not run; then run by a step of its own: an untrained model passes nothing,
    a right answer planted among the samples passes.
    """
    store = RunStore(f"{evaluated.run_dir}/evaluation")
    assert "code" not in read_results(store)
    kept = [json.loads(line) for line in store.read_bytes(CODE_SAMPLES).splitlines()]
    assert sorted(row["task_id"] for row in kept) == ["1", "T/0"]
    assert all(len(row[f"{who}_texts"]) == 3 for row in kept for who in ("start", "policy"))
    for row in kept:
        row["policy_texts"][1] = (
            "    return 1\n" if row["task_id"] == "T/0" else "def two():\n    return 2\n"
        )
    store.write_bytes(CODE_SAMPLES, "".join(json.dumps(row) + "\n" for row in kept).encode())
    accept_files(store)
    assert run_stages(evaluated, (EXECUTE,), lambda line: None) == {"execute": "done"}
    code = read_results(store)["code"]
    assert code["pass@1/after"]["mean"] == pytest.approx(1 / 3)
    assert code["pass@2/after"]["mean"] == pytest.approx(2 / 3), "1 - C(2, 2) / C(3, 2)"
    assert code["pass@1/before"]["mean"] == 0
    assert "pass@10/after" not in code
    verdicts = [
        json.loads(line)
        for line in (Path(store.root) / "code" / "verdicts.jsonl").read_text().splitlines()
    ]
    assert sum(v["status"] == "passed" for v in verdicts) == 2
    assert run_stages(evaluated, (EXECUTE,), lambda line: None) == {"execute": "skipped"}


@pytest.mark.slow
def test_history_has_a_row_per_evaluation(evaluated: Recipe) -> None:
    rows = [
        row
        for row in read_history(RunStore(f"{evaluated.run_dir}/evaluation"))
        if "sentiment/reward/after" in row
    ]
    results = read_results(RunStore(f"{evaluated.run_dir}/evaluation"))
    assert len(rows) == 1
    assert rows[0]["sentiment/reward/after"] == results["sentiment"]["reward/after"]["mean"]
    assert rows[0]["sentiment/reward/after/low"] == results["sentiment"]["reward/after"]["low"]


@pytest.mark.slow
@pytest.mark.actors
def test_an_unfinished_evaluation_goes_on_from_its_parts(
    evaluated: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept parts are taken as they are (one is altered to prove it), missing ones are made
    again, here by two actors of Ray, and the parts go in the end.
    """
    shutil.copytree(evaluated.run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    section = evaluated.evaluate.model_copy(update={"num_actors": 2})
    recipe = evaluated.model_copy(update={"run_dir": str(tmp_path / "run"), "evaluate": section})
    evaluation = RunStore(f"{recipe.run_dir}/evaluation")
    kept: list[dict[str, object]] = []

    class Dies(TaskResults):
        def add(self, tasks, results):  # type: ignore[no-untyped-def]
            for task, result in zip(tasks, results, strict=True):
                if kept:
                    raise KeyboardInterrupt
                for record in result.get("pair", []):
                    record["reward_chosen"] = 1e6
                kept.append(task)
                super().add([task], [result])

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.evaluate.benchmarks.TaskResults", Dies)
        with pytest.raises(KeyboardInterrupt), executed_by(LocalExecutor()):
            EVALUATE.run(Run(recipe), print, True)
    assert not evaluation.exists("manifest.json") and len(evaluation.names("parts")) == 1
    monkeypatch.setattr("pipelines.evaluate.benchmarks._RANKED_HERE", -1)  # in a process of its own
    EVALUATE.run(Run(recipe), print, True)
    stores = (evaluation, RunStore(f"{evaluated.run_dir}/evaluation"))
    ranked = [read_results(store)["masks"] for store in stores]
    assert ranked[0] == ranked[1] and len(ranked[0]) > 9
    assert read_results(evaluation)["preference"]["accuracy/implicit_reward"]["mean"] == 1.0, (
        "the altered part was used"
    )
    assert not evaluation.exists("parts")
    for again, before in zip(samples_of(recipe), samples_of(evaluated), strict=True):
        # Two actors have a thread each: what models say of a sample is the same to rounding.
        said = {key for key, value in before.items() if isinstance(value, float)}
        assert len(said) > 5
        assert [again.pop(key) for key in said] == pytest.approx([before.pop(key) for key in said])
        assert again == before, "what was sampled anew is what was sampled before"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"task_id": 1, "text": "x"}',
            "row 1: column test_list is missing or no list; it has task_id, text",
        ),
        ('{"task_id": 1, "prompt": "x", "entry_point": "f"}', "row 1: column test is missing"),
        ("nonsense", "row 1: not JSON"),
        ("[1]", "row 1: not a JSON object"),
        ("", "no tasks"),
    ],
)
def test_task_files_are_checked(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_code_tasks(CodeSection(tasks=str(tmp_path / "tasks.jsonl")))
    with pytest.raises(UserError, match="no such file"):
        read_code_tasks(CodeSection(tasks=str(tmp_path / "none.jsonl")))


@pytest.mark.slow
def test_an_unknown_task_is_named(evaluated: Recipe) -> None:
    section = evaluated.evaluate.leaderboard
    assert section is not None
    with pytest.raises(UserError, match="no task 'prefer'; did you mean 'prefers'"):
        check_tasks(section.model_copy(update={"tasks": ("prefer",)}))
    with pytest.raises(UserError, match="include_path = '/nowhere': no such directory"):
        task_files_hash("/nowhere")


@pytest.mark.slow
def test_models_of_the_metrics_are_checked_before_anything_runs(
    evaluated: Recipe, tmp_path: Path
) -> None:
    mapping = evaluated.model_dump(mode="json")
    for overrides, message in (
        (
            ["evaluate.summarization.entailment_label=agrees"],
            "evaluate.summarization.entailment_label = 'agrees': the classifier .* has "
            "CONTRADICTION",
        ),
        (
            ["evaluate.summarization.bert_score_layer=9"],
            "bert_score_layer = 9: the model has layers 0 to 3",
        ),
        (
            ["evaluate.summarization.entailment_model=/nowhere/x"],
            "evaluate.summarization.entailment_model",
        ),
        (
            ["evaluate.judge.model=" + mapping["evaluate"]["summarization"]["entailment_model"]],
            "has 3 outputs .* choose one",
        ),
        (["evaluate.reward={kind: classifier, model: /nowhere/y}"], "evaluate.reward.model"),
    ):
        with pytest.raises(UserError, match=message):
            check_text_models(validate_recipe(mapping, overrides).evaluate)


@pytest.mark.slow
def test_rows_for_vllm_are_what_rays_processor_documents(evaluated: Recipe) -> None:
    """The engine's stage of ray.data.llm says which columns it reads and writes; without vLLM
    the recipe is refused before anything is sampled.
    """
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMOutputData

    processor = vllm_processor(evaluated.model.name_or_path, concurrency=1)
    assert processor.list_stage_names() == ["vLLMEngineStage"]
    stage = processor.get_stage_by_name("vLLMEngineStage")
    row = Request([1, 2], GenerationSection(temperature=0.0, top_p=0.5), seed=2**40 + 3).row(
        7, ResponseEnds((2, 5))
    )
    documented = {**stage.get_required_input_keys(), **stage.get_optional_input_keys()}
    assert (
        set(stage.get_required_input_keys()) <= row.keys()
        and row.keys() - {"number"} <= documented.keys()
    )
    assert row["sampling_params"]["top_p"] == 1.0 and row["sampling_params"]["seed"] == 3
    assert row["sampling_params"]["stop_token_ids"] == [2, 5]
    assert "generated_tokens" in vLLMOutputData.model_fields
    section = evaluated.evaluate.model_copy(update={"generation": GenerationSection(engine="vllm")})
    with pytest.raises(UserError, match="vLLM is not installed"):
        EVALUATE.run(Run(evaluated.model_copy(update={"evaluate": section})), print, True)
