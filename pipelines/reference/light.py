"""reference as the commands see it: its inputs, record and lines, without what scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    Action,
    Located,
    Recipe,
    Run,
    RunPaths,
    Say,
    Stage,
    StageRecord,
    stage_settings,
)
from pipelines.storage import RunStore


@dataclass(frozen=True)
class ReferenceInputs:
    """What the reference's features are made by.

    Attributes:
        model: the frozen reference. dtype: in which it runs here. origins: feature -> how it is
            made, beyond what settings and weights say; of all features that the recipe needs or
            stores.
    """

    model: Located
    dtype: str
    origins: dict[str, str]


def _check(run: Run, start_ray: Callable[[], None], say: Say, quiet: bool) -> None:
    from pipelines.reference.check import check_store

    check_store(run, start_ray, say, quiet)


def _repair(run: Run, start_ray: Callable[[], None], say: Say, quiet: bool) -> None:
    from pipelines.reference.check import repair_store

    repair_store(run, start_ray, say, quiet)


class Reference(Stage[ReferenceInputs]):
    name = title = "reference"
    help = "Score the pairs once with the frozen reference model."
    actions = (
        Action(
            "check",
            "Verify every file of the finished store instead; exit code 1 if one is bad.",
            _check,
        ),
        Action("repair", "Verify, and score again what is damaged.", _repair),
    )

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.reference

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE,)

    def settle(self, recipe: Recipe) -> Recipe:
        from pipelines.reference.cost import scoring_device, settle_mode

        return settle_mode(recipe, scoring_device())

    def resolve(self, recipe: Recipe) -> ReferenceInputs:
        """UserError if a model does not exist."""
        from pipelines.models import dtype_name, weights_fingerprint
        from pipelines.reference.cost import scoring_device
        from pipelines.reference.origins import origins_of, reference_model_dir

        directory = reference_model_dir(recipe)
        return ReferenceInputs(
            Located(directory, weights_fingerprint(Path(directory))),
            dtype_name(recipe.reference.dtype, scoring_device()),
            origins_of(recipe, recipe.required_features() | recipe.stored_features()),
        )

    def settings(self, recipe: Recipe, inputs: ReferenceInputs) -> dict[str, Any]:
        # The dtype that `auto` means depends on the device: record what it resolved to. Hooks
        # matter only to their feature, so that a run without an activation mask can share the store
        # of one that has it.
        found = stage_settings(recipe, self.name)
        return {
            **{key: value for key, value in found.items() if not key.startswith("mask.")},
            "reference.dtype": inputs.dtype,
        }

    def fingerprints(
        self, recipe: Recipe, inputs: ReferenceInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        # Each by name, so that a refusal can say what of the pairs differs: the template, a
        # truncation, a file.
        pairs = earlier[PREPARE.name]
        return {"weights": inputs.model.fingerprint} | {
            f"pairs.{key}": value for key, value in {**pairs.settings, **pairs.inputs}.items()
        }

    def is_done(self, run: Run) -> bool:
        """UserError if the store holds a feature made in another way."""
        wanted = run.recipe.stored_features()
        if not wanted and not run.recipe.required_features():
            return True
        record = run.record(self)
        if not record.is_complete():
            return False
        known: dict[str, str] = record.manifest()["counts"]["features"]
        check_origins(record, known, run.inputs(self).origins, wanted)
        return wanted <= set(known)

    def check(self, run: Run) -> None:
        from pipelines.reference.family_checks import check_hooks

        check_hooks(run.recipe)

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.reference.stage import run_reference

        return run_reference(run, quiet)

    def summary(self, counts: dict[str, Any]) -> str:
        failed = sum(len(rows) for rows in counts["failed"].values())
        lost = f"; {failed} rows could not be scored: failed_rows.jsonl" if failed else ""
        warning = "".join(f"\nwarning: {message}" for message in counts["warnings"])
        stored = ", ".join(sorted(counts["features"])) or "nothing stored"
        return (
            f"{counts['mode']}, {counts['tokens']:,} tokens, {stored}, "
            f"{counts['bytes'] / 2**20:.1f} MiB{lost}{warning}"
        )

    def detail(self, counts: dict[str, Any]) -> str:
        return f"{counts['mode']}, {counts['tokens']:,} tokens"

    def progress(self, store: RunStore) -> str:
        scored = [
            f"{feature} {len(store.names(f'shards/{feature}'))}"
            for feature in store.names("shards")
        ]
        return f"shards scored: {', '.join(scored) or 0}"

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        from pipelines.reference.forecast import forecast_reference

        return forecast_reference(run, known[PREPARE.title], tflops)


REFERENCE = Reference()


def check_origins(
    record: StageRecord,
    known: Mapping[str, str],
    origins: Mapping[str, str],
    wanted: frozenset[str],
) -> None:
    """UserError if the store holds one of the wanted features made in another way."""
    for name in sorted(wanted):
        if known.get(name, origins[name]) != origins[name]:
            raise UserError(
                f"{record.store.root} holds {name} made with {known[name]!r}, now "
                f"{origins[name]!r} is asked for: choose another run_dir or paths.reference"
            )
