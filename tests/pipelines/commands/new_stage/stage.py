"""audit: how many responses of the training pairs are longer than their prompt."""

from collections.abc import Mapping
from typing import Any

from pipelines.pairs import PREPARE
from pipelines.recipe import Recipe, Run, RunPaths, Say, Stage, StageRecord
from pipelines.storage import RunStore


class Audit(Stage[str]):
    name = title = "audit"
    help = "Count responses that are longer than their prompt."
    uses_ray = False

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.run.at("audit")

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE,)

    def check_recipe(self, recipe: Recipe) -> None:
        from pipelines.errors import UserError

        if recipe.data.max_response_tokens == 13:
            raise UserError("data.max_response_tokens = 13: audit refuses it")

    def resolve(self, recipe: Recipe) -> str:
        return "longer"

    def fingerprints(
        self, recipe: Recipe, inputs: str, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        return {"pairs": earlier[PREPARE.name].fingerprint(), "counted": inputs}

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.pairs import open_pairs

        record, pairs = run.record(self), open_pairs(run)
        record.begin()
        found = pairs.pairs("train", range(pairs.num_rows("train")))
        longer = sum(len(pair.chosen) > len(pair.prompt) for pair in found)
        return record.finish({"longer": longer, "pairs": len(found)})

    def summary(self, counts: dict[str, Any]) -> str:
        return f"{counts['longer']} of {counts['pairs']} responses"

    def detail(self, counts: dict[str, Any]) -> str:
        return f"{counts['longer']} longer"

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        return {"pairs": known[PREPARE.title]["pairs"]["train"]}


AUDIT = Audit()
