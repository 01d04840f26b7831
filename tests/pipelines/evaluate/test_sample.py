"""sample: candidates are drawn and scored in actors, and a killed one goes on where it was."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import MakeRecipe
from text_models import write_entailment

from pipelines.commands.run import run_stages
from pipelines.commands.stages import SAMPLE
from pipelines.errors import UserError
from pipelines.evaluate.rewards import build_reward
from pipelines.evaluate.sample import (
    CandidateSampler,
    DrawCandidates,
    first_prompts,
    sampling_facts,
    sampling_tasks,
)
from pipelines.recipe.evaluation import ClassifierReward
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.hashes import digest
from pipelines.storage.store import RunStore
from pipelines.storage.task_results import TaskResults


@pytest.fixture(scope="module")
def classifier(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = sorted({word for row in rows for text in row.values() for word in text.split()})
    folder: Path = write_entailment(tmp_path_factory.mktemp("classifier"), words)
    return folder


@pytest.fixture
def sampling(make_recipe: MakeRecipe, classifier: Path) -> Callable[..., Recipe]:
    """A recipe of 20 prompts in three tasks, scored by a classifier."""

    def make(*overrides: str, **top: Any) -> Recipe:
        return make_recipe(
            "sample={num_candidates: 3, max_prompts: 20, batch_prompts: 8, generation: "
            f"{{max_new_tokens: 6}}, reward: {{kind: classifier, model: {classifier}, "
            "label: entailment}}",
            *overrides,
            **top,
        )

    return make


@pytest.mark.slow
@pytest.mark.actors
def test_a_killed_sample_goes_on_to_the_same_bytes(
    sampling: MakeRecipe,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray_cluster: None,
) -> None:
    """Killed after one of three tasks: the second start draws the other two.

    The scores are those of the classifier here, and the parts go in the end.
    """
    recipe = sampling(run_dir=str(tmp_path / "whole"))
    counts = SAMPLE.run(Run(recipe), print, True)["counts"]
    assert (counts["prompts"], counts["candidates"], counts["rejected"]) == (20, 60, {})
    whole = (tmp_path / "whole" / "sample" / "candidates.jsonl").read_bytes()
    candidates = [json.loads(line) for line in whole.splitlines()]
    reward = build_reward(ClassifierReward(model=str(classifier), label="entailment"))
    for found in candidates[:3]:
        assert found["scores"] == pytest.approx(reward(found["responses"]), abs=1e-5)
    assert len({r for c in candidates for r in c["responses"]}) > 30, "samples, not one answer"

    class Dies(TaskResults):
        def add(self, tasks, results):  # type: ignore[no-untyped-def]
            super().add(tasks[:1], [next(iter(results))])
            raise KeyboardInterrupt

    recipe = sampling(run_dir=str(tmp_path / "killed"))
    store = RunStore(f"{recipe.run_dir}/sample")
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.evaluate.sample.TaskResults", Dies)
        with pytest.raises(KeyboardInterrupt):
            SAMPLE.run(Run(recipe), print, True)
    assert len(store.names("parts")) == 1 and not store.exists("candidates.jsonl")
    drawn: list[DrawCandidates] = []

    class Notes(TaskResults):
        def add(self, tasks, results):  # type: ignore[no-untyped-def]
            drawn.extend(tasks)
            super().add(tasks, results)

    monkeypatch.setattr("pipelines.evaluate.sample.TaskResults", Notes)
    SAMPLE.run(Run(recipe), print, True)
    assert [task.number for task in drawn] == [8, 16]
    assert store.read_bytes("candidates.jsonl") == whole
    assert store.names() == ["candidates.jsonl", "manifest.json", "started.json"]


def test_candidates_are_the_same_whichever_actor_draws_them(
    sampling: MakeRecipe, rows: list[dict[str, str]]
) -> None:
    """Two actors, one with the tasks in turn and one in reverse."""
    prompts = sorted({row["prompt"] for row in rows})
    tasks = [DrawCandidates(i, 8, tuple(prompts[i : i + 8])) for i in (0, 8, 16)]
    facts = sampling_facts(sampling(), Run(sampling()).inputs(SAMPLE).ends)
    one, other = CandidateSampler(facts), CandidateSampler(facts)
    found = [one(task) for task in tasks]
    assert [other(task) for task in reversed(tasks)] == found[::-1]
    assert found[0] != found[1]
    assert one(DrawCandidates(8, 8, tasks[0].prompts)) != found[0], "each task draws its own"


def test_captured_candidates_depend_on_no_task_and_no_batch(
    sampling: MakeRecipe, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates of a large job, cut into tasks in two ways: those of a prompt are the same.

    Without GPUs they are drawn batch by batch, as small jobs are.
    """
    prompts = sorted({row["prompt"] for row in rows})[:12]
    facts = sampling_facts(sampling(), Run(sampling()).inputs(SAMPLE).ends)
    settings = facts.settings.model_copy(update={"batch_prompts": 4})
    (whole,) = sampling_tasks(prompts * 400, settings, gpus=1)[:1]
    assert whole.way == "captured" and len(whole.prompts) == 8192 // 3
    assert {task.way for task in sampling_tasks(prompts * 200, settings, gpus=0)} == {"batches"}
    assert {task.way for task in sampling_tasks(prompts, settings, gpus=1)} == {"batches"}
    actor, other = CandidateSampler(facts), CandidateSampler(facts)

    def drawn(actor: CandidateSampler, size: int) -> list[Any]:
        tasks = [
            DrawCandidates(first, size, tuple(prompts[first : first + size]), "captured")
            for first in range(0, 12, size)
        ]
        return [found for task in tasks for found in actor(task)["candidates"]]

    found = drawn(actor, 12)
    again = drawn(other, 5)
    assert [(c["prompt"], c["responses"]) for c in again] == [
        (c["prompt"], c["responses"]) for c in found
    ]
    # A processor's sums may depend on how many texts are scored at once, by its last bits.
    for one, two in zip(again, found, strict=True):
        assert one["scores"] == pytest.approx(two["scores"], rel=1e-5)
    assert actor(DrawCandidates(1, 12, tuple(prompts), "captured"))["candidates"] != found
    assert len({text for each in found for text in each["responses"]}) > 25
    kinds = {DrawCandidates(0, 8, (), way).kind for way in ("captured", "batches")}
    assert len(kinds) == 2, "parts drawn in one way are not taken for the other's"


def test_parts_of_another_batch_size_are_not_taken(tmp_path: Path) -> None:
    """sample.batch_prompts may change between two starts: a task's number means other prompts."""
    parts = TaskResults(RunStore(str(tmp_path)))
    parts.add([DrawCandidates(8, 8, ("a",))], [["kept"]])
    assert parts.missing([DrawCandidates(8, 8, ("a",))]) == []
    assert parts.missing([DrawCandidates(8, 4, ("a",))]) == [DrawCandidates(8, 4, ("a",))]


def test_a_reward_that_cannot_be_built_is_refused_before_anything_is_drawn(
    sampling: MakeRecipe, tmp_path: Path
) -> None:
    for override, message in (
        ("sample.reward.label=happy", "sample.reward.label = 'happy': the classifier .* has CONTR"),
        ("sample.reward.model=/nowhere/x", "sample.reward.model: .*no such directory"),
    ):
        with pytest.raises(UserError, match=message):
            run_stages(sampling(override), (SAMPLE,), lambda line: None)
    assert not (tmp_path / "run" / "sample").exists()


@pytest.mark.parametrize("most", [1, 7, 500, None])
def test_prompts_are_the_first_by_hash_and_few_are_held(most: int | None) -> None:
    """Of 900 distinct prompts that come twice, against sorting them all."""

    class Prompt(str):
        pass

    alive: list[weakref.ref[Prompt]] = []
    most_alive = 0

    def coming() -> Any:
        nonlocal most_alive
        for i in (*range(900), *range(900)):
            prompt = Prompt(f"prompt {i}")
            alive.append(weakref.ref(prompt))
            yield prompt
            del prompt
            alive[:] = [ref for ref in alive if ref() is not None]
            most_alive = max(most_alive, len(alive))

    expected = sorted((f"prompt {i}" for i in range(900)), key=lambda p: digest([5, p]))
    assert first_prompts(coming(), 5, most) == expected[:most]
    assert most_alive <= (901 if most is None else 2 * most + 2)
