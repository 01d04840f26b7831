from .backbone import enable_packing as enable_packing
from .batching.batch_layout import BatchLayout as BatchLayout
from .batching.layouts import (
    TokenizedPair as TokenizedPair,
    packed_layout as packed_layout,
    padded_layout as padded_layout,
)
from .batching.sampling import Sampler as Sampler
from .discriminator import TokenDiscriminator as TokenDiscriminator
from .falling import FallingChosenWatch as FallingChosenWatch
from .features import FEATURES as FEATURES
from .kernels import (
    LMHead as LMHead,
    TokenMoments as TokenMoments,
    TopK as TopK,
    score_tokens as score_tokens,
    score_tokens_and_moments as score_tokens_and_moments,
)
from .masks import (
    ActivationMask as ActivationMask,
    AdversarialMask as AdversarialMask,
    CollapseWatch as CollapseWatch,
    ConfidenceMask as ConfidenceMask,
    ContrastMask as ContrastMask,
    DiscriminatorMask as DiscriminatorMask,
    EntropyMask as EntropyMask,
    ExpRatioMask as ExpRatioMask,
    ExternalMask as ExternalMask,
    LearnedMasks as LearnedMasks,
    LengthSplitMask as LengthSplitMask,
    PartitionMask as PartitionMask,
    PositionDecayMask as PositionDecayMask,
    RandomMask as RandomMask,
    SaliencyMask as SaliencyMask,
    SegmentMask as SegmentMask,
    SelectiveMask as SelectiveMask,
    SurpriseMask as SurpriseMask,
    TokenRewardMask as TokenRewardMask,
    TransportMask as TransportMask,
    UniformMask as UniformMask,
)
from .model import (
    PolicyModel as PolicyModel,
    head_of as head_of,
    verify_head as verify_head,
)
from .objectives import (
    CPO as CPO,
    DPO as DPO,
    DPOP as DPOP,
    IPO as IPO,
    KTO as KTO,
    LOSSES as LOSSES,
    OBJECTIVES as OBJECTIVES,
    ODPO as ODPO,
    ORPO as ORPO,
    RPO as RPO,
    SFT as SFT,
    TDPO1 as TDPO1,
    TDPO2 as TDPO2,
    TISDPO as TISDPO,
    WPO as WPO,
    AlphaPO as AlphaPO,
    BetaDPO as BetaDPO,
    CoupledBatch as CoupledBatch,
    CoupledObjective as CoupledObjective,
    DPOShift as DPOShift,
    MaPO as MaPO,
    Objective as Objective,
    SimPO as SimPO,
    SparsePO as SparsePO,
    Sum as Sum,
    Weighted as Weighted,
)
from .records import (
    Features as Features,
    ModelInputs as ModelInputs,
    ObjectiveOutput as ObjectiveOutput,
    TokenScores as TokenScores,
)
from .reference import ReferenceModel as ReferenceModel
from .runaway import RunawayWatch as RunawayWatch
from .saliency import input_saliency as input_saliency
from .scorers import (
    pooled_states as pooled_states,
    scorer_log_ratios as scorer_log_ratios,
    scorer_logps as scorer_logps,
)
from .weighing import (
    TokenWeights as TokenWeights,
    token_weights as token_weights,
)

__version__: str
