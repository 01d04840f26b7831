"""What is trained next: the pilot, then the fronts seed by seed, HH's trials in between.

Everything follows from the records that are there, so that a command which was killed goes on where
it was, and what is missing is known.

The pilot: each method with one seed and its first betas. Then, while its trials do not span
`SPANNED` nats, a beta that is four times as large or as small; and one between two neighbours that
are more than a factor of `_GAP` apart in KL. At most `_MOST` betas each.

The fronts: DPO, TDPO1, random, the best dense and the best two sparse methods (`chosen`), with the
pilot's betas that reach from 1 to 8 nats (`front_betas`), on every seed. Last come SparsePO's two
defaults, this project's and the released one.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from frontier_settings import (
    ALWAYS,
    BY_NAME,
    DEFAULTS,
    HH_BETAS,
    NATS,
    NUM_SPARSE,
    SEEDS,
    SETTINGS,
    SPANNED,
    Task,
    Trial,
)
from world_comparison import Record, gain_at

_STEP, _GAP, _MOST = 4.0, 3.5, 6
# One in so many trials is HH's, once the pilot is through.
_HH_SHARE = 4


def trials_of(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "setting" in record]


def of_setting(records: Sequence[Record], name: str, task: Task = "imdb") -> list[Record]:
    return [r for r in trials_of(records) if r["task"] == task and r["setting"] == name]


def distances(records: Sequence[Record]) -> list[tuple[float, float]]:
    """KL and beta of the finished trials, the nearest first."""
    return sorted((r["points"][-1]["kl"], r["beta"]) for r in records if r["points"])


class Schedule:
    """Trials in their order, given what is done.

    Args:
        records: of the file so far; `add` takes what comes. settings: methods that take part.
    """

    def __init__(
        self, records: Sequence[Record], settings: Collection[str] = tuple(BY_NAME)
    ) -> None:
        self._done: dict[tuple[Task, str], list[Record]] = {}
        for record in trials_of(records):
            self._keep(record)
        self._names = [s.name for s in SETTINGS if s.name in settings]
        self._hh = [name for name in HH_BETAS if name in settings]
        self._running: set[Trial] = set()
        self._count = 0  # of trials given since the pilot

    def _keep(self, record: Record) -> None:
        self._done.setdefault((record["task"], record["setting"]), []).append(record)

    def _all(self) -> list[Record]:
        return [record for records in self._done.values() for record in records]

    def add(self, record: Record) -> None:
        self._keep(record)
        self._running.discard(Trial.of(record))

    def drop(self, trial: Trial) -> None:
        """It ended in an error and is not tried again by this command."""
        self._running.discard(trial)
        self._keep({**vars(trial), "points": [], "failed": "not measured"})

    def next(self, ready: Collection[tuple[Task, int]]) -> Trial | None:
        """The next trial whose pairs are prepared; None if there is nothing to do for now."""
        pilot = self._open(self.pilot(), ready)
        if pilot:
            return self._begin(pilot[0])
        front = self._open(self.fronts(), ready)
        hh = self._open(self.hh(), ready)
        self._count += bool(front or hh)
        if hh and (not front or self._count % _HH_SHARE == 0):
            return self._begin(hh[0])
        return self._begin(front[0]) if front else None

    def missing(self) -> list[Trial]:
        """What is not done, as far as it is known."""
        done = {Trial.of(record) for record in self._all() if record["failed"] != "not measured"}
        wanted = [*self.pilot(), *self.fronts(), *self.hh()]
        return [trial for trial in dict.fromkeys(wanted) if trial not in done]

    def pilot(self) -> list[Trial]:
        """Of the first seed: the first betas of every method, then those that it lacks."""
        first = [
            Trial("imdb", name, beta, SEEDS["imdb"][0])
            for name in self._names
            for beta in BY_NAME[name].betas
        ]
        more = [
            Trial("imdb", name, beta, SEEDS["imdb"][0])
            for name in self._names
            for beta in self._further(name)
        ]
        return [*first, *more]

    def _of_pilot(self, name: str) -> list[Record]:
        own = self._done.get(("imdb", name), [])
        return [record for record in own if record["seed"] == SEEDS["imdb"][0]]

    def _further(self, name: str) -> list[float]:
        done = self._of_pilot(name)
        known = {record["beta"] for record in done}
        if any(beta not in known for beta in BY_NAME[name].betas):
            return []
        return further_betas(distances(done), known)

    def is_piloted(self, name: str) -> bool:
        known = {record["beta"] for record in self._of_pilot(name)}
        return set(BY_NAME[name].betas) <= known and not self._further(name)

    def methods(self) -> list[str]:
        """Of the fronts, as far as they are known: all of them after the pilot."""
        always = [name for name in ALWAYS if name in self._names]
        if not all(map(self.is_piloted, self._names)):
            return [name for name in always if self.is_piloted(name)]
        return [*always, *chosen([r for n in self._names for r in self._of_pilot(n)])]

    def fronts(self) -> list[Trial]:
        """Of the methods seed by seed, then of `DEFAULTS` where they are not among them."""
        methods = self.methods()
        is_complete = all(map(self.is_piloted, self._names))
        last = [n for n in DEFAULTS if n in self._names and n not in methods and is_complete]
        return [
            Trial("imdb", name, beta, seed)
            for group in (methods, last)
            for seed in SEEDS["imdb"][1:]
            for name in group
            for beta in front_betas(distances(self._of_pilot(name)))
        ]

    def hh(self) -> list[Trial]:
        return [
            Trial("hh", name, beta, seed)
            for seed in SEEDS["hh"]
            for name in self._hh
            for beta in HH_BETAS[name]
        ]

    def _open(self, wanted: Sequence[Trial], ready: Collection[tuple[Task, int]]) -> list[Trial]:
        taken = {Trial.of(record) for record in self._all()} | self._running
        return [t for t in wanted if t not in taken and (t.task, t.seed) in ready]

    def _begin(self, trial: Trial) -> Trial:
        self._running.add(trial)
        return trial


def further_betas(found: Sequence[tuple[float, float]], tried: Collection[float]) -> list[float]:
    """Betas that a method's pilot lacks, given the (KL, beta) of its trials; one per end and gap.

    Args:
        tried: betas so far, those of lost trials too.
    """
    if not found:
        return []
    by_beta = sorted(beta for _, beta in found)
    wanted = []
    if found[0][0] > SPANNED[0]:
        wanted.append(by_beta[-1] * _STEP)
    if found[-1][0] < SPANNED[1]:
        wanted.append(by_beta[0] / _STEP)
    for (near, one), (far, other) in pairwise(found):
        if far > _GAP * near and near < NATS[-1] and far > NATS[0]:
            wanted.append(math.sqrt(one * other))
    rounded = [float(f"{beta:.2g}") for beta in wanted]
    return [beta for beta in rounded if beta not in tried][: max(0, _MOST - len(tried))]


def front_betas(found: Sequence[tuple[float, float]]) -> list[float]:
    """Of a pilot's (KL, beta): from the last at or below 1 nat to the first at or above 8."""
    below = [kl for kl, _ in found if kl <= NATS[0]]
    above = [kl for kl, _ in found if kl >= NATS[-1]]
    low = max(below, default=0.0)
    high = min(above, default=math.inf)
    return [beta for kl, beta in found if low <= kl <= high]


def chosen(pilot: Sequence[Record]) -> list[str]:
    """The best dense method beside DPO and TDPO1, and the best two sparse ones.

    A method's score is its mean reward less DPO's over the levels of `NATS` that both reach on the
    pilot's seed. It takes two levels at least.
    """
    scores: dict[str, float] = {}
    base = of_setting(pilot, "dpo")
    for setting in SETTINGS:
        own = of_setting(pilot, setting.name)
        if setting.name in ALWAYS or setting.family == "baseline":
            continue
        gains = [(gain_at(own, nats), gain_at(base, nats)) for nats in NATS]
        known = [one - other for one, other in gains if one is not None and other is not None]
        if len(known) >= 2:
            scores[setting.name] = sum(known) / len(known)
    ranked = sorted(scores, key=lambda name: -scores[name])
    dense = [name for name in ranked if BY_NAME[name].family == "dense"]
    sparse = [name for name in ranked if BY_NAME[name].family == "sparse"]
    return [*dense[:1], *sparse[:NUM_SPARSE]]
