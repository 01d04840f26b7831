"""The quickstart's stages in one process, without Ray: a world made once, methods trained on it.

A folder holds a world of one seed: its texts, the starting model, candidates, pairs with oracle
weights, and the reference's features. Every stage is the product's, with the quickstart's recipes.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from world_settings import DPO, Setting, World

from evaluation.key_tokens import key_token_labels
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands import quickstart
from pipelines.commands.quickstart_world import SENTIMENT_WORDS, write_world
from pipelines.commands.run import settled
from pipelines.evaluate import SAMPLE
from pipelines.models import Placement, TokenTexts, load_tokenizer
from pipelines.pairs import PREPARE, open_pairs
from pipelines.recipe import MODEL, Recipe, Run, Stage, validate_recipe
from pipelines.reference import REFERENCE
from pipelines.train import TRAIN, training_facts
from pipelines.train.trainer import Trainer

CPU = torch.device("cpu")
KEY_WORDS = frozenset(word.lower() for word in SENTIMENT_WORDS)
_SFT = Setting("sft", {"name": "sft"}, {"kind": "none"})


class InThisProcess:
    """Does the actors' work here, one task after the other."""

    def run_tasks(
        self, tasks: Sequence[Any], actor: Callable[[Any], Any], facts: Any, pool: Any
    ) -> Iterator[Any]:
        work = actor(facts)
        yield from map(work, tasks)

    def run_alone(
        self, task: Any, actor: Callable[[Any], Any], facts: Any, paths: dict[str, str]
    ) -> Any:
        return actor(facts)(task)


def settled_run(recipe: Recipe) -> Run:
    return settled(recipe, lambda: None)


def run_stage(stage: Stage[Any], recipe: Recipe) -> None:
    """A stage other than training, unless it is done."""
    run = settled_run(recipe)
    if not stage.is_done(run):
        with executed_by(InThisProcess()):
            stage.run(run, lambda line: None, True)


def trainer_of(recipe: Recipe) -> Trainer:
    """One rank's training in this process, ready to step; one thread."""
    run = settled_run(recipe)
    run.record(TRAIN).begin()
    placement = Placement.choose(recipe.train.precision, CPU, 0, 1)
    return Trainer(training_facts(run), placement, threads=1)


def train_model(recipe: Recipe) -> None:
    """Publish the recipe's model, unless it is there."""
    if not Run(recipe).paths.train.exists(MODEL):
        trainer = trainer_of(recipe)
        trainer.run(lambda metrics: None)
        trainer.close()


@dataclass(frozen=True)
class Folder:
    """Where a world of one seed lies, and the recipes on it."""

    root: Path
    world: World
    seed: int

    @property
    def start(self) -> str:
        """The starting model, which is the reference."""
        return f"{self.root}/sft/train/model"

    def start_recipe(self) -> Recipe:
        return self._of_world(quickstart.start_recipe(self.root, self.seed))

    def sampling_recipe(self) -> Recipe:
        return self._of_world(quickstart.sampling_recipe(self.root, self.seed, self.start))

    def candidate_recipe(self) -> Recipe:
        """On the pairs that the quickstart's prepare makes of the candidates."""
        return self._of_world(
            quickstart.preference_recipe(self.root, self.seed, self.start, "dpo"),
            paths={"pairs": str(self.root / "unlabelled")},
        )

    def recipe(self, setting: Setting) -> Recipe:
        """Of a method, on the pairs with noise and oracle weights."""
        model = {"name_or_path": self.start}
        if setting.scorers == "tuned":
            model["positive_scorer"] = f"{self.root}/tuned/train/model"
        elif setting.scorers == "contrasted":
            model["positive_scorer"] = f"{self.root}/positive/train/model"
            model["negative_scorer"] = f"{self.root}/negative/train/model"
        # What prepare makes for these is no pair; and a store of q is that of its scorers.
        kind = {"kto": "rows", "sft": "chosen"}.get(setting.objective["name"], "pairs")
        return self._preference(
            f"runs/{setting.name.replace(' ', '-')}",
            setting,
            model=model,
            paths={
                "pairs": str(self.root / kind),
                "reference": str(self.root / f"reference-{kind}-{setting.scorers}"),
            },
        )

    def scorer_recipes(self, settings: Sequence[Setting]) -> list[Recipe]:
        """Of the models by which the settings score tokens."""
        wanted = {setting.scorers for setting in settings}
        found = []
        if "tuned" in wanted:
            found.append(self.recipe(DPO).model_copy(update={"run_dir": f"{self.root}/tuned"}))
        if "contrasted" in wanted:
            pairs = {"pairs": str(self.root / "chosen")}
            found.append(self._preference("positive", _SFT, paths=pairs))
            swapped = {"chosen": "rejected", "rejected": "chosen"}
            pairs = {"pairs": str(self.root / "swapped")}
            found.append(self._preference("negative", _SFT, swapped, paths=pairs))
        return found

    def _preference(
        self, run_dir: str, setting: Setting, swapped: dict[str, str] | None = None, **other: Any
    ) -> Recipe:
        columns = swapped or {
            name: name for side in ("chosen", "rejected")
            for name in (f"{side}_score", f"{side}_weights")
        }  # fmt: skip
        base = quickstart.preference_recipe(self.root, self.seed, self.start, "dpo")
        return self._of_world(
            base,
            run_dir=str(self.root / run_dir),
            objective=setting.objective,
            mask=setting.mask,
            data={
                **base.data.model_dump(mode="json", exclude_unset=True),
                "sources": [{"path": str(self.root / "train.jsonl"), "columns": columns}],
                "test": [{"path": str(self.root / "test.jsonl"), "columns": columns}],
            },
            **other,
        )

    def _of_world(self, recipe: Recipe, **sections: Any) -> Recipe:
        """With these sections, and room for the world's responses."""
        said = recipe.model_dump(mode="json", exclude_unset=True) | sections
        more = self.world.max_new_tokens - 40
        said["data"]["max_response_tokens"] += more
        for stage in ("sample", "evaluate"):
            if stage in said:
                said[stage]["generation"]["max_new_tokens"] += more
        if "train" in said:
            said["train"]["trackers"] = []
        return validate_recipe(said)


def make(folder: Folder, settings: Sequence[Setting]) -> None:
    """The world, and what the settings need of it; what is there already stays."""
    root = folder.root
    if not (root / "world" / "model").is_dir():
        write_world(
            root / "world", folder.seed, quickstart.REVIEWS, quickstart.TRAIN_PROMPTS,
            quickstart.TEST_PROMPTS, folder.world.dials,
        )  # fmt: skip
    start = folder.start_recipe()
    run_stage(PREPARE, start)
    train_model(start)
    run_stage(SAMPLE, folder.sampling_recipe())
    quickstart.split_candidates(root)
    unlabelled = folder.candidate_recipe()
    run_stage(PREPARE, unlabelled)
    write_pairs(folder, unlabelled)
    for recipe in folder.scorer_recipes(settings):
        make_features(recipe)
        train_model(recipe)
    for setting in (DPO, *settings):  # DPO's pairs are what all are measured on
        make_features(folder.recipe(setting))


def make_features(recipe: Recipe) -> None:
    run_stage(PREPARE, recipe)
    if recipe.required_features():
        run_stage(REFERENCE, recipe)


def write_pairs(folder: Folder, prepared: Recipe) -> None:
    """Write train.jsonl and test.jsonl: the prepared pairs with noise and oracle weights.

    A weight is 1 for a token of a word that carries the reward, else 0. Noise exchanges the
    responses of a share of the training pairs; the test pairs are right.
    """
    pairs = open_pairs(Run(prepared))
    texts_of = TokenTexts(load_tokenizer(folder.start))
    rng = random.Random(f"noise {folder.seed}")
    for split in ("train", "test"):
        lines = []
        columns = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
        rows = range(pairs.num_rows(split))
        for pair, found in zip(
            pairs.pairs(split, rows), pairs.values(split, rows, columns), strict=True
        ):
            prompt, chosen, rejected, best, worst = found
            sides = [
                (text, oracle_weights(texts_of(ids)))
                for text, ids in zip((chosen, rejected), pair.responses(), strict=True)
            ]
            if split == "train" and rng.random() < folder.world.noise:
                sides.reverse()
            (chosen, chosen_weights), (rejected, rejected_weights) = sides
            row = {
                "prompt": prompt, "chosen": chosen, "rejected": rejected,
                "chosen_score": best, "rejected_score": worst,
                "chosen_weights": chosen_weights, "rejected_weights": rejected_weights,
            }  # fmt: skip
            lines.append(json.dumps(row) + "\n")
        (folder.root / f"{split}.jsonl").write_text("".join(lines))


def oracle_weights(texts: Sequence[str]) -> list[float]:
    """1.0 for every token of a response that is part of a word with a sentiment, else 0.0."""
    return [float(label) for label in key_labels(texts)]


def key_labels(texts: Sequence[str]) -> list[bool]:
    """Whether each token of a response, given by its text, is part of a word with a sentiment."""
    spans, at = [], 0
    for text in texts:
        spans.append((at, at + len(text)))
        at += len(text)
    return key_token_labels("".join(texts), spans, KEY_WORDS)
