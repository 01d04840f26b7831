"""reference as the commands see it: its inputs, record and lines, without what scores."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import StageFailed
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    MARKERS,
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

if TYPE_CHECKING:
    from pipelines.cluster import Resources
    from pipelines.reference.check import Damage
    from pipelines.reference.facts import ReferenceFacts


@dataclass(frozen=True)
class ReferenceInputs:
    """What the reference's features are made by.

    Attributes:
        model: the frozen reference. dtype: in which it runs here. origins: feature -> how it is
            made, beyond what settings and weights say; of all features that the recipe needs or
            stores.
        vocabulary: rows of its embeddings that are used, None for all.
    """

    model: Located
    dtype: str
    origins: dict[str, str]
    vocabulary: int | None


def _check(run: Run, start_ray: Callable[[], None], say: Say, quiet: bool) -> None:
    """Say what is damaged; StageFailed if anything is."""
    manifest, damage = check_reference(run, quiet)
    _warn_of(damage)
    if damage:
        raise StageFailed(f"{len(damage)} of {len(manifest['outputs'])} files are bad")
    _say_good(manifest, say)


def _repair(run: Run, start_ray: Callable[[], None], say: Say, quiet: bool) -> None:
    """Score again what is damaged; StageFailed if something still is."""
    manifest, damage = check_reference(run, quiet)
    _warn_of(damage)
    if damage:
        repaired = Run(discard_damaged(run, damage))
        start_ray()
        REFERENCE.run(repaired, say, quiet)
        manifest, damage = check_reference(repaired, quiet)
        if damage:
            raise StageFailed(f"still bad after scoring again: {damage[0].message}")
    _say_good(manifest, say)


def _warn_of(damage: "list[Damage]") -> None:
    for item in damage:
        print(item.message, file=sys.stderr, flush=True)


def _say_good(manifest: dict[str, Any], say: Say) -> None:
    say(
        f"reference: {len(manifest['outputs'])} files, {manifest['counts']['bytes'] / 2**20:.1f} "
        "MiB, all good"
    )


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

    def applies(self, recipe: Recipe) -> bool:
        return recipe.evaluate.model is None

    def is_awaited(self, paths: RunPaths) -> bool:
        return paths.trains

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE,)

    def settle(self, recipe: Recipe) -> Recipe:
        from pipelines.reference.cost import scoring_device, settle_mode

        return settle_mode(recipe, scoring_device())

    def resolve(self, recipe: Recipe) -> ReferenceInputs:
        """UserError if a model does not exist."""
        from pipelines.models import dtype_name, padded_vocabularies, weights_fingerprint
        from pipelines.reference.cost import scoring_device
        from pipelines.reference.origins import origins_of, reference_model_dir

        directory = reference_model_dir(recipe)
        fingerprint = weights_fingerprint(Path(directory))
        sizes = padded_vocabularies(recipe)
        return ReferenceInputs(
            Located(directory, fingerprint),
            dtype_name(recipe.reference.dtype, scoring_device()),
            origins_of(recipe, recipe.required_features() | recipe.stored_features()),
            None if sizes is None or sizes.common == sizes.reference else sizes.common,
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
        return {
            "weights": inputs.model.fingerprint,
            **({} if inputs.vocabulary is None else {"vocabulary": inputs.vocabulary}),
            **{f"pairs.{key}": value for key, value in {**pairs.settings, **pairs.inputs}.items()},
        }

    def is_done(self, run: Run) -> bool:
        """UserError if the store holds a feature made in another way."""
        wanted = run.recipe.stored_features()
        if not wanted and not run.recipe.required_features():
            return True
        record = run.record(self)
        if not record.is_complete():
            return False
        from pipelines.reference.origins import check_origins

        known: dict[str, str] = record.manifest()["counts"]["features"]
        check_origins(record, known, run.inputs(self).origins, wanted)
        return wanted <= set(known)

    def check(self, run: Run) -> None:
        from pipelines.models import check_readers
        from pipelines.reference.family_checks import check_hooks

        check_readers(run.recipe)
        check_hooks(run.recipe)
        run.inputs(self)

    def check_place(self, run: Run, resources: "Resources") -> None:
        if run.recipe.stored_features():
            settings = run.recipe.reference
            resources.actors(self.name, 1, settings.num_actors, settings.gpus_per_model)

    def check_room(self, run: Run) -> None:
        from pipelines.reference.scoring import check_room

        check_room(run, run.record(self))

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.reference.scoring import run_reference

        return run_reference(run, run.record(self), run.inputs(self).origins, quiet)

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

    def progress(self, paths: RunPaths) -> str:
        store = self.folder(paths)
        scored = [
            f"{feature} {len(store.names(f'{MARKERS}/{feature}'))}"
            for feature in store.names(MARKERS)
        ]
        return f"shards scored: {', '.join(scored) or 0}"

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        from pipelines.reference.forecast import forecast_reference

        return forecast_reference(run, known[PREPARE.title], tflops)

    def planned(self, forecast: Mapping[str, Any]) -> str:
        features = ", ".join(forecast["features"])
        if forecast["mode"] == "stored" and features:
            return f"stored: {features}"
        return f"{forecast['mode']}" + (f"; stored: {features}" if features else "")


REFERENCE = Reference()


def run_facts(run: Run) -> "ReferenceFacts":
    """What workers need of a run's reference; it is not looked at if nothing of it is wanted."""
    from pipelines.models import padded_vocabularies
    from pipelines.reference.facts import reference_facts

    wanted, sizes = run.recipe.required_features(), padded_vocabularies(run.recipe)
    return reference_facts(
        run.recipe,
        run.record(REFERENCE) if wanted else None,
        None if sizes is None else sizes.common,
    )


def check_reference(run: Run, quiet: bool = False) -> "tuple[dict[str, Any], list[Damage]]":
    """The manifest of a finished store, and what is damaged of its files."""
    from pipelines.reference.check import find_damage

    return find_damage(run, run.record(REFERENCE), quiet)


def discard_damaged(run: Run, damage: "list[Damage]") -> Recipe:
    """Forget damaged files; returns the recipe that scores them again."""
    from pipelines.reference.check import forget

    return forget(run.recipe, run.record(REFERENCE), damage)
