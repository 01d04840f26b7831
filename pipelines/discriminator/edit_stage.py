"""edit as the commands see it: who improves the rejected responses that labels are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.discriminator.stage import DISCRIMINATOR, check_labels
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    MANIFEST,
    EndpointEditor,
    Recipe,
    Run,
    RunPaths,
    Say,
    Stage,
    StageRecord,
    stage_settings,
)
from pipelines.storage import RunStore, digest, read_listed

_AGAIN = (
    f"remove {MANIFEST} beside it and give the same command again; what an endpoint answered is "
    "not asked again"
)


@dataclass(frozen=True)
class EditInputs:
    """Fingerprints of the editor, where it is a model here, and of what it is asked."""

    model: str | None
    wording: str


class Edit(Stage[EditInputs]):
    name = title = "edit"
    help = "Improve rejected responses with discriminator.editor."
    in_run = False
    has_command = False

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.run.at("edits")

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE,)

    def applies(self, recipe: Recipe) -> bool:
        return recipe.discriminator.editor is not None

    def check_recipe(self, recipe: Recipe) -> None:
        check_labels(recipe)

    def resolve(self, recipe: Recipe) -> EditInputs:
        from pipelines.discriminator.wording import editing_messages

        editor = recipe.discriminator.editor
        wording = digest(editing_messages("asked", "reply"))
        if editor is None or isinstance(editor, EndpointEditor):
            return EditInputs(None, wording)
        from pipelines.models import resolve_model, tokenizer_fingerprint, weights_fingerprint

        directory = resolve_model(editor.name_or_path)
        found = f"{weights_fingerprint(directory)}:{tokenizer_fingerprint(directory)}"
        return EditInputs(found, wording)

    def settings(self, recipe: Recipe, inputs: EditInputs) -> dict[str, Any]:
        # Where a model lies changes nothing: its content is among the inputs.
        return {
            key: value
            for key, value in stage_settings(recipe, DISCRIMINATOR.name).items()
            if key == "discriminator.held_out" or key.startswith("discriminator.editor.")
            if not key.endswith(".name_or_path")
        }

    def fingerprints(
        self, recipe: Recipe, inputs: EditInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        model = {} if inputs.model is None else {"model": inputs.model}
        return {"pairs": earlier[PREPARE.name].fingerprint(), "wording": inputs.wording, **model}

    def is_done(self, run: Run) -> bool:
        """DamagedFile if edits are not those that were written: they are read as pairs are."""
        record = run.record(self)
        if not record.is_complete():
            return False
        for path, known in record.manifest()["outputs"].items():
            read_listed(record.store, path, known, _AGAIN)
        return True

    def check(self, run: Run) -> None:
        """What comes after the edits is looked at now, before anybody is asked."""
        from pipelines.evaluate import endpoint_key
        from pipelines.models import ChatTemplate, load_tokenizer, resolve_model

        editor = run.recipe.discriminator.editor
        DISCRIMINATOR.check(run)
        if isinstance(editor, EndpointEditor):
            endpoint_key(editor, "discriminator.editor")
        elif editor is not None:
            ChatTemplate(load_tokenizer(str(resolve_model(editor.name_or_path))))
        run.inputs(self)

    def check_pairs(
        self, recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False
    ) -> None:
        DISCRIMINATOR.check_pairs(recipe, kept, is_expected)

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.discriminator.editing import run_edits

        return run_edits(run, run.record(self), quiet)

    def summary(self, counts: dict[str, Any]) -> str:
        edited = sum(n for name, n in counts.items() if name.startswith("edited_"))
        failed = f", {counts['failed']} without an edit" if counts["failed"] else ""
        return f"{edited} of {counts['responses']} rejected responses changed{failed}"

    def detail(self, counts: dict[str, Any]) -> str:
        return self.summary(counts)

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        """No time: how long the editor takes is not known."""
        pairs = known[PREPARE.title]["pairs"]
        return {"responses": pairs["train"] + pairs[run.recipe.discriminator.held_out]}

    def planned(self, forecast: Mapping[str, Any]) -> str:
        return f"{forecast['responses']} rejected responses asked of the editor (not in the time)"


EDIT = Edit()
