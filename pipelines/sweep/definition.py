"""SWEEP/sweep.json: what a sweep searches, on which data and models, and which part of it this is.

Who reads it needs neither the sweep's file nor its recipes, which may lie on another machine.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.pairs import PREPARE
from pipelines.recipe import DEFINITION, Run
from pipelines.storage import RunStore, damaged, write_record
from pipelines.sweep.extent import CURE, definition_in
from pipelines.sweep.shared_stores import trial_recipe
from pipelines.sweep.space import RECIPE, Sweep
from pipelines.train import TRAIN


@dataclass(frozen=True)
class Definition:
    """A sweep as its directory tells it.

    Attributes:
        settings: what the trials' results depend on, by key. inputs: "data of RECIPE" and "model of
            RECIPE" -> fingerprint.
    """

    sweep: Sweep
    settings: dict[str, Any]
    inputs: dict[str, str]


def write_definition(sweep: Sweep, store: RunStore) -> None:
    """Keep what the sweep is; its inputs are looked at the first time only."""
    known = definition_in(store) if store.exists(DEFINITION) else {}
    write_record(
        store,
        DEFINITION,
        {
            "sweep": sweep.model_dump(mode="json", by_alias=True),
            "settings": sweep.settings(),
            "inputs": known["inputs"] if known else _inputs(sweep),
            "trials": sweep.num_trials(),
            "trials_of_all": sweep.num_trials_of_all(),
        },
    )


def read_definition(store: RunStore) -> Definition:
    """What `write_definition` wrote.

    Raises: FileNotFoundError; DamagedFile if it is not what was written.
    """
    found = definition_in(store)
    try:
        sweep = Sweep.model_validate(found["sweep"])
    except ValidationError as error:
        raise damaged(store, DEFINITION, "it is no sweep's", CURE) from error
    return Definition(sweep, found["settings"], found["inputs"])


def _inputs(sweep: Sweep) -> dict[str, str]:
    """Fingerprints of each recipe's data and starting model, at its first point of all."""
    found: dict[str, str] = {}
    for point in sweep.points or sweep.sample_of_points():
        name = str(point.get(RECIPE, sweep.recipe))
        if f"data of {name}" not in found:
            run = Run(trial_recipe(sweep, point, sweep.run_dir))
            found[f"data of {name}"] = run.record(PREPARE).fingerprint()
            found[f"model of {name}"] = run.inputs(TRAIN).start.fingerprint
    return found
