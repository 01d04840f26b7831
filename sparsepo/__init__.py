"""sparsepo: token-masked preference optimisation (SparsePO, MaPO, TDPO, DPO) for language models.

The library needs torch, transformers and safetensors only; the pipeline around it lives in the package `pipelines`.
"""

from sparsepo.kernels import LMHead, score_tokens
from sparsepo.layouts import TokenizedPair, padded_layout
from sparsepo.masks import LearnedMasks, UniformMask
from sparsepo.model import PolicyModel, ReferenceModel, head_of
from sparsepo.objectives import DPO, OBJECTIVES, SFT, TDPO1, MaPO, SparsePO
from sparsepo.records import (
    ModelInputs,
    ObjectiveOutput,
    ReferenceFeatures,
    TokenScores,
)

__version__ = "0.1.0"

__all__ = [
    "DPO",
    "OBJECTIVES",
    "SFT",
    "TDPO1",
    "LMHead",
    "LearnedMasks",
    "MaPO",
    "ModelInputs",
    "ObjectiveOutput",
    "PolicyModel",
    "ReferenceFeatures",
    "ReferenceModel",
    "SparsePO",
    "TokenScores",
    "TokenizedPair",
    "UniformMask",
    "head_of",
    "padded_layout",
    "score_tokens",
]
