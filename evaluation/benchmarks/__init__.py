"""Benchmark definitions: records of scored pairs or samples in, numbers with intervals out."""

from evaluation.benchmarks.masks import masks_benchmark
from evaluation.benchmarks.preference import preference_benchmark
from evaluation.benchmarks.sentiment import sentiment_benchmark

__all__ = ["masks_benchmark", "preference_benchmark", "sentiment_benchmark"]
