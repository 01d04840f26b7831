"""One model behind each of its controls: rewards with paired differences, and samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.view import RunView

_SHOWN = 4


@dataclass(frozen=True)
class Behind:
    """A model's numbers behind one control, none included.

    Attributes:
        control: good, bad or none. reward, tokens, distance: of its samples, with intervals.
            difference: the first control's reward less this one's, paired by prompt; None for the
            first.
    """

    run: str
    control: str
    reward: dict[str, float]
    tokens: dict[str, float]
    distance: dict[str, float]
    difference: dict[str, float] | None


@dataclass(frozen=True)
class Answers:
    """What a model writes to one prompt: control -> text and reward."""

    run: str
    prompt: str
    texts: list[tuple[str, str, float]]


def behind_controls(runs: Sequence[RunView]) -> list[Behind]:
    """The rows of all runs that were evaluated with a control, the first temperature's."""
    found = []
    for run in runs:
        numbers = run.results.get("sentiment", {})
        for kl in run.sampled_kls:
            if "temperature=" in kl.prefix or f"{kl.prefix}control" not in numbers:
                continue
            found.append(
                Behind(
                    run.name,
                    numbers[f"{kl.prefix}control"],
                    numbers[f"{kl.prefix}reward/after"],
                    numbers[f"{kl.prefix}tokens/after"],
                    kl.value,
                    numbers.get(f"{kl.prefix}reward/first_control_gain"),
                )
            )
    return found


def answers_behind(runs: Sequence[RunView]) -> list[Answers]:
    """The first prompts of each such run, with an answer behind every control."""
    return [found for run in runs for found in _of_run(run)]


def _of_run(run: RunView) -> list[Answers]:
    prompts: dict[str, dict[str, dict[str, Any]]] = {}
    for sample in (*run.first_samples, *run.controlled):
        if sample.get("temperature_number", 0) == 0 and "control" in sample:
            prompts.setdefault(sample["prompt"], {}).setdefault(sample["control"], sample)
    return [
        Answers(
            run.name,
            prompt,
            [(control, s["policy_text"], s.get("policy_reward", 0.0)) for control, s in by.items()],
        )
        for prompt, by in list(prompts.items())[:_SHOWN]
        if len(by) > 1
    ]
