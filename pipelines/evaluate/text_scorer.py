"""Scores of generated texts that need a model of their own.

These are classifier rewards, reward-model judges, BERTScore and entailment.
"""

from collections.abc import Callable
from typing import Any

from evaluation.metrics.bert_score import BertScorer
from evaluation.metrics.entailment import EntailmentScorer
from pipelines.errors import UserError
from pipelines.evaluate.reward_judge import RewardJudge, check_reward_judge
from pipelines.evaluate.rewards import (
    build_reward,
    check_reward,
    label_index,
    load_classifier,
    model_config_of,
    padding_tokenizer,
)
from pipelines.evaluate.tasks import Records, ScoreTexts
from pipelines.models import compute_device, from_directory, resolve_model
from pipelines.recipe import EvaluateSection, RewardModelJudge

WHO = ("start", "policy")


class TextScorer:
    """Actor: adds scores to sample records; models are loaded when a task first asks for them."""

    def __init__(self, settings: EvaluateSection) -> None:
        self._settings = settings
        self._models: dict[str, Any] = {}

    def __call__(self, task: ScoreTexts) -> Records:
        """The task's records with what its scorers say."""
        add = {
            "reward": self._rewards,
            "judge": self._judge,
            "bert_score": self._bert_score,
            "entailment": self._entailment,
        }
        for name in task.scorers:
            add[name](task.records)
        return task.records

    def _loaded(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self._models:
            self._models[name] = load()
        return self._models[name]

    def _rewards(self, records: Records) -> None:
        reward = self._loaded("reward", lambda: build_reward(self._settings.reward))
        for who in WHO:
            _put(records, f"{who}_reward", reward([r[f"{who}_text"] for r in records]))

    def _judge(self, records: Records) -> None:
        judge = self._settings.judge
        assert isinstance(judge, RewardModelJudge)
        found = self._loaded("judge", lambda: RewardJudge(judge))
        for who in ("chosen", *WHO):
            found.score(records, who)

    def _bert_score(self, records: Records) -> None:
        settings = self._settings.summarization
        assert settings.bert_score_model is not None
        model = settings.bert_score_model
        scorer = self._loaded(
            "bert_score", lambda: BertScorer(*_encoder(model), settings.bert_score_layer)
        )
        for who in WHO:
            _put(
                records,
                f"{who}_bert_score",
                scorer([r[f"{who}_text"] for r in records], [r["chosen_text"] for r in records])[
                    "f1"
                ],
            )

    def _entailment(self, records: Records) -> None:
        settings = self._settings.summarization
        assert settings.entailment_model is not None
        model = settings.entailment_model

        scorer = self._loaded(
            "entailment",
            lambda: EntailmentScorer(*load_classifier(model), settings.entailment_label),
        )
        for who in WHO:
            _put(
                records,
                f"{who}_entailment",
                scorer([r[f"{who}_text"] for r in records], [r["prompt"] for r in records]),
            )


def _put(records: Records, name: str, values: list[float]) -> None:
    for record, value in zip(records, values, strict=True):
        record[name] = value


def _encoder(model: str) -> tuple[Any, Any]:
    from transformers import AutoModel

    directory = resolve_model(model)
    encoder: Any = from_directory(AutoModel, directory, use_safetensors=True)
    return encoder.to(compute_device()), padding_tokenizer(directory)


def check_text_models(settings: EvaluateSection) -> None:
    """UserError if a model that the benchmarks need does not exist or lacks the label asked for."""
    if "sentiment" in settings.benchmarks:
        check_reward(settings.reward, "evaluate.reward")
    if isinstance(settings.judge, RewardModelJudge) and "dialogue" in settings.benchmarks:
        check_reward_judge(settings.judge)
    if "summarization" in settings.benchmarks:
        section = settings.summarization
        if section.entailment_model is not None:
            config = model_config_of(
                section.entailment_model, "evaluate.summarization.entailment_model"
            )
            label_index(config, section.entailment_label, "evaluate.summarization.entailment_label")
        if section.bert_score_model is not None:
            layers = model_config_of(
                section.bert_score_model, "evaluate.summarization.bert_score_model"
            ).num_hidden_layers
            if section.bert_score_layer is not None and section.bert_score_layer > layers:
                raise UserError(
                    f"evaluate.summarization.bert_score_layer = {section.bert_score_layer}: the "
                    f"model has layers 0 to {layers}"
                )
