"""Rewards of generated texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from pipelines.errors import UserError
from pipelines.evaluate.results import Found, benchmark_results
from pipelines.evaluate.rewards import build_reward
from pipelines.evaluate.sample_scores import compare_scores, scored
from pipelines.recipe.evaluation import (
    BrevityReward,
    ClassifierReward,
    EvaluateSection,
    VaderReward,
)


def test_classifier_reward_is_the_probability_of_its_label(model_dir: Path, tmp_path: Path) -> None:
    """Against one unpadded forward per text."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "neg", 1: "pos"},
        label2id={"neg": 0, "pos": 1},
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["The plot was good .", "bad", "It ran for two weeks and the cast was awful ."]
    found = build_reward(ClassifierReward(model=str(tmp_path), label="pos"))(texts)
    for text, value in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert value == pytest.approx(
            model(input_ids=ids).logits.softmax(-1)[0, 1].item(), abs=1e-5
        )
    assert len(set(found)) == 3
    with pytest.raises(UserError, match="reward.label = 'happy': the classifier .* has NEG, POS"):
        build_reward(ClassifierReward(model=str(tmp_path), label="happy"))


def test_vader_orders_texts() -> None:
    low, high = build_reward(VaderReward())(["an awful film", "a wonderful film"])
    assert low < 0 < high


def test_the_higher_score_wins_and_equal_ones_tie() -> None:
    scores = [(1.0, 0.5, 1.0), (0.0, 0.5, -1.0)]
    samples = [
        {"policy_judge_score": policy, "chosen_judge_score": chosen, "start_judge_score": start}
        for policy, chosen, start in scores
    ]
    compare_scores(samples)
    assert [sample["chosen_verdict"] for sample in samples] == ["policy", "opponent"]
    assert [sample["start_verdict"] for sample in samples] == ["tie", "policy"]
    assert {sample["start_consistent"] for sample in samples} == {None}, "no order was asked"


def test_an_evaluation_takes_brevity_as_its_reward(tmp_path: Path) -> None:
    """By hand: the policy's two texts have 1 and 3 of 4 words, the start's 4 and 5. It is scored
    without an actor, and its interval knows its range: ten gains of 0 have a width.
    """
    settings = EvaluateSection(
        benchmarks=("sentiment",), reward=BrevityReward(most_words=4), bootstrap_samples=100
    )

    def found(texts: list[tuple[str, str]]) -> dict[str, Any]:
        records: list[dict[str, Any]] = [
            {
                "prompt": f"p{i}", "temperature_number": 0, "policy_text": policy,
                "start_text": start, "policy_tokens": 5, "start_tokens": 6,
                "kl_policy_reference": 0.5,
            }
            for i, (policy, start) in enumerate(texts)
        ]  # fmt: skip
        unused: Any = None
        samples = scored(records, settings, unused, unused, True)
        return benchmark_results(settings, Found(samples=samples), {})["sentiment"]

    numbers = found([("a", "a b c d"), ("a b c", "a b c d e")])
    assert numbers["reward/after"]["mean"] == pytest.approx(-0.5)
    assert numbers["reward/before"]["mean"] == pytest.approx(-1.0)
    assert numbers["reward/gain"]["mean"] == pytest.approx(0.5)
    same = found([("a", "b")] * 10)["reward/gain"]
    assert same["low"] < same["mean"] == 0.0 < same["high"]
    assert build_reward(BrevityReward())(["a b"]) == [-0.02]
