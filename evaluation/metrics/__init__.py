"""Metrics as `evaluate.Metric` classes that load without a network.

Each has one file, with unit, range and direction stated.
"""

from evaluation.metrics.auc import TokenAUC, auc
from evaluation.metrics.bert_score import BertScore, BertScorer
from evaluation.metrics.brevity import Brevity, brevity_scores
from evaluation.metrics.calibration import Calibration, calibration_bins, expected_calibration_error
from evaluation.metrics.distinct_n import DistinctN, distinct_n
from evaluation.metrics.entailment import Entailment, EntailmentScorer
from evaluation.metrics.pass_at_k import PassAtK, pass_at_k
from evaluation.metrics.preference_accuracy import PreferenceAccuracy
from evaluation.metrics.rouge import Rouge, rouge
from evaluation.metrics.self_bleu import SelfBleu, self_bleu
from evaluation.metrics.vader_sentiment import VaderSentiment, vader_scores

__all__ = [
    "BertScore",
    "BertScorer",
    "Brevity",
    "Calibration",
    "DistinctN",
    "Entailment",
    "EntailmentScorer",
    "PassAtK",
    "PreferenceAccuracy",
    "Rouge",
    "SelfBleu",
    "TokenAUC",
    "VaderSentiment",
    "auc",
    "brevity_scores",
    "calibration_bins",
    "distinct_n",
    "expected_calibration_error",
    "pass_at_k",
    "rouge",
    "self_bleu",
    "vader_scores",
]
