from .activation import activation_weights as activation_weights
from .adversarial import AdversarialMask as AdversarialMask
from .base import (
    MaskWeights as MaskWeights,
    TokenMasks as TokenMasks,
    UniformMask as UniformMask,
)
from .collapse import CollapseWatch as CollapseWatch
from .confidence import ConfidenceMask as ConfidenceMask
from .contrast import ContrastMask as ContrastMask
from .decay import decay_groups as decay_groups
from .declarations import (
    ACTIVATION_MAPPINGS as ACTIVATION_MAPPINGS,
    LEARNED_MASKS as LEARNED_MASKS,
    MASKS as MASKS,
    MaskDeclaration as MaskDeclaration,
    check_mask_options as check_mask_options,
)
from .discriminator import DiscriminatorMask as DiscriminatorMask
from .entropy import EntropyMask as EntropyMask
from .exp_ratio import ExpRatioMask as ExpRatioMask
from .frozen import (
    ActivationMask as ActivationMask,
    ExternalMask as ExternalMask,
    FrozenMask as FrozenMask,
    RandomMask as RandomMask,
    keep_heaviest as keep_heaviest,
)
from .learned import LearnedMasks as LearnedMasks
from .length_split import LengthSplitMask as LengthSplitMask
from .partition import PartitionMask as PartitionMask
from .position_decay import PositionDecayMask as PositionDecayMask
from .saliency import SaliencyMask as SaliencyMask
from .segment import SegmentMask as SegmentMask
from .selective import SelectiveMask as SelectiveMask
from .surprise import SurpriseMask as SurpriseMask
from .token_reward import TokenRewardMask as TokenRewardMask
from .transport import TransportMask as TransportMask
