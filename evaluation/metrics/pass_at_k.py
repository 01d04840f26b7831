"""Probability that one of k sampled programs passes a task's tests.

Range: [0, 1]. Higher is better.
"""

from math import comb
from typing import Any

import datasets
import evaluate


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased estimate 1 - C(n - c, k) / C(n, k) from n samples of which c passed.

    Raises: ValueError unless 1 <= k <= n and 0 <= c <= n. Source: Chen et al., arXiv:2107.03374,
        equation 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: must be from 1 to the number of samples, {num_samples}")
    if not 0 <= num_passed <= num_samples:
        raise ValueError(f"{num_passed} of {num_samples} samples passed")
    return 1.0 - comb(num_samples - num_passed, k) / comb(num_samples, k)


class PassAtK(evaluate.Metric):
    """compute(predictions=passed per task [counts], references=samples per task [counts], k=1).

    Returns: {"pass_at_k"}, the mean over tasks.
    """

    def _info(self) -> evaluate.MetricInfo:
        count = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": count, "references": count}),
        )

    def _compute(self, predictions: list[int], references: list[int], k: int = 1) -> dict[str, Any]:
        values = [pass_at_k(n, c, k) for c, n in zip(predictions, references, strict=True)]
        return {"pass_at_k": sum(values) / len(values)}
