"""Benchmark definitions: records of scored pairs or samples in, numbers with intervals out."""

from evaluation.benchmarks.code import CodeTask, code_benchmark, code_tasks
from evaluation.benchmarks.dialogue import OPPONENTS, dialogue_benchmark
from evaluation.benchmarks.discriminator import discriminator_benchmark
from evaluation.benchmarks.labelled import labelled_benchmark
from evaluation.benchmarks.leaderboard import leaderboard_benchmark
from evaluation.benchmarks.masks import mask_ranks, mask_sums, mask_totals, masks_benchmark
from evaluation.benchmarks.preference import preference_benchmark
from evaluation.benchmarks.sentiment import control_gain, sentiment_benchmark
from evaluation.benchmarks.summarization import summarization_benchmark

__all__ = [
    "OPPONENTS",
    "CodeTask",
    "code_benchmark",
    "code_tasks",
    "control_gain",
    "dialogue_benchmark",
    "discriminator_benchmark",
    "labelled_benchmark",
    "leaderboard_benchmark",
    "mask_ranks",
    "mask_sums",
    "mask_totals",
    "masks_benchmark",
    "preference_benchmark",
    "sentiment_benchmark",
    "summarization_benchmark",
]
