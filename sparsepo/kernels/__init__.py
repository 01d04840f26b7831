"""Numerical primitives of the method."""

from sparsepo.kernels.token_scoring import LMHead, score_tokens

__all__ = ["LMHead", "score_tokens"]
