"""A preference that a discriminator can learn, and one that has."""

import json
import random
from pathlib import Path

import pytest
from feature_world import write_small_model
from runs import MakeRecipe, run_here

from pipelines.commands.discriminator import discriminator_recipe
from pipelines.commands.quickstart_world import BLAME, NEGATIVE, POSITIVE, PRAISE
from pipelines.commands.stages import DISCRIMINATOR, PREPARE, REFERENCE
from pipelines.recipe.schema import Recipe

HEAD = (PREPARE, REFERENCE, DISCRIMINATOR)


@pytest.fixture(scope="session")
def liked_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pairs: chosen responses say good words where rejected ones say bad ones."""
    rng = random.Random(5)
    good, bad = POSITIVE[:6] + PRAISE[:2], NEGATIVE[:6] + BLAME[:2]
    path = tmp_path_factory.mktemp("liked") / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(96):
            parts = [f" The {rng.choice(['plot', 'score', 'cast'])} was {{}} ." for _ in range(3)]
            row = {"prompt": f"Film number {number} about a map ."}
            for side, words in (("chosen", good), ("rejected", bad)):
                row[side] = "".join(part.format(rng.choice(words)) for part in parts)
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small") / "model", model_dir)


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(POSITIVE + NEGATIVE + PRAISE + BLAME) + "\n")
    return path


@pytest.fixture(scope="session")
def liked_options(liked_file: Path, small_model: Path, words_file: Path) -> tuple[str, ...]:
    """Overrides of every recipe on these pairs."""
    return (
        f"model.name_or_path={small_model}",
        f"data.sources=[{{path: {liked_file}}}]",
        f"evaluate.key_words={words_file}",
        "data.shard_pairs=32",
        "discriminator.batch_pairs=8",
        "discriminator.epochs=3",
        "discriminator.learning_rate=1e-2",
        "discriminator.checkpoint_every=5",
    )


@pytest.fixture(scope="session")
def judged(
    recipe_in: MakeRecipe,
    liked_options: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> Recipe:
    """The recipe of a finished discriminator, in this process; others read it, none changes it."""
    recipe = recipe_in(tmp_path_factory.mktemp("judged") / "run", *liked_options)
    run_here(discriminator_recipe(recipe), HEAD)
    return recipe
