"""Every family of transformers through the stages, on a tiny model beside the tests' tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import matrix, tiny_model
from runs import MakeRecipe, run_here, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.plan import run_plan
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from pipelines.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("ray_cluster")
OPTIONS = (
    "train.max_steps=1", "train.global_batch_size=4", "evaluate.benchmarks=[preference]",
    "train.learning_rate=1e-3", "train.warmup_fraction=0", "data.shard_pairs=200",
    "objective.name=tdpo1",
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(
    recipe_in: MakeRecipe, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Few rows, and where they are prepared once for all families: the tokenizer is the same."""
    folder = tmp_path_factory.mktemp("families")
    few = folder / "pairs.jsonl"
    few.write_text("".join(pairs_file.read_text().splitlines(keepends=True)[:12]))
    recipe = recipe_in(folder / "run", f"data.sources=[{{path: {few}}}]", *OPTIONS, paths=_paths(folder))
    run_here(recipe, (PREPARE,))
    return folder, few


def _paths(folder: Path) -> dict[str, str]:
    return {"pairs": str(folder / "pairs")}


@pytest.fixture
def made(
    model_dir: Path, tmp_path: Path, recipe_in: MakeRecipe, pairs: tuple[Path, Path]
) -> Callable[..., Recipe]:
    """A recipe on a tiny model of a family."""

    def make(family: str, *overrides: str) -> Recipe:
        folder, few = pairs
        model = tmp_path / family
        if not model.exists():
            tokenizer = AutoTokenizer.from_pretrained(model_dir)
            tiny_model(family, vocabulary=len(tokenizer)).save_pretrained(model)
            tokenizer.save_pretrained(model)
        run = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        return recipe_in(
            run, f"data.sources=[{{path: {few}}}]", f"model.name_or_path={model}", *OPTIONS, *overrides,
            paths=_paths(folder),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("family", matrix())
def test_plan_reference_training_and_evaluation(
    family: str, made: Callable[..., Recipe]
) -> None:
    """The store holds the model's own log-probabilities; online and stored references train
    alike, one step; its evaluation and its published model are there.
    """
    recipe = made(family)
    assert run_plan(recipe)["train"]["parameters"] > 0
    run_here(recipe, (PREPARE, REFERENCE))
    table = open_pairs(Run(recipe))
    stored = open_reference(run_facts(Run(recipe)), table)
    found = stored.features("train", range(2), ["reference_logps"]).reference_logps
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
    torch.testing.assert_close(
        found, _plain(model, table.pairs("train", range(2))), atol=2e-5, rtol=2e-4
    )
    run_here(recipe, (TRAIN, EVALUATE))
    (first,) = [r for r in read_metrics(Run(recipe).paths.train) if "kind" not in r]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    result = json.loads((Path(recipe.run_dir) / "evaluation" / "preference.json").read_text())
    assert 0 <= result["rewards/accuracies/policy"]["mean"] <= 1 if (
        "rewards/accuracies/policy" in result
    ) else result
    online = made(family, "reference.mode=online")
    trainer = trainer_of(online)
    trainer.run(lambda metrics: None)
    trainer.close()
    (again,) = [r for r in read_metrics(Run(online).paths.train) if "kind" not in r]
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-5)
    assert again["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
    published = Path(recipe.run_dir) / "train" / "model"
    trained = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(trained.parameters(), model.parameters(), strict=True)
    )


def _plain(model: torch.nn.Module, pairs: list[object]) -> torch.Tensor:
    """Log-probabilities of the responses' tokens by the model's own logits, one by one."""
    found = []
    with torch.no_grad():
        for pair in pairs:
            for response in pair.responses():
                ids = torch.tensor([[*pair.prompt, *response]])
                logits = model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1]
                chosen = torch.tensor(response)[:, None].long()
                found.append(logits.float().log_softmax(-1).gather(1, chosen)[:, 0])
    return torch.cat(found)
