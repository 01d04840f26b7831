"""discriminator as the commands see it: its inputs, record and lines, without what trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.pairs import PREPARE, none_kept
from pipelines.recipe import Recipe, Run, RunPaths, Say, Stage, StageRecord
from pipelines.reference import REFERENCE
from pipelines.storage import RunStore, file_hash

if TYPE_CHECKING:
    from pipelines.discriminator.facts import HeadFacts


@dataclass(frozen=True)
class DiscriminatorInputs:
    """What a discriminator is of, besides the reference's states.

    Attributes:
        layer, hidden_size: of the states. key_words: fingerprint of the file of words, or None.
    """

    layer: int
    hidden_size: int
    tokenizer: str
    reference: str
    key_words: str | None


class Discriminator(Stage[DiscriminatorInputs]):
    name = title = "discriminator"
    help = "Train a head that tells good tokens from bad ones on the reference's states."
    in_run = False

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.discriminator

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE, REFERENCE)

    def check_recipe(self, recipe: Recipe) -> None:
        check_labels(recipe)

    def resolve(self, recipe: Recipe) -> DiscriminatorInputs:
        from pipelines.evaluate import read_key_words
        from pipelines.models import weights_fingerprint
        from pipelines.reference import (
            layer_of,
            reference_model_dir,
            token_state_size,
            tokenizer_of,
        )

        read_key_words(recipe.evaluate)
        directory, words = reference_model_dir(recipe), recipe.evaluate.key_words
        layer = layer_of(recipe, directory)
        return DiscriminatorInputs(
            layer,
            token_state_size(Path(directory), layer),
            tokenizer_of(recipe),
            weights_fingerprint(Path(directory)),
            None if words is None else file_hash(Path(words)),
        )

    def settings(self, recipe: Recipe, inputs: DiscriminatorInputs) -> dict[str, Any]:
        # What an editor did is in the pairs.
        found = super().settings(recipe, inputs)
        return {k: v for k, v in found.items() if not k.startswith("discriminator.editor")}

    def fingerprints(
        self, recipe: Recipe, inputs: DiscriminatorInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        words = {} if inputs.key_words is None else {"key_words": inputs.key_words}
        return {
            "reference": earlier[REFERENCE.name].fingerprint(),
            "layer": inputs.layer,
            **words,
        }

    def check(self, run: Run) -> None:
        run.inputs(self)

    def check_pairs(
        self, recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False
    ) -> None:
        split = recipe.discriminator.held_out
        for name in ("train", split):
            if not kept[name]:
                raise UserError(
                    f"discriminator.held_out = {split!r}: {none_kept(is_expected)} of the {name} "
                    f"split; set data.{split}_fraction or data.{split}"
                )

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.discriminator.fit import run_discriminator

        return run_discriminator(run, run.record(self), self.facts(run), quiet)

    def facts(self, run: Run) -> "HeadFacts":
        """What the process that trains has to know."""
        from pipelines.discriminator.facts import HeadFacts
        from pipelines.evaluate import read_key_words

        recipe, inputs, record = run.recipe, run.inputs(self), run.record(self)
        reference = run.record(REFERENCE)
        failed = reference.manifest()["counts"]["failed"]
        return HeadFacts(
            store=record.store.root,
            pairs=run.paths.pairs.root,
            reference=reference.store.root,
            reference_fingerprint=reference.fingerprint(),
            fingerprint=record.fingerprint(),
            failed={split: frozenset(map(int, rows)) for split, rows in failed.items()},
            section=recipe.discriminator,
            layer=inputs.layer,
            hidden_size=inputs.hidden_size,
            made_of={"reference": inputs.reference, "tokenizer": inputs.tokenizer},
            tokenizer=recipe.model.tokenizer or recipe.model.name_or_path,
            key_words=read_key_words(recipe.evaluate),
        )

    def summary(self, counts: dict[str, Any]) -> str:
        parts = [
            f"{name} {counts[key]['mean']:.3f} [{counts[key]['low']:.3f}, "
            f"{counts[key]['high']:.3f}]"
            for name, key in (("accuracy", "accuracy"), ("AUC", "auc"), ("ECE", "ece"))
        ]
        words = counts.get("auc/key_words")
        told = f"; AUC of |2 D - 1| for key words {words['mean']:.3f}" if words else ""
        return (
            f"{counts['num_steps']} steps; of {counts['num_tokens']:,} held-out tokens "
            f"{', '.join(parts)}; the commoner label alone has accuracy "
            f"{counts['accuracy/majority']['mean']:.3f}{told}"
        )

    def detail(self, counts: dict[str, Any]) -> str:
        return f"{counts['num_steps']} steps, AUC {counts['auc']['mean']:.3f}"

    def result(self, paths: RunPaths) -> str:
        return self.folder(paths).root

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        from pipelines.discriminator.forecast import forecast_head

        return forecast_head(run.recipe, known[PREPARE.title], run.inputs(self).hidden_size)

    def planned(self, forecast: Mapping[str, Any]) -> str:
        return f"{forecast['steps']} steps of {forecast['hidden_size']} features to two classes"


DISCRIMINATOR = Discriminator()


def check_labels(recipe: Recipe) -> None:
    """UserError for a recipe whose pairs can give no labels, or no held-out ones."""
    if not recipe.objective.declared.uses_rejected or recipe.reads_labels():
        raise UserError(
            f"objective.name={recipe.objective.name}: a discriminator learns from pairs, in which "
            "a chosen and a rejected response part"
        )
    split = recipe.discriminator.held_out
    if not (getattr(recipe.data, split) or getattr(recipe.data, f"{split}_fraction")):
        raise UserError(
            f"discriminator.held_out = {split!r} and data.{split}_fraction = 0: keep pairs back "
            f"(0.05, say), set data.{split}, or choose the other split"
        )
