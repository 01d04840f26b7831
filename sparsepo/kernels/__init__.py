"""Numerical primitives of the method."""

from sparsepo.kernels.token_scoring import (
    LMHead,
    TokenMoments,
    TopK,
    score_tokens,
    score_tokens_and_moments,
)

__all__ = ["LMHead", "TokenMoments", "TopK", "score_tokens", "score_tokens_and_moments"]
