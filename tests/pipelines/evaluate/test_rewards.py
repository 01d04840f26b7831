"""Rewards of generated texts."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from pipelines.errors import UserError
from pipelines.evaluate.rewards import build_reward
from pipelines.evaluate.sample_scores import compare_scores
from pipelines.recipe.evaluation import ClassifierReward, VaderReward


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
