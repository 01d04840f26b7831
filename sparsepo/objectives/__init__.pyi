from .base import (
    CoupledBatch as CoupledBatch,
    CoupledObjective as CoupledObjective,
    LogisticObjective as LogisticObjective,
    Objective as Objective,
    PairLosses as PairLosses,
    PreferenceObjective as PreferenceObjective,
)
from .declarations import (
    OBJECTIVES as OBJECTIVES,
    ObjectiveDeclaration as ObjectiveDeclaration,
)
from .dpo import DPO as DPO
from .dpop import DPOP as DPOP
from .ipo import IPO as IPO
from .mapo import MaPO as MaPO
from .odpo import ODPO as ODPO
from .rpo import RPO as RPO
from .sft import SFT as SFT
from .simpo import SimPO as SimPO
from .sparsepo import SparsePO as SparsePO
from .tdpo1 import TDPO1 as TDPO1
from .tdpo2 import TDPO2 as TDPO2
from .tis_dpo import TISDPO as TISDPO
from .weighted import Weighted as Weighted
