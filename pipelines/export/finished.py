"""The run that is exported: finished, whole, and what its own records say of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.evaluate import read_results
from pipelines.recipe import (
    BEST,
    CONFIG,
    MANIFEST,
    MODEL,
    Recipe,
    Run,
    RunPaths,
    check_config,
    read_config,
    read_manifest,
    validate_recipe,
)
from pipelines.storage import RunStore, nearest_path
from pipelines.sweep import is_sweep_folder
from pipelines.train import TRAIN, check_published

if TYPE_CHECKING:
    from pipelines.pairs import PairTable

_PROMPTS, _TOKENS = 4, 256  # that are read by both models


@dataclass(frozen=True)
class FinishedRun:
    """Attributes:
    train, pairs: manifests of these stages. results: benchmark -> numbers; empty without an
        evaluation.
    """

    recipe: Recipe
    paths: RunPaths
    train: dict[str, Any]
    pairs: dict[str, Any]
    results: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, run_dir: str) -> "FinishedRun":
        """Nothing is written. UserError naming what is missing, damaged or of another run."""
        recipe, paths, train = trained_run(run_dir, "export")
        if not paths.pairs.exists(MANIFEST):
            raise UserError(
                f"{paths.root}: its pairs are not at {paths.pairs.root} any more: the export is "
                "checked with their prompts"
            )
        found = cls(
            recipe, paths, train, read_manifest(paths.pairs), read_results(paths.evaluation)
        )
        found._refuse_other_pairs()
        return found

    @property
    def fingerprint(self) -> str:
        """Of the training."""
        return str(self.train["fingerprint"])

    @contextmanager
    def model(self) -> Iterator[Path]:
        """The published model as a local directory."""
        with self.paths.train.as_local_directory(MODEL) as folder:
            yield folder

    def pair_table(self) -> "PairTable":
        from pipelines.pairs import open_pairs

        return open_pairs(Run(self.recipe))

    def prompts(self) -> list[list[int]]:
        """Token ids of a few prompts with their chosen responses; held-out ones where there are.

        Raises: UserError if the run has no pair.
        """
        from pipelines.pairs import SPLITS

        table = self.pair_table()
        for split in reversed(SPLITS):
            if rows := range(min(_PROMPTS, table.num_rows(split))):
                table.check(split, slice(1))
                pairs = table.pairs(split, rows)
                return [
                    [*map(int, pair.prompt), *map(int, pair.chosen)][:_TOKENS] for pair in pairs
                ]
        raise UserError(f"{self.paths.pairs.root} holds no pair to check the export with")

    def _refuse_other_pairs(self) -> None:
        """UserError if others lie in the pairs' place than those that were trained on.

        Where the reference's record is not there any more, nothing says which those were.
        """
        made, inputs, reference = self.pairs, self.train["inputs"], self.paths.reference
        known = {"fingerprint": inputs.get("pairs")} if "pairs" in inputs else {}
        if not known and reference.exists(MANIFEST):
            scored = read_manifest(reference)
            if scored["fingerprint"] == inputs.get("reference"):
                known = {
                    key.removeprefix("pairs."): value
                    for key, value in scored["inputs"].items()
                    if key.startswith("pairs.")
                }
        found = {"fingerprint": made["fingerprint"], **made["settings"], **made["inputs"]}
        for key in sorted(known.keys() & found.keys()):
            if known[key] != found[key]:
                raise UserError(
                    f"{self.paths.pairs.root} holds other pairs than {self.paths.root} was trained "
                    f"on: {key} differs"
                )


def trained_run(run_dir: str, command: str) -> tuple[Recipe, RunPaths, dict[str, Any]]:
    """The recipe, the folders and the manifest of the training of a run with a whole model.

    Nothing is written.

    Args:
        command: of this program, that asks.
    Raises: UserError naming what is missing, damaged or of another run.
    """
    store = RunStore(run_dir)
    _refuse_others(store, run_dir, command)
    mapping, _ = read_config(store, CONFIG)
    recipe = validate_recipe({**mapping, "run_dir": store.root})
    paths = RunPaths.at(store.root)
    _require_trained(recipe, paths, command)
    train = read_manifest(paths.train)
    check_config(store, CONFIG, mapping, train["settings"])
    check_published(paths.train)
    return recipe, paths, train


def _refuse_others(store: RunStore, run_dir: str, command: str) -> None:
    """UserError for a place that holds no run of one model."""
    if is_sweep_folder(store):
        raise UserError(
            f"{store.root} is a sweep, which has a model per trial: name one of the runs below it "
            f"({BEST} is the recipe of the best)"
        )
    if store.exists(CONFIG):
        return
    folder, _, name = store.root.rpartition("/")
    if name == CONFIG and store.exists():
        raise UserError(f"{store.root}: the run itself is meant: sparsepo {command} {folder}")
    why = f"no {CONFIG}" if store.exists() else f"no such directory{nearest_path(run_dir)}"
    raise UserError(f"{store.root}: no run here ({why})")


def _require_trained(recipe: Recipe, paths: RunPaths, command: str) -> None:
    if paths.train.exists(MANIFEST):
        return
    if recipe.evaluate.model is not None:
        raise UserError(
            f"{paths.root} evaluates {recipe.evaluate.model} and has trained nothing: there is no "
            f"model of its own to {command}"
        )
    state = ", ".join(f"{row['stage']} {row['state']}" for row in TRAIN.status(paths))
    raise UserError(
        f"{paths.root} has no finished training ({state}): give its command again, and {command} "
        "it when it is done"
    )
