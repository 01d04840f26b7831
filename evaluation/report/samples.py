"""Samples of all runs, side by side per prompt, with the words marked that training changed."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from evaluation.report.view import RunView

_SHOWN = 4
# Words of a text that are compared; the rest is shown without marks.
_MOST_WORDS = 600


@dataclass(frozen=True)
class Answer:
    """A run's text. rewards: before and after, None without a reward."""

    run: str
    text: Markup
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Shown:
    """A prompt with all answers.

    Attributes:
        starts: texts before training, with the runs that they belong to where they differ.
        temperature: that they were drawn at, None where all samples have one.
    """

    prompt: str
    temperature: float | None
    starts: list[tuple[list[str], str]]
    answers: list[Answer]


@dataclass
class _Prompt:
    """What the runs have of one prompt: run name -> record, and its rewards."""

    records: dict[str, dict[str, object]] = field(default_factory=dict)

    def gains(self) -> list[float]:
        return [
            float(r["policy_reward"]) - float(r["start_reward"])  # type: ignore[arg-type]
            for r in self.records.values()
            if "policy_reward" in r and "start_reward" in r
        ]

    def spread(self) -> float:
        rewards = [
            float(r["policy_reward"])  # type: ignore[arg-type]
            for r in self.records.values()
            if "policy_reward" in r
        ]
        return max(rewards) - min(rewards) if len(rewards) > 1 else 0.0


def samples_by_prompt(runs: Sequence[RunView]) -> dict[str, list[Shown]]:
    """Groups of prompts: as they come, and where rewards moved or differ most; without repeats.

    A run that was not given a prompt is left out there.
    """
    found: dict[tuple[str, float], _Prompt] = {}
    for run in runs:
        for record in run.samples:
            key = (record["prompt"], record.get("temperature", 1.0))
            found.setdefault(key, _Prompt()).records.setdefault(run.name, record)
    compared = {run.name for run in runs if run.is_compared}
    prompts, has_several = list(found.items()), len({temperature for _, temperature in found}) > 1
    ranked = [(key, p) for key, p in prompts if p.gains()] if compared else []
    mean = {key: sum(p.gains()) / len(p.gains()) for key, p in ranked}
    groups = {
        "as they come": prompts,
        "where the runs differ most": sorted(
            ((key, p) for key, p in prompts if p.spread() > 0), key=lambda one: -one[1].spread()
        ),
        "largest gains": sorted(
            (one for one in ranked if mean[one[0]] > 0), key=lambda one: -mean[one[0]]
        ),
        "largest losses": sorted(
            (one for one in ranked if mean[one[0]] < 0), key=lambda one: mean[one[0]]
        ),
    }
    used: set[tuple[str, float]] = set()
    shown: dict[str, list[Shown]] = {}
    for label, members in groups.items():
        kept = [one for one in members if one[0] not in used][:_SHOWN]
        used |= {key for key, _ in kept}
        if kept:
            shown[label] = [
                _shown(text, temperature if has_several else None, prompt, compared)
                for (text, temperature), prompt in kept
            ]
    return shown


def _shown(prompt: str, temperature: float | None, found: _Prompt, compared: set[str]) -> Shown:
    starts: dict[str, list[str]] = {}
    answers = []
    for run, record in found.records.items():
        start, text = str(record.get("start_text", "")), str(record.get("policy_text", ""))
        starts.setdefault(start, []).append(run)
        answers.append(
            Answer(
                run,
                marked(start, text) if run in compared else escape(text),
                record.get("start_reward"),  # type: ignore[arg-type]
                record.get("policy_reward"),  # type: ignore[arg-type]
            )
        )
    return Shown(prompt, temperature, [(names, text) for text, names in starts.items()], answers)


def marked(before: str, after: str) -> Markup:
    """The text after, escaped, with the words in <ins> that the text before has not there.

    Words are parted by white space, which stays as it is.
    """
    old, new = (re.findall(r"\s*\S+", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(
        None, [w.strip() for w in old[:_MOST_WORDS]], [w.strip() for w in new[:_MOST_WORDS]], False
    )
    parts: list[Markup] = []
    for kind, _, _, begin, end in matcher.get_opcodes():
        text = "".join(new[begin:end])
        bare = text.lstrip()
        if kind in ("insert", "replace") and bare:
            parts += [escape(text[: -len(bare)]), Markup("<ins>{}</ins>").format(bare)]
        else:
            parts.append(escape(text))
    rest = "".join(new[_MOST_WORDS:])
    return Markup("").join([*parts, escape(rest), escape(after[len("".join(new)) :])])
