"""How long work takes besides its arithmetic (starts, launches, steps): assumptions to plan with.

Nothing is measured here. The seconds are those of processes that import torch and transformers on
a core of a server; docs/benchmarks.md compares forecasts with runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Of what a command starts, in seconds: a Ray of its own; actors that score; workers under Ray
# Train; actors that evaluate, with their metrics' imports; Ray Tune's process of a trial.
RAY_START, SCORING_START, TRAINING_START, EVALUATION_START, TRIAL_START = 4.0, 4.0, 9.0, 11.0, 9.0
# Of a layer's kernels, forward, without the arithmetic; and of an optimizer step's own work.
_LAYER_SECONDS = {"cuda": 0.5e-3, "cpu": 1.0e-3}
_STEP_SECONDS = 0.02
_PAIRS_PER_CORE_SECOND = 1500.0  # read, tokenised and written


@dataclass(frozen=True)
class Duration:
    """Seconds of a stage: to start its processes, and of the work itself."""

    start: float
    work: float

    @property
    def seconds(self) -> float:
        return self.start + self.work

    def as_keys(self) -> dict[str, float]:
        """As a forecast has them."""
        return {"start_seconds": self.start, "work_seconds": self.work, "seconds": self.seconds}


def pairs_seconds(rows: float, cpus: float) -> float:
    """Of reading, tokenising and writing pairs on so many cores."""
    return rows / (_PAIRS_PER_CORE_SECOND * max(1.0, cpus))


def forward_seconds(
    parameters: int, tokens: float, batches: float, layers: int, rate: float, device: str
) -> float:
    """Of forward passes over tokens in batches.

    Args:
        rate: TFLOP/s. device: "cuda" or "cpu".
    """
    return 2 * parameters * tokens / (rate * 1e12) + batches * layers * _LAYER_SECONDS[device]


def training_seconds(
    flops: float, micro_batches: float, steps: int, layers: int, rate: float, device: str
) -> float:
    """Of a training: its arithmetic, the launches forward and backward, and its steps' own work."""
    launches = 3 * micro_batches * layers * _LAYER_SECONDS[device]
    return flops / (rate * 1e12) + launches + steps * _STEP_SECONDS


def sampling_seconds(
    parameters: int,
    prompts: int,
    new_tokens: int,
    batch: int,
    layers: int,
    rate: float,
    device: str,
) -> float:
    """Of drawing so many tokens for each prompt with one model, in batches."""
    drawn = -(-prompts // batch) * new_tokens
    arithmetic = 2 * parameters * prompts * new_tokens / (rate * 1e12)
    return arithmetic + drawn * layers * _LAYER_SECONDS[device]


@dataclass(frozen=True)
class SideBySide:
    """Runs of a sweep, some at a time.

    Attributes:
        runs: in all. at_once: of them. cores: of the machines together, by which processes that
            start at once are slowed. shares_cores: whether the runs compute on these cores too.
    """

    runs: int
    at_once: int
    cores: float
    shares_cores: bool

    def seconds(self, durations: Sequence[Duration]) -> float:
        """Until the last of them ends, by the mean of one alone on all cores.

        Args:
            durations: of some of the runs.
        """
        count = max(1, len(durations))
        start = sum(one.start for one in durations) / count
        work = sum(one.work for one in durations) / count
        waves = -(-self.runs // max(1, self.at_once))
        slowed = max(1.0, self.at_once / max(1.0, self.cores))
        if self.shares_cores:
            return waves * start * slowed + self.runs * work
        return waves * (start * slowed + work)


def num_layers(config: Any) -> int:
    return int(getattr(config, "num_hidden_layers", None) or 1)
