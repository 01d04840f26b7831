from .alphapo import AlphaPO as AlphaPO
from .base import (
    CoupledBatch as CoupledBatch,
    CoupledObjective as CoupledObjective,
    LogisticObjective as LogisticObjective,
    Objective as Objective,
    PairLosses as PairLosses,
    PreferenceObjective as PreferenceObjective,
)
from .beta_dpo import BetaDPO as BetaDPO
from .cpo import CPO as CPO
from .declarations import (
    OBJECTIVES as OBJECTIVES,
    ObjectiveDeclaration as ObjectiveDeclaration,
)
from .dpo import DPO as DPO
from .dpo_shift import DPOShift as DPOShift
from .dpop import DPOP as DPOP
from .ipo import IPO as IPO
from .kto import KTO as KTO
from .losses import LOSSES as LOSSES
from .mapo import MaPO as MaPO
from .odpo import ODPO as ODPO
from .orpo import ORPO as ORPO
from .rpo import RPO as RPO
from .sft import SFT as SFT
from .simpo import SimPO as SimPO
from .sparsepo import SparsePO as SparsePO
from .sum import Sum as Sum
from .tdpo1 import TDPO1 as TDPO1
from .tdpo2 import TDPO2 as TDPO2
from .tis_dpo import TISDPO as TISDPO
from .weighted import Weighted as Weighted
from .wpo import WPO as WPO
