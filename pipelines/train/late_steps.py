"""What one pass over a global batch found, read once its device is done with it.

The host gives the device its next step before it reads the numbers of the one before: the device
does not wait for records, metrics and checks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pipelines.errors import Failure
from pipelines.models import LateNumbers, Placement
from pipelines.train.micro_batches import Cut
from sparsepo.checks import Check
from sparsepo.records import Metrics, add_metrics

Sums = dict[str, tuple[float, float]]  # metric -> (sum, count)


@dataclass(frozen=True)
class Found:
    """Of all ranks: sums of every metric, and whether any rank's flag was set."""

    sums: Sums
    flag: bool


@dataclass
class Pass:
    """A pass of this rank: what it has found so far, on the device.

    Attributes:
        failure: what this rank met without a look at the device. flag: of this rank.
        explain: the failure of a micro-batch by what it refused. tokens, places: real ones, and
            all with padding.
    """

    failure: Failure | None
    flag: bool
    explain: Callable[[Cut, str], Failure]
    totals: Metrics = field(default_factory=dict)
    checks: list[tuple[Cut, Check]] = field(default_factory=list)
    tokens: int = 0
    places: int = 0

    def end(self, *more: Tensor) -> "LatePass":
        """Send its numbers off, and further scalars."""
        flat = [value for pair in self.totals.values() for value in pair]
        holds = [check.holds for _, check in self.checks]
        return LatePass(self, LateNumbers([*flat, *holds, *more]))


@dataclass(frozen=True)
class LatePass:
    """A pass whose numbers are on their way."""

    found: Pass
    numbers: LateNumbers

    def read(self, placement: Placement) -> tuple[Found, Sequence[float]]:
        """What all ranks found, and this rank's further scalars. Every rank must call it.

        Raises: the error of one rank on every rank.
        """
        mine, flat = self.found, self.numbers.read()
        sums = {key: (flat[2 * i], flat[2 * i + 1]) for i, key in enumerate(mine.totals)}
        first = 2 * len(sums)
        failure = mine.failure
        for holds, (cut, check) in zip(flat[first:], mine.checks, strict=False):
            if not holds and failure is None:
                failure = mine.explain(cut, check.message())
        summed: Sums = {}
        flag = False
        for failed, part, flagged in placement.gather((failure, sums, mine.flag)):
            if failed is not None:
                raise failed.error()
            summed, flag = add_metrics(summed, part), flag or flagged
        return Found(summed, flag), flat[first + len(mine.checks) :]
