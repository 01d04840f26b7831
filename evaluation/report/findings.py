"""What the evaluation of one run found, in sentences, and what must be known before."""

from collections.abc import Mapping

from evaluation.comparison import pooled_spread
from evaluation.kl import SampledKl
from evaluation.report.formats import interval, number, signed_interval
from evaluation.report.verdicts import TINY, rate_size, size
from evaluation.report.view import RunView

# KL(policy || reference) per sampled token: 2.7 in a run that was lost, 1.1 at most in those that
# were not
_FAR_NATS = 2.0
_DEAD_FRACTION = 0.99


def warnings(run: RunView) -> list[str]:
    """What should be known before any number.

    It lists what training warned of, samples far from the reference, and dead masks.
    """
    found = list((run.counts or {}).get("warnings") or [])
    sentiment, masks = run.results.get("sentiment", {}), run.results.get("masks", {})
    if "tokens/after" in sentiment:
        distance = run.sampled_kls[0].value["mean"]
        per_token = distance / max(1.0, sentiment["tokens/after"]["mean"])
        if per_token > _FAR_NATS:
            found.append(
                f"the samples are {distance:.0f} nats from the "
                f"reference, {per_token:.1f} per token: read some of them below before you trust "
                "their reward"
            )
    for term in run.masked_terms:
        zeros = masks.get(f"{term}_mask/zero_fraction", 0.0)
        if zeros > _DEAD_FRACTION:
            found.append(f"the {term} mask is zero on {zeros:.1%} of held-out tokens: it is dead")
    return found


def findings(run: RunView) -> list[str]:
    """What the evaluation found, in sentences.

    An interval that holds zero (or one half) is called no clear change. A clear one that is below
    Cohen's "small" is called tiny.
    """
    if not run.is_compared:
        return _alone(run)
    return [*_reward(run), *_preference(run), *_judged(run), *_programs_and_summaries(run)]


def _reward(run: RunView) -> list[str]:
    sentiment = run.results.get("sentiment")
    if not sentiment:
        return []
    gain, kl = sentiment["reward/gain"], run.sampled_kls[0]
    start = [{**s, "reward": s["start_reward"]} for s in run.first_samples if "start_reward" in s]
    policy = [
        {**s, "reward": s["policy_reward"]} for s in run.first_samples if "policy_reward" in s
    ]
    tiny = TINY * pooled_spread(start, policy, "reward")
    return [
        f"The reward of samples {_change(gain, tiny)}: {sentiment['reward/before']['mean']:.3f} "
        f"before, {sentiment['reward/after']['mean']:.3f} after ({signed_interval(gain)}), at a "
        f"distance of {kl.value['mean']:.2f} nats from the reference{_along(kl)}."
    ]


def _along(kl: SampledKl) -> str:
    return f" along samples at {kl.sampling}, which are not the policy's own" if kl.sampling else ""


def _preference(run: RunView) -> list[str]:
    preference = run.results.get("preference")
    if not preference:
        return []
    rate = preference["accuracy/implicit_reward"]
    often = _against_chance(rate, "more often than", "less often than", "about as often as")
    has_labels = "num_desirable" in preference
    does = "agrees with held-out labels" if has_labels else "prefers the held-out chosen response"
    of = "rows" if has_labels else "pairs"
    how = {"": "", "tiny": ", a tiny difference", "perhaps tiny": ", perhaps a tiny difference"}[
        rate_size(rate) if "about" not in often else ""
    ]
    return [f"The implicit reward {does} {often} chance{how}: in {rate['mean']:.1%} of {of}."]


def _judged(run: RunView) -> list[str]:
    found = []
    for opponent, label in (
        ("chosen", "the chosen responses"),
        ("start", "the starting model's replies"),
    ):
        rate = run.results.get("dialogue", {}).get(f"win_rate/{opponent}")
        if rate is not None:
            verb = _against_chance(
                rate,
                "prefers its replies to",
                "does not prefer its replies to",
                "sees no clear difference between its replies and",
            )
            found.append(f"The judge {verb} {label}: win rate {interval(rate)}.")
    return found


def _programs_and_summaries(run: RunView) -> list[str]:
    found = []
    code, summaries = (run.results.get(name, {}) for name in ("code", "summarization"))
    if "pass@1/gain" in code:
        found.append(
            f"pass@1 {_change(code['pass@1/gain'])}: {code['pass@1/before']['mean']:.3f} before, "
            f"{code['pass@1/after']['mean']:.3f} after ({signed_interval(code['pass@1/gain'])})."
        )
    if "rougeL/gain" in summaries:
        gain = summaries["rougeL/gain"]
        found.append(f"ROUGE-L of summaries {_change(gain)}: {signed_interval(gain)}.")
    return found


def _change(gain: Mapping[str, float], tiny: float = 0.0) -> str:
    """Rose or fell, where the interval leaves out zero; by how little, where a unit is known."""
    if not (gain["low"] > 0 or gain["high"] < 0):
        return "did not clearly change"
    how = size(gain["low"], gain["high"], tiny)
    by = {"": "", "tiny": " by a tiny amount", "perhaps tiny": ", perhaps by a tiny amount"}[how]
    return ("rose" if gain["low"] > 0 else "fell") + by


def _against_chance(rate: Mapping[str, float], above: str, below: str, around: str) -> str:
    return above if rate["low"] > 0.5 else below if rate["high"] < 0.5 else around


def _alone(run: RunView) -> list[str]:
    """What the evaluation of a model without another beside it found, in sentences."""
    found = ["Nothing is compared: before and after are the same model."]
    if sentiment := run.results.get("sentiment"):
        found.append(f"The reward of its samples is {interval(sentiment['reward/after'])}.")
    if preference := run.results.get("preference"):
        rate = preference["accuracy/logps/after"]
        found.append(
            "By log-probability it ranks the held-out chosen response higher in "
            f"{rate['mean']:.1%} of pairs."
        )
    if (rate := run.results.get("dialogue", {}).get("win_rate/chosen")) is not None:
        found.append(f"Against the chosen responses its replies win {interval(rate)}.")
    if rate := run.results.get("code", {}).get("pass@1/after"):
        found.append(f"pass@1 is {interval(rate)}.")
    return found


def all_numbers(run: RunView) -> list[tuple[str, str]]:
    """Every number of an evaluation: name, and value with its interval."""
    return [
        (f"{benchmark}/{key}", interval(value) if isinstance(value, dict) else number(value))
        for benchmark, result in run.results.items()
        for key, value in result.items()
        if (isinstance(value, dict) and "mean" in value)
        or (isinstance(value, int | float) and not isinstance(value, bool))
    ]
