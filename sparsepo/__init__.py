"""sparsepo: token-masked preference optimisation for language models.

The methods are SparsePO, MaPO, TDPO, DPO and their relatives.

The library needs torch, transformers and safetensors only; the pipeline around it lives in the
package `pipelines`.
"""

from sparsepo.backbone import enable_packing
from sparsepo.batching.batch_layout import BatchLayout
from sparsepo.batching.layouts import TokenizedPair, packed_layout, padded_layout
from sparsepo.batching.sampling import Sampler
from sparsepo.kernels import LMHead, TopK, score_tokens
from sparsepo.masks import (
    ActivationMask,
    CollapseWatch,
    ExternalMask,
    LearnedMasks,
    RandomMask,
    UniformMask,
)
from sparsepo.model import PolicyModel, ReferenceModel, head_of, verify_head
from sparsepo.objectives import (
    DPO,
    DPOP,
    IPO,
    OBJECTIVES,
    ODPO,
    RPO,
    SFT,
    TDPO1,
    TDPO2,
    TISDPO,
    CoupledBatch,
    CoupledObjective,
    MaPO,
    Objective,
    SimPO,
    SparsePO,
)
from sparsepo.records import FEATURES, Features, ModelInputs, ObjectiveOutput, TokenScores
from sparsepo.runaway import RunawayWatch
from sparsepo.scorers import pooled_states, scorer_log_ratios

__version__ = "0.7.0"

__all__ = [
    "DPO",
    "DPOP",
    "FEATURES",
    "IPO",
    "OBJECTIVES",
    "ODPO",
    "RPO",
    "SFT",
    "TDPO1",
    "TDPO2",
    "TISDPO",
    "ActivationMask",
    "BatchLayout",
    "CollapseWatch",
    "CoupledBatch",
    "CoupledObjective",
    "ExternalMask",
    "Features",
    "LMHead",
    "LearnedMasks",
    "MaPO",
    "ModelInputs",
    "Objective",
    "ObjectiveOutput",
    "PolicyModel",
    "RandomMask",
    "ReferenceModel",
    "RunawayWatch",
    "Sampler",
    "SimPO",
    "SparsePO",
    "TokenScores",
    "TokenizedPair",
    "TopK",
    "UniformMask",
    "enable_packing",
    "head_of",
    "packed_layout",
    "padded_layout",
    "pooled_states",
    "score_tokens",
    "scorer_log_ratios",
    "verify_head",
]
