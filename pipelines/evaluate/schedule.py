"""schedule: evaluate every new checkpoint of a run at certain times.

It keeps the history, and stops when a gate fails.

A checkpoint is evaluated once, whoever else evaluates the run: its evaluation has a directory and a
history row of its own, and while it runs a claim. Times that passed while no scheduler ran are made
up for once.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from evaluation.gates import GateFailure, gate_failures
from pipelines.errors import DamagedCheckpoint, DamagedFile, UserError
from pipelines.evaluate.history import numbers_of, read_results
from pipelines.evaluate.stage import EVALUATE, checkpoint_record
from pipelines.evaluate.webhook import tell, webhook_address
from pipelines.recipe import (
    EVENTS,
    GATES,
    LAST_TICK,
    MANIFEST,
    STARTED,
    Run,
    Say,
    ScheduleSection,
    checkpoint_folder,
)
from pipelines.storage import Claims, ClaimTimes, RunStore, read_record, write_record
from pipelines.train import TRAIN, completed_steps

_LONGEST_WAIT_SECONDS = 30.0
# crontab(5)'s names for whole lines; @reboot is no time.
_LINES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
# The fields of a line, and what each may hold.
_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31, a day that one of the months has",
    "month": "1 to 12 or jan to dec",
    "day-of-week": "0 to 7 or sun to sat, 0 and 7 are Sunday; 5-7,1 is Friday to Monday",
}


@dataclass
class Outcome:
    """Of a tick or of all: steps that were evaluated, and what gates did not hold."""

    evaluated: list[int] = field(default_factory=list)
    failures: list[GateFailure] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.evaluated += other.evaluated
        self.failures += other.failures


class Scheduler:
    """Evaluates new checkpoints of a recipe's run.

    Args:
        start_ray: called before the first evaluation. times: of the claims, for tests.
    Raises: UserError for a cron line, a time zone, a release or a webhook variable that cannot be
        used.
    """

    def __init__(
        self,
        run: Run,
        start_ray: Callable[[], None],
        say: Say,
        quiet: bool = False,
        times: ClaimTimes | None = None,
    ) -> None:
        self._run, self._start_ray, self._say, self._quiet = run, start_ray, say, quiet
        self._recipe = recipe = run.recipe
        self._store = run.paths.evaluation
        self._claims = Claims(self._store, times)
        if recipe.schedule.cron is not None:
            next_time(recipe.schedule, datetime.now(UTC))
        self._release = _release_numbers(recipe.schedule)
        self._webhook = webhook_address(recipe.schedule)
        self._stopping = threading.Event()
        self._damaged: set[int] = set()  # steps that this scheduler leaves out

    def stop(self) -> None:
        """End `run` after the evaluation in progress; may be called from a signal handler."""
        self._stopping.set()

    def run(self, keeps_going: bool, until_trained: bool) -> Outcome:
        """Tick at every time of the cron line until stopped, or a gate fails (unless keeps_going).

        until_trained: also end when training has finished and every checkpoint is evaluated.
        """
        if self._recipe.schedule.cron is None:
            raise UserError(
                "a schedule needs times: give --cron or schedule.cron (or --once for a single look)"
            )
        total = Outcome()
        due = self._first_time()
        while not self._stopping.is_set():
            if until_trained and self.is_finished():
                self._say("schedule: training has finished and every checkpoint is evaluated")
                break
            now = datetime.now(UTC)
            if now < due:
                self._stopping.wait(min(_LONGEST_WAIT_SECONDS, (due - now).total_seconds()))
                continue
            outcome = self.tick()
            total.add(outcome)
            if outcome.failures and not keeps_going:
                break
            # What passed during the tick is not made up for: it looked at what there is.
            due = next_time(self._recipe.schedule, datetime.now(UTC))
        return total

    def _first_time(self) -> datetime:
        """Now, if a time has passed since the last tick; else the next time.

        The last tick is that of any scheduler of this run.
        """
        now = datetime.now(UTC)
        if self._store.exists(LAST_TICK):
            try:
                told = read_record(self._store, LAST_TICK, {"last_tick": str})["last_tick"]
                last = datetime.fromisoformat(told)
            except (DamagedFile, ValueError) as error:
                self._say(f"schedule: {error}; looked at now, and it is written anew")
                return now
            missed = next_time(self._recipe.schedule, last)
            if missed <= now:
                self._say(f"schedule: the time {missed.isoformat()} has passed, made up for now")
                return now
        return next_time(self._recipe.schedule, now)

    def tick(self) -> Outcome:
        """Evaluate what is new, once."""
        write_record(self._store, LAST_TICK, {"last_tick": datetime.now(UTC).isoformat()})
        outcome = Outcome()
        for step in self.unevaluated():
            if self._stopping.is_set():
                break
            with self._claims.holding(f"step-{step:08d}") as is_mine:
                if not is_mine:
                    self._say(f"step {step}: another scheduler evaluates it")
                elif not self._is_done(
                    step
                ):  # another may have finished it between our look and our claim
                    outcome.add(self._evaluate(step))
        if not outcome.evaluated:
            self._say("schedule: nothing new")
        return outcome

    def unevaluated(self) -> list[int]:
        """Steps of complete checkpoints with something left to do, ascending.

        They are not evaluated, or their gates have not been looked at. One that was found damaged
        is left out: training takes it back when it resumes.
        """
        return [
            step
            for step in completed_steps(self._run.paths.train)
            if step not in self._damaged and not self._is_done(step)
        ]

    def is_finished(self) -> bool:
        return self._run.paths.train.exists(MANIFEST) and not self.unevaluated()

    def _is_done(self, step: int) -> bool:
        return self._step_store(step).exists(GATES)

    def _step_store(self, step: int) -> RunStore:
        return self._store.at(checkpoint_folder(step))

    def _evaluate(self, step: int) -> Outcome:
        self._event(step, "started")
        try:
            if not checkpoint_record(self._run, step).is_complete():
                self._start_ray()
                EVALUATE.run(self._run, self._say, self._quiet, step)
        except Exception as error:
            if step in completed_steps(self._run.paths.train):
                if not isinstance(error, DamagedCheckpoint):
                    raise
                self._damaged.add(step)
                self._event(step, "damaged")
                self._say(f"step {step}: {error}; left out")
                return Outcome()
            self._event(step, "removed")
            self._say(f"step {step}: its checkpoint was removed while it was evaluated; left out")
            self._step_store(step).delete("")
            return Outcome()
        values = numbers_of(read_results(self._step_store(step)))
        failures = [
            failure
            for gate in self._recipe.schedule.gates
            for failure in gate_failures(
                gate.metric,
                values,
                self._release,
                minimum=gate.min,
                maximum=gate.max,
                max_drop=gate.max_drop,
                max_rise=gate.max_rise,
            )
        ]
        self._event(step, "finished")
        self._say(
            f"step {step}: evaluated"
            + (
                ""
                if not self._recipe.schedule.gates
                else ", gates passed"
                if not failures
                else ", gates failed"
            )
        )
        for failure in failures:
            self._say(f"step {step}: gate failed: {failure.message}")
        if failures and self._webhook is not None:
            self._call(step, failures)
        # Last: a scheduler that was killed before this looks at the gates again, and tells the
        # webhook again.
        write_record(
            self._step_store(step),
            GATES,
            {"passed": not failures, "failures": [f.as_dict() for f in failures]},
        )
        return Outcome([step], failures)

    def _event(self, step: int, what: str) -> None:
        """A file per event: which process began and finished what, and when."""
        record = {
            "step": step,
            "event": what,
            "time": datetime.now(UTC).isoformat(),
            "pid": os.getpid(),
        }
        self._store.write_json(f"{EVENTS}/{time.time_ns():020d}-{os.getpid()}.json", record)

    def _call(self, step: int, failures: list[GateFailure]) -> None:
        """Tell the webhook; an address that does not answer is said, and stops nothing."""
        assert self._webhook is not None
        told = [failure.as_dict() for failure in failures]
        message = {"run_dir": self._recipe.run_dir, "step": step, "failures": told}
        if reason := tell(self._webhook, message):
            print(f"warning: {reason}", file=sys.stderr, flush=True)


def next_time(section: ScheduleSection, after: datetime) -> datetime:
    """The first time of the section's cron line after an instant, in UTC.

    Lines mean what crontab(5) says. A minute or hour that begins with `*` follows the clock on the
    wall. Other lines run once when the clock is set back. If it jumps over them, they run after
    the jump. In the hour after a jump at midnight (Santiago), or of half an hour (Lord Howe), lines
    of the first kind can miss their times.

    Raises: UserError naming the field or time zone that cannot be read, or if no time is left.
    """
    from cronsim import CronSim, CronSimError

    try:
        zone = ZoneInfo(section.timezone)
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"schedule.timezone = {section.timezone!r}: no such time zone; write it as "
            "Europe/Berlin or UTC"
        ) from error
    assert section.cron is not None
    line = _LINES.get(section.cron.strip().lower(), section.cron)
    fields = dict(zip(_FIELDS, line.split(), strict=False))
    if len(line.split()) != len(_FIELDS):
        raise UserError(_unreadable(section, "needs five fields"))
    try:
        for found in CronSim(line, after.astimezone(zone)):
            # CronSim names the first pass of an hour that comes twice, also in the second.
            if (instant := found.astimezone(UTC)) > after:
                return instant
    except CronSimError as error:
        name = str(error).removeprefix("Bad ")
        reason = f"{name} {fields.get(name)!r}: allowed are {_FIELDS.get(name)}"
        raise UserError(_unreadable(section, reason)) from error
    raise UserError(f"schedule.cron = {section.cron!r}: this time never comes again")


def _unreadable(section: ScheduleSection, reason: str) -> str:
    return (
        f"schedule.cron = {section.cron!r}: {reason}; write minute hour day month weekday, for "
        "example '0 */2 * * *'"
    )


def _release_numbers(section: ScheduleSection) -> dict[str, float] | None:
    if section.release is None:
        return None
    found = numbers_of(read_results(RunStore(f"{section.release}/evaluation")))
    if not found:
        raise UserError(f"schedule.release = {section.release!r}: holds no finished evaluation")
    return found


def check_run(run: Run) -> None:
    """UserError if the run has not begun to train, or was trained by another recipe."""
    for key in ("model", "name"):
        if (given := getattr(run.recipe.evaluate, key)) is not None:
            raise UserError(
                f"evaluate.{key} = {given}: a schedule evaluates every checkpoint of the run"
            )
    EVALUATE.check(run)
    run.record(TRAIN).check()
    run.inputs(EVALUATE)
    if not run.paths.train.exists(STARTED):
        raise UserError(
            f"{run.recipe.run_dir} has no training run to evaluate: start one with `sparsepo train`"
        )
