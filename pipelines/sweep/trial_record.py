"""What became of the points of a sweep, by their files; for those who read them and run none."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pipelines.recipe import TRIAL
from pipelines.storage import RunStore, damaged, read_record, write_record
from pipelines.sweep.space import Sweep


class Trial(BaseModel):
    """What became of a point.

    status: finished (message: an objective that it did not report); diverged = a loss was not
    finite; failed = another error; stopped = by the scheduler or the time limit. metrics: means
    over the seeds, with <metric>/std, /low and /high where there are several. runs: metrics of
    every seed alone. seconds: of this trial's training and evaluation. session: the command that
    wrote it.
    """

    number: int
    point: dict[str, Any]
    run_dir: str
    status: Literal["finished", "diverged", "failed", "stopped"]
    message: str = ""
    metrics: dict[str, float] = {}
    runs: dict[str, dict[str, float]] = {}
    seconds: float = 0.0
    session: str = ""


def read_trial(store: RunStore) -> Trial:
    """What became of a trial. Raises: DamagedFile if it is not what was written."""
    cure = "remove it and add --resume to the sweep's command, which goes on with that trial"
    try:
        return Trial.model_validate(read_record(store, TRIAL, {"number": int}, cure))
    except ValidationError as error:
        raise damaged(store, TRIAL, "it is no trial's", cure) from error


def write_trial(store: RunStore, trial: Trial) -> None:
    write_record(store, TRIAL, trial.model_dump(mode="json"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def place_of(sweep: Sweep, trial: Trial) -> str:
    """Where a trial's runs lie now: the whole sweep may have been moved since."""
    here = RunStore(sweep.trial_dir(trial.number, trial.point))
    return here.root if here.exists() else trial.run_dir
