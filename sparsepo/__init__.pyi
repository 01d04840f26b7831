from .backbone import enable_packing as enable_packing
from .batching.batch_layout import BatchLayout as BatchLayout
from .batching.layouts import (
    TokenizedPair as TokenizedPair,
    packed_layout as packed_layout,
    padded_layout as padded_layout,
)
from .batching.sampling import Sampler as Sampler
from .features import FEATURES as FEATURES
from .kernels import (
    LMHead as LMHead,
    TopK as TopK,
    score_tokens as score_tokens,
)
from .masks import (
    ActivationMask as ActivationMask,
    AdversarialMask as AdversarialMask,
    CollapseWatch as CollapseWatch,
    ConfidenceMask as ConfidenceMask,
    ExpRatioMask as ExpRatioMask,
    ExternalMask as ExternalMask,
    LearnedMasks as LearnedMasks,
    LengthSplitMask as LengthSplitMask,
    PartitionMask as PartitionMask,
    PositionDecayMask as PositionDecayMask,
    RandomMask as RandomMask,
    SurpriseMask as SurpriseMask,
    UniformMask as UniformMask,
)
from .model import (
    PolicyModel as PolicyModel,
    ReferenceModel as ReferenceModel,
    head_of as head_of,
    verify_head as verify_head,
)
from .objectives import (
    DPO as DPO,
    DPOP as DPOP,
    IPO as IPO,
    OBJECTIVES as OBJECTIVES,
    ODPO as ODPO,
    RPO as RPO,
    SFT as SFT,
    TDPO1 as TDPO1,
    TDPO2 as TDPO2,
    TISDPO as TISDPO,
    CoupledBatch as CoupledBatch,
    CoupledObjective as CoupledObjective,
    MaPO as MaPO,
    Objective as Objective,
    SimPO as SimPO,
    SparsePO as SparsePO,
    Weighted as Weighted,
)
from .records import (
    Features as Features,
    ModelInputs as ModelInputs,
    ObjectiveOutput as ObjectiveOutput,
    TokenScores as TokenScores,
)
from .runaway import RunawayWatch as RunawayWatch
from .scorers import (
    pooled_states as pooled_states,
    scorer_log_ratios as scorer_log_ratios,
)
from .weighing import (
    TokenWeights as TokenWeights,
    token_weights as token_weights,
)

__version__: str
