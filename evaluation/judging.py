"""What a judge model is asked, and how its answer is read.

It also says what two answers in swapped order amount to.
"""

import re
from typing import Literal

Verdict = Literal["policy", "opponent", "tie", "failed"]

_INSTRUCTIONS = """You compare two replies to the same conversation. \
Judge which one is more helpful, correct and harmless to the person who asked. \
Do not let length, order or style decide by themselves. Think in a sentence or two, then end with \
exactly one of these verdicts:
[[A]] if reply A is better, [[B]] if reply B is better, [[C]] if they are equally good."""
_QUESTION = "[Conversation]\n{prompt}\n\n[Reply A]\n{a}\n\n[Reply B]\n{b}"
_MARKS: dict[str, Literal["a", "b", "tie"]] = {"A": "a", "B": "b", "C": "tie"}
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")


def judge_messages(prompt: str, a: str, b: str) -> list[dict[str, str]]:
    """Chat messages that ask for a verdict; an empty reply is named as such."""
    shown = {
        "prompt": prompt.strip(),
        "a": a.strip() or "(no reply)",
        "b": b.strip() or "(no reply)",
    }
    return [
        {"role": "system", "content": _INSTRUCTIONS},
        {"role": "user", "content": _QUESTION.format(**shown)},
    ]


def parse_verdict(answer: str) -> Literal["a", "b", "tie"] | None:
    """The last verdict mark of an answer; None if it has none."""
    marks = _VERDICT.findall(answer)
    if not marks:
        return None
    return _MARKS[marks[-1]]


def verdict_mark(verdict: Literal["a", "b", "tie"]) -> str:
    """The mark that parse_verdict() reads as this verdict."""
    return next(f"[[{letter}]]" for letter, meant in _MARKS.items() if meant == verdict)


def joint_verdict(policy_first: str | None, policy_second: str | None) -> Verdict:
    """One verdict from both orders: who wins in both wins.

    Judges who change their mind with the order mean a tie.

    Args:
        policy_first: "a", "b" or "tie" with the policy's reply as A; policy_second: with it as B;
            None: no verdict was had.
    """
    if policy_first is None or policy_second is None:
        return "failed"
    first = {"a": "policy", "b": "opponent", "tie": "tie"}[policy_first]
    second = {"a": "opponent", "b": "policy", "tie": "tie"}[policy_second]
    if first != second:
        return "tie"
    return "policy" if first == "policy" else "opponent" if first == "opponent" else "tie"
