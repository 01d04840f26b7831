"""What the trials of a sweep share: pairs and reference scores.

They are made once per distinct setting of the prepare and reference stages.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import StageFailed
from pipelines.pairs import PREPARE
from pipelines.recipe import Recipe, Run, Say
from pipelines.reference import REFERENCE, scoring_device, settle_mode
from pipelines.storage import digest
from pipelines.sweep.space import Point, Sweep
from sparsepo.features import FEATURES

_SCORERS = ("positive_scorer", "negative_scorer")


@dataclass
class SharedStore:
    """One pair table and one reference store.

    Attributes:
        fingerprint: of the reference stage's settings and inputs. origins: feature -> how it is
            made. recipes: of the points that use it.
    """

    fingerprint: str
    origins: dict[str, str]
    recipes: list[Recipe]

    def serves(self, fingerprint: str, origins: dict[str, str]) -> bool:
        """Whether nothing that both store is made differently."""
        return fingerprint == self.fingerprint and all(
            self.origins.get(name, how) == how for name, how in origins.items()
        )

    def features(self) -> frozenset[str]:
        return frozenset[str]().union(*(recipe.stored_features() for recipe in self.recipes))

    def maker(self, run_dir: str) -> Recipe:
        """The recipe whose prepare and reference stages make this store.

        It knows how to make each of the store's features.
        """
        lead = next(
            (r for r in self.recipes if "activation_mask" in r.stored_features()), self.recipes[0]
        )
        # A recipe that names scorers without storing anything of them does not say which are meant.
        scored = [r for r in self.recipes if _scorer_features(r.stored_features())]
        model = {
            key: next((v for r in recipes if (v := getattr(r.model, key))), None)
            for key, recipes in (
                *((key, scored[:1] or self.recipes) for key in _SCORERS),
                ("embedder", self.recipes),
            )
        }
        reference: dict[str, Any] = {"features": tuple(sorted(self.features()))}
        for key, default in (("topk", None), ("layers_dtype", "compute")):
            reference[key] = next(
                (v for r in self.recipes if (v := getattr(r.reference, key)) != default), default
            )
        whole = {"cpus_per_run": None, "gpus_per_run": None}  # nothing runs beside it
        parts = {"model": model, "reference": reference, "ray": whole}
        made = lead.model_copy(
            update={
                name: getattr(lead, name).model_copy(update=values)
                for name, values in parts.items()
            }
        )
        return self.shared(Run(made), run_dir).recipe

    def shared(self, run: Run, run_dir: str) -> Run:
        """A run that reads this store; places that the recipe itself names stay."""
        recipe = run.recipe
        pairs = digest(run.record(PREPARE).fingerprint())[:12]
        paths = {
            "pairs": recipe.paths.pairs or f"{run_dir}/stores/pairs-{pairs}",
            "reference": recipe.paths.reference or f"{run_dir}/stores/reference-{self.name()}",
        }
        return run.with_places(
            recipe.model_copy(update={"paths": recipe.paths.model_copy(update=paths)})
        )

    def name(self) -> str:
        return digest([self.fingerprint, self.origins])[:12]


class SharedStores:
    """The stores of a sweep; every recipe finds its own. A trial rebuilds it from `to_json`."""

    def __init__(self, run_dir: str, stores: list[SharedStore]) -> None:
        self._run_dir, self._stores = run_dir, stores

    @classmethod
    def of(cls, sweep: Sweep) -> "SharedStores":
        """Group the points by what they share.

        Features of several points go into one store unless they are made differently.
        """
        stores: list[SharedStore] = []
        recipes = [trial_recipe(sweep, point, sweep.run_dir) for point in sweep.sample_of_points()]
        # Those with most features first, so that a small one finds the store that already has all
        # it needs.
        known: dict[str, str] = {}  # a fingerprint reads the data: once per distinct setting
        for recipe in sorted(recipes, key=lambda recipe: -len(recipe.stored_features())):
            parts = [recipe.data, recipe.model, recipe.reference]
            key = digest(
                [
                    *(part.model_dump(mode="json") for part in parts),
                    recipe.objective.declared.uses_rejected,
                    recipe.reads_labels(),
                    None if (control := recipe.control()) is None else control.model_dump(),
                ]
            )
            run = Run(recipe)
            fingerprint = known[key] = known.get(key) or run.record(REFERENCE).fingerprint()
            origins = _stored_origins(run)
            found = next((store for store in stores if store.serves(fingerprint, origins)), None)
            if found is None:
                stores.append(found := SharedStore(fingerprint, {}, []))
            found.origins |= origins
            found.recipes.append(recipe)
        return cls(sweep.run_dir, stores)

    @classmethod
    def from_json(cls, run_dir: str, stores: Sequence[dict[str, Any]]) -> "SharedStores":
        return cls(
            run_dir, [SharedStore(store["fingerprint"], store["origins"], []) for store in stores]
        )

    def to_json(self) -> list[dict[str, Any]]:
        """What a trial needs to find its store."""
        return [
            {"fingerprint": store.fingerprint, "origins": store.origins} for store in self._stores
        ]

    def makers(self) -> list[tuple[Recipe, int]]:
        """The recipe that makes each store, and how many points use it."""
        return [(store.maker(self._run_dir), len(store.recipes)) for store in self._stores]

    def shared(self, run: Run) -> Run:
        """The run with the places of its pairs and reference."""
        fingerprint, origins = run.record(REFERENCE).fingerprint(), _stored_origins(run)
        for store in self._stores:
            if store.serves(fingerprint, origins):
                return store.shared(run, self._run_dir)
        raise StageFailed(
            "the sweep made no pairs and reference for this point: too many combinations of keys "
            "that change them"
        )

    def make(
        self, say: Say, quiet: bool, check: Callable[[Recipe, dict[str, int]], None]
    ) -> dict[str, int]:
        """Run what is not there yet; returns how often each stage ran.

        Args:
            check: called with every point's recipe and its pairs per split once they are prepared,
                before the reference scores them.
        """
        runs = {"prepare": 0, "reference": 0}
        for (recipe, points), store in zip(self.makers(), self._stores, strict=True):
            run = Run(recipe)
            if not PREPARE.is_done(run):
                say(f"tune: prepare, for {points} points")
                PREPARE.run(run, say, quiet)
                runs["prepare"] += 1
            kept = run.record(PREPARE).manifest()["counts"]["pairs"]
            for served in store.recipes:
                check(served, kept)
            if not REFERENCE.is_done(run):
                stored = ", ".join(sorted(recipe.stored_features())) or "online"
                say(f"tune: reference ({stored}), for {points} points")
                REFERENCE.run(run, say, quiet)
                runs["reference"] += 1
        return runs


def _stored_origins(run: Run) -> dict[str, str]:
    """What distinguishes the features this run stores from others of the same name.

    Runs that agree can share a store.
    """
    stored = run.recipe.stored_features()
    found = {
        name: how for name, how in run.inputs(REFERENCE).origins.items() if how and name in stored
    }
    # A store is made with one pair of scorers: runs with different ones share no store, even if
    # they store different features of them.
    of_scorers = _scorer_features(found)
    return found | ({"scorer_log_ratios": found[of_scorers[0]]} if of_scorers else {})


def _scorer_features(features: Iterable[str]) -> list[str]:
    return [name for name in features if FEATURES[name].origin == "scorers"]


def trial_recipe(sweep: Sweep, point: Point, run_dir: str) -> Recipe:
    """The recipe of a point, with stored or online decided by what the whole sweep costs."""
    return settle_mode(
        sweep.recipe_at(point, run_dir),
        scoring_device(),
        sweep.num_trials_of_all() * max(1, len(sweep.seeds)),
    )
