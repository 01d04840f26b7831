"""Numerical primitives of the method."""

from sparsepo.kernels.token_scoring import LMHead, TopK, score_tokens

__all__ = ["LMHead", "TopK", "score_tokens"]
