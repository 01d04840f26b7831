"""What an evaluation calls its distances from the reference, and how they are read.

A divergence is at least 0; rounding can leave an estimate a little below. An estimate is cut at 0
as a whole. Cutting tokens or samples before they are added up would keep the errors above 0 alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REFERENCE_POLICY, POLICY_REFERENCE = "kl/reference_policy", "kl/policy_reference"
OFF_POLICY, FLOOR = "_off_policy", "_floor"


@dataclass(frozen=True)
class SampledKl:
    """KL(policy || reference) along the samples of one temperature.

    Attributes:
        prefix: of the names of all numbers of that temperature. key: the whole name. value: mean
            and interval, nats per response. floor: the same of the reference's own weights in the
            policy's place; None where it was not measured. sampling: how the samples were drawn,
            where they are not the policy's own; else empty.
    """

    prefix: str
    key: str
    value: dict[str, float]
    floor: float | None
    sampling: str


def sampled_kl_key(temperature: float, top_p: float) -> str:
    """The name of the mean over samples of their tokens' summed KL(policy || reference).

    At temperature 1 with all tokens, samples are the policy's own, and this is the policy's KL.
    Other samples visit other prefixes, and the name says so.
    """
    is_own = temperature == 1 and top_p == 1
    return POLICY_REFERENCE if is_own else POLICY_REFERENCE + OFF_POLICY


def floor_of(key: str, values: Sequence[float] | None) -> dict[str, float]:
    """The floor of a KL under its name; nothing where it was not measured."""
    return {key + FLOOR: max(0.0, sum(values) / len(values))} if values else {}


def sampled_kls(numbers: Mapping[str, Any], top_p: float = 1.0) -> Iterator[SampledKl]:
    """The KLs of a sentiment evaluation's numbers, the first temperature's first.

    Args:
        top_p: of the recipe, for evaluations from before it was among the numbers. Those called
            every one of them kl/policy_reference.
    """
    names = (POLICY_REFERENCE, POLICY_REFERENCE + OFF_POLICY)
    for key in numbers:
        name = next((name for name in names if key.endswith(name)), None)
        if name is None:
            continue
        prefix = key.removesuffix(name)
        temperature = numbers.get(f"{prefix}temperature", 1.0)
        nucleus = numbers.get(f"{prefix}top_p", top_p)
        is_own = sampled_kl_key(temperature, nucleus) == POLICY_REFERENCE
        sampling = "" if is_own else f"temperature {temperature:g}, top_p {nucleus:g}"
        yield SampledKl(prefix, key, numbers[key], numbers.get(key + FLOOR), sampling)
