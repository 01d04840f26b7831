"""Metrics as `evaluate.Metric` classes that load without a network: one file each, unit, range and direction stated."""

from evaluation.metrics.auc import TokenAUC, auc
from evaluation.metrics.distinct_n import DistinctN, distinct_n
from evaluation.metrics.preference_accuracy import PreferenceAccuracy
from evaluation.metrics.vader_sentiment import VaderSentiment, vader_scores

__all__ = ["DistinctN", "PreferenceAccuracy", "TokenAUC", "VaderSentiment", "auc", "distinct_n", "vader_scores"]
