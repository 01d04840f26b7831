"""Held-out responses, token by token: what each weighs, and how far the model moved there."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.view import RunView

# The darkest a token gets: its text stays readable on it, in light and dark.
_DARKEST = 0.55
_VALUES = {"reward": ("reward_mask", "reward mask"), "kl": ("kl_mask", "KL mask")}
_TOKEN_KL = ("token_kl", "token KL")


@dataclass(frozen=True)
class Scale:
    """What tokens are coloured by. key: of CSS; top: the value of the darkest colour shown."""

    key: str
    field: str
    label: str
    top: float

    def strength(self, value: float) -> float:
        """From 0 for no weight, or a negative one, to the darkest for the largest."""
        if not math.isfinite(value):
            return 0.0
        return round(max(value, 0.0) / self.top * _DARKEST, 3) if self.top > 0 else 0.0


@dataclass(frozen=True)
class TokenView:
    """A run's responses by prompt.

    Attributes:
        scales: what a reader may choose. prompts: (prompt, responses), the prompt None where the
            evaluation did not keep it. note: what holds of all of them.
    """

    run: str
    scales: list[Scale]
    prompts: list[tuple[str | None, list[dict[str, Any]]]]
    note: str


def token_view(run: RunView) -> TokenView | None:
    """The run's responses with a colour strength per token and scale; None without responses."""
    if not run.responses:
        return None
    wanted = [(term, *_VALUES[term]) for term in run.masked_terms]
    are_one = len(wanted) == 2 and all(r["reward_mask"] == r["kl_mask"] for r in run.responses)
    if are_one:
        wanted = [("reward", "reward_mask", "reward and KL mask")]
    scales = [
        Scale(key, name, label, max([0.0, *_finite(run.responses, name)]))
        for key, name, label in [*wanted, ("token-kl", *_TOKEN_KL)]
    ]
    note = "Its reward mask and its KL mask are the same on these tokens." if are_one else ""
    if any("segment" in response for response in run.responses):
        note = f"{note} A bar stands where a segment begins.".strip()
    if not run.masked_terms:
        note = "Without a mask every token counts alike; the colours are the token KL."
    return TokenView(run.name, scales, _by_prompt(run.responses, scales), note)


def _by_prompt(
    responses: Sequence[dict[str, Any]], scales: Sequence[Scale]
) -> list[tuple[str | None, list[dict[str, Any]]]]:
    """Neighbours of one prompt together, chosen and rejected."""
    groups = itertools.groupby(responses, lambda r: (r.get("prompt_hash"), r.get("prompt")))
    return [(prompt, [_response(r, scales) for r in found]) for (_, prompt), found in groups]


def _finite(responses: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [v for response in responses for v in response[name] if math.isfinite(v)]


def _response(response: dict[str, Any], scales: Sequence[Scale]) -> dict[str, Any]:
    tokens = []
    segments = response.get("segment")
    for i, token in enumerate(response["tokens"]):
        weights = {name: response[name][i] for name in ("reward_mask", "kl_mask", "token_kl")}
        tokens.append(
            {
                "text": token,
                "style": ";".join(
                    f"--{scale.key}:{scale.strength(weights[scale.field])}" for scale in scales
                ),
                "begins": bool(segments and i and segments[i] != segments[i - 1]),
                "is_key": bool(response["is_key"] and response["is_key"][i]),
                "hint": "reward mask {reward_mask:.4g} | KL mask {kl_mask:.4g} | token KL "
                "{token_kl:.4g} nats".format(**weights),
            }
        )
    return {"side": response["side"], "tokens": tokens}
