"""What the tests of reference stores share."""

from pathlib import Path

import torch
from runs import MakeRecipe, silent, trainer_of

from pipelines.commands.run import run_stages
from pipelines.commands.stages import REFERENCE
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference

KL = ("objective.name=tdpo1",)


def files_below(folder: Path, pattern: str) -> dict[str, bytes]:
    """Path below the folder -> content of every file of that pattern."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(pattern))
    }


def store_files(recipe: Recipe) -> dict[str, bytes]:
    """Every feature file of a store, and the head."""
    root = Path(recipe.paths.reference or f"{recipe.run_dir}/reference")
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted([*root.rglob("*.parquet"), *root.glob("*.safetensors")])
    }


def again(scored: Recipe, recipe_in: MakeRecipe, folder: Path, *options: str) -> Recipe:
    """The same pairs scored into another place."""
    recipe = recipe_in(folder, *KL, *options, paths={"pairs": f"{scored.run_dir}/pairs"})
    run_stages(recipe, (REFERENCE,), silent)
    return recipe


def all_features(recipe: Recipe, *names: str) -> dict[str, torch.Tensor]:
    pairs = open_pairs(Run(recipe))
    store = open_reference(run_facts(Run(recipe)), pairs)
    parts = [
        store.features(split, range(pairs.num_rows(split)), names) for split in ("train", "test")
    ]
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def losses_of(recipe: Recipe) -> torch.Tensor:
    trainer = trainer_of(recipe)
    found = []
    while trainer.step < min(4, trainer.num_steps):
        found.append(trainer.optimizer_step()[0]["loss"])
    return torch.tensor(found, dtype=torch.float64)
