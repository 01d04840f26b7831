"""What distances from the reference are called."""

import pytest

from evaluation.benchmarks import sentiment_benchmark
from evaluation.kl import floor_of, sampled_kl_key, sampled_kls

_VALUE = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 9}


@pytest.mark.parametrize(
    ("temperature", "top_p", "end"),
    [(1.0, 1.0, ""), (0.5, 1.0, "_off_policy"), (1.0, 0.9, "_off_policy"), (0, 1, "_off_policy")],
)
def test_other_samples_are_no_samples_of_the_policy(
    temperature: float, top_p: float, end: str
) -> None:
    key = f"kl/policy_reference{end}"
    assert sampled_kl_key(temperature, top_p) == key
    record = {
        "prompt": "p", "policy_text": "a", "start_text": "a", "policy_reward": 0.0,
        "start_reward": 0.0, "policy_tokens": 1, "start_tokens": 1, "kl_policy_reference": -1e-9,
    }  # fmt: skip
    found = sentiment_benchmark(
        [record, {**record, "prompt": "q"}], temperature, top_p, [2e-9, -1e-9, 2e-9]
    )
    assert [name for name in found if "policy_reference" in name] == [key, f"{key}_floor"]
    assert found[key]["mean"] == 0.0, "no divergence is below 0"
    assert found[f"{key}_floor"] == pytest.approx(1e-9), "the errors below 0 were added too"
    assert (found["temperature"], found["top_p"]) == (temperature, top_p)


def test_floors_are_named_after_their_kl() -> None:
    assert floor_of("kl/reference_policy", [0.5, 0.25]) == {"kl/reference_policy_floor": 0.375}
    assert floor_of("kl/reference_policy", [-1e-9]) == {"kl/reference_policy_floor": 0.0}
    assert floor_of("kl/reference_policy", []) == floor_of("kl/reference_policy", None) == {}


def test_kls_of_all_temperatures_are_read() -> None:
    found = list(sampled_kls({
        "temperature": 1.0, "top_p": 1.0, "kl/policy_reference": _VALUE,
        "kl/policy_reference_floor": 0.01, "temperature=0.5/temperature": 0.5,
        "temperature=0.5/top_p": 1.0, "temperature=0.5/kl/policy_reference_off_policy": _VALUE,
    }))  # fmt: skip
    assert [(kl.prefix, kl.floor, kl.sampling) for kl in found] == [
        ("", 0.01, ""), ("temperature=0.5/", None, "temperature 0.5, top_p 1"),
    ]  # fmt: skip


def test_evaluations_of_before_are_told_by_their_temperature() -> None:
    """They called every KL of samples the policy's, and kept no top_p: the recipe has it."""
    before = {"temperature": 1.0, "kl/policy_reference": _VALUE,
              "temperature=0.5/temperature": 0.5,
              "temperature=0.5/kl/policy_reference": _VALUE}  # fmt: skip
    assert [kl.sampling for kl in sampled_kls(before)] == ["", "temperature 0.5, top_p 1"]
    nucleus = [kl.sampling for kl in sampled_kls(before, 0.9)]
    assert nucleus == ["temperature 1, top_p 0.9", "temperature 0.5, top_p 0.9"]
    assert next(sampled_kls(before)).floor is None
