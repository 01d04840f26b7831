"""What an evaluation's actors send to the driver: numbers per pair, and sums instead of tokens."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import MakeRecipe

from evaluation.benchmarks import mask_totals, masks_benchmark
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE
from pipelines.evaluate import tasks as evaluation
from pipelines.evaluate.actor import Evaluator
from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.results import Found
from pipelines.evaluate.stage import ends_of
from pipelines.evaluate.tasks import (
    Drawn,
    RankWeights,
    RunLeaderboard,
    SamplePrompts,
    ScorePairs,
    WritePrograms,
    evaluation_tasks,
)
from pipelines.evaluate.token_weights import RankingFacts, WeightRanker
from pipelines.evaluate.vllm_tasks import with_vllm_samples
from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.stage import training_facts

PAIRS = 48


@pytest.fixture(scope="module")
def prepared(
    recipe_in: MakeRecipe,
    rows: list[dict[str, str]],
    model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> Callable[[int], Recipe]:
    """A recipe whose held-out responses have that many words, with an untrained "policy"."""
    folder = tmp_path_factory.mktemp("parts")
    words = sorted({word for row in rows for word in row["chosen"].replace(".", " .").split()})
    (folder / "key_words.txt").write_text("\n".join(words[::5]))
    made: dict[int, Recipe] = {}

    def make(length: int) -> Recipe:
        if length in made:
            return made[length]
        rng = random.Random(length)

        def text() -> str:
            return "".join(f" {rng.choice(words[:30])}" for _ in range(length))

        pairs = [
            {"prompt": rows[i // 2]["prompt"], "chosen": text(), "rejected": text()}
            for i in range(PAIRS)
        ]
        for name, some in (("test", pairs), ("train", pairs)):
            (folder / f"{name}{length}.jsonl").write_text(
                "".join(json.dumps({**p, "prompt": f"{name} {p['prompt']}"}) + "\n" for p in some)
            )
        made[length] = recipe_in(
            folder / f"run{length}",
            f"data.sources=[{{path: {folder}/train{length}.jsonl}}]",
            f"data.test=[{{path: {folder}/test{length}.jsonl}}]",
            "data.test_fraction=0",
            "data.max_response_tokens=100",
            "objective.name=mapo",
            "mask={kind: activation}",
            f"evaluate.key_words={folder}/key_words.txt",
            "evaluate.benchmarks=[preference, masks]",
        )
        run_stages(made[length], (PREPARE,), lambda line: None)
        store = RunStore(f"{made[length].run_dir}/train")
        store.local_path().mkdir(parents=True)
        store.local_path("model").symlink_to(model_dir)
        return made[length]

    return make


def facts_of(recipe: Recipe) -> EvaluationFacts:
    run = Run(recipe)
    training = training_facts(run)
    return EvaluationFacts.of(recipe, run.paths.evaluation, training, None, ends_of(run))


def scored(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, pairs_per_task: int, shown: int = 6
) -> tuple[list[ScorePairs], list[str]]:
    """The tasks of all held-out pairs, and their results as they reach the driver."""
    monkeypatch.setattr(evaluation, "_PAIRS_PER_TASK", pairs_per_task)
    monkeypatch.setattr(evaluation, "PAIRS_SHOWN", shown)
    pairs = open_pairs(Run(recipe))
    tasks = evaluation_tasks(recipe.evaluate, pairs, range(pairs.num_rows("test")))
    actor = Evaluator(facts_of(recipe))
    return tasks, [json.dumps(actor(task)) for task in tasks]  # type: ignore[return-value]


@pytest.mark.slow
def test_what_reaches_the_driver_does_not_grow_with_tokens(
    prepared: Callable[[int], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Responses of 16 and of 64 words: the same bytes, but for the twelve that are shown.

    The negative control is what was sent before: the tokens of all responses grow fourfold.
    """
    sizes: dict[str, list[int]] = {"sent": [], "tokens": []}
    for length in (16, 64):
        tasks, results = scored(prepared(length), monkeypatch, pairs_per_task=24)
        found = [json.loads(result) for result in results]
        assert [len(each["shown"]) for each in found] == [12, 0] and len(tasks) == 2
        assert sum(len(each["pair"]) for each in found) == PAIRS
        sizes["sent"].append(sum(len(json.dumps({**each, "shown": []})) for each in found))
        _, everything = scored(prepared(length), monkeypatch, pairs_per_task=24, shown=PAIRS)
        sizes["tokens"].append(
            sum(len(json.dumps(json.loads(result)["shown"])) for result in everything)
        )
    print(f"sent {sizes['sent']}, tokens {sizes['tokens']}")
    assert sizes["sent"][1] < 1.15 * sizes["sent"][0]
    assert sizes["tokens"][1] > 3 * sizes["tokens"][0]


def test_a_large_evaluation_on_gpus_has_captured_tasks_of_other_names(
    prepared: Callable[[int], Recipe],
) -> None:
    """48 tokens for every prompt at 40 temperatures, one at a time, are a minute of `generate`.

    A third of them is none, and neither is the whole where there is no GPU or vLLM draws.
    """
    recipe = prepared(16)
    pairs = open_pairs(Run(recipe))

    def ways(gpus: float, temperatures: int, engine: str = "transformers") -> dict[str, int]:
        settings = recipe.evaluate.model_copy(
            update={
                "benchmarks": ("sentiment",),
                "temperatures": tuple(t / 100 for t in range(temperatures)),
                "sequences_per_batch": 1,
                "generation": recipe.evaluate.generation.model_copy(
                    update={"engine": engine, "max_new_tokens": 48}
                ),
            }
        )
        found: dict[str, int] = {}
        for task in evaluation_tasks(settings, pairs, range(PAIRS), gpus):
            assert isinstance(task, SamplePrompts)
            assert task.kind.startswith("captured_") == (task.way == "captured")
            found[task.way] = found.get(task.way, 0) + 1
        return found

    prompts = ways(0, 1)["batches"]
    assert ways(1, 40) == {"captured": 40}
    assert ways(0, 40) == ways(1, 40, "vllm") == {"batches": 40 * prompts}
    assert set(ways(1, max(1, 20 // prompts))) == {"batches"}


def test_numbers_are_those_of_all_tokens_at_once(
    prepared: Callable[[int], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tasks' sums, and ranks from what they stored, against the benchmark of all responses.

    The first twelve responses in the pairs' order are shown, whatever the size of tasks.
    """
    recipe = prepared(16)
    tasks, results = scored(recipe, monkeypatch, pairs_per_task=12, shown=PAIRS)
    parts = [json.loads(result) for result in results]
    responses = [response for part in parts for response in part["shown"]]
    assert (len(parts), len(responses)) == (4, 2 * PAIRS)
    expected = masks_benchmark(responses, recipe.evaluate.bootstrap_samples, recipe.evaluate.seed)
    assert expected["auc/reward_mask"]["n"] == PAIRS // 2
    ranker = WeightRanker(RankingFacts(f"{recipe.run_dir}/evaluation", recipe.evaluate))
    ranks = ranker(RankWeights(tuple(task.number for task in tasks)))
    same(mask_totals(part["masks"] for part in parts) | json.loads(json.dumps(ranks)), expected)
    again = [json.loads(result) for result in scored(recipe, monkeypatch, pairs_per_task=12)[1]]
    assert Found.of(tasks, again).shown == responses[:12]
    every = [pair for part in parts for pair in part["pair"]]
    floors = [pair.pop("kl_floor") for pair in every]  # of those alone that are shown
    assert floors == [0.0] * PAIRS
    few = Found.of(tasks, again).pairs
    assert [pair.pop("kl_floor", None) for pair in few] == [0.0] * 6 + [None] * (PAIRS - 6)
    assert few == every


def same(found: Any, expected: Any, path: str = "") -> None:
    """Equal, numbers within 1e-12 of themselves."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            same(found[key], value, f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for i, value in enumerate(expected):
            same(found[i], value, f"{path}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-12, abs=0), path
    else:
        assert found == expected, path


def test_tokens_are_left_alone_without_the_masks(
    prepared: Callable[[int], Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The benchmark of preference needs none: the shown ones are decoded, nothing is stored."""
    mapping = prepared(16).model_dump(mode="json")
    recipe = validate_recipe(mapping, ["evaluate.benchmarks=[preference]"])
    folder = RunStore(f"{recipe.run_dir}/evaluation")
    folder.delete("token_weights")
    _, results = scored(recipe, monkeypatch, pairs_per_task=24)
    found = [json.loads(result) for result in results]
    assert [(len(each["shown"]), each["masks"]) for each in found] == [
        (12, None),
        (0, None),
    ]
    assert not folder.exists("token_weights")


def test_vllm_draws_for_the_tasks_that_sample(
    prepared: Callable[[int], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that says which model is asked, and the request's number.

    Each prompt gets its own samples, in order; tasks that draw none, and the engines of their own,
    are as before. What was drawn is what the actor's records hold.
    """
    (tmp_path / "tasks.jsonl").write_text(
        "".join(
            json.dumps({"task_id": i, "text": "x" * (i + 1), "test_list": ["pass"]}) + "\n"
            for i in range(2)
        )
    )
    mapping = prepared(16).model_dump(mode="json")
    options = [
        "evaluate.benchmarks=[preference, sentiment, code]",
        "evaluate.num_prompts=2",
        "evaluate.generation.engine=vllm",
        f"evaluate.code={{tasks: {tmp_path}/tasks.jsonl, num_samples: 2, "
        "generation: {max_new_tokens: 4, engine: vllm}}",
    ]
    asked: list[tuple[str, list[Any]]] = []

    def stand_in(model: str, ends: Any, requests: Any) -> list[list[int]]:
        asked.append((model, list(requests)))
        return [[len(asked), number] for number in range(len(requests))]

    monkeypatch.setattr("pipelines.evaluate.vllm_tasks.vllm_samples", stand_in)
    recipe = validate_recipe(mapping, options)
    pairs, facts = open_pairs(Run(recipe)), facts_of(recipe)
    tasks = [*evaluation_tasks(recipe.evaluate, pairs, range(PAIRS)), RunLeaderboard()]
    scoring, sampling, writing, board = with_vllm_samples(tasks, facts, pairs)
    assert (scoring, board) == (tasks[0], tasks[-1])
    assert isinstance(sampling, SamplePrompts) and isinstance(writing, WritePrograms)
    assert sampling.drawn == Drawn(policy=[[[1, 0]], [[1, 1]]], start=[[[2, 0]], [[2, 1]]])
    assert writing.drawn is not None
    assert writing.drawn.policy == [[[1, 2], [1, 3]], [[1, 4], [1, 5]]]
    assert [model for model, _ in asked] == [
        f"{recipe.run_dir}/train/model",
        recipe.model.name_or_path,
    ]
    assert len({request.seed for request in asked[0][1]}) == 6
    record = Evaluator(facts)(sampling)["sample"][0]
    assert record["policy_tokens"] == record["start_tokens"] == 2
    code_only = validate_recipe(mapping, [*options, "evaluate.generation.engine=transformers"])
    left = with_vllm_samples(tasks, facts_of(code_only), pairs)
    assert left[1] == tasks[1] and left[2].drawn is not None  # type: ignore[union-attr]
