"""Preference objectives: a flat token record in, one loss per pair out."""

from sparsepo.objectives.base import (
    CoupledBatch,
    CoupledObjective,
    LogisticObjective,
    Objective,
    PairLosses,
    PreferenceObjective,
)
from sparsepo.objectives.dpo import DPO
from sparsepo.objectives.dpop import DPOP
from sparsepo.objectives.ipo import IPO
from sparsepo.objectives.mapo import MaPO
from sparsepo.objectives.odpo import ODPO
from sparsepo.objectives.rpo import RPO
from sparsepo.objectives.sft import SFT
from sparsepo.objectives.simpo import SimPO
from sparsepo.objectives.sparsepo import SparsePO
from sparsepo.objectives.tdpo1 import TDPO1
from sparsepo.objectives.tdpo2 import TDPO2
from sparsepo.objectives.tis_dpo import TISDPO

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "ipo": IPO,
    "simpo": SimPO,
    "dpop": DPOP,
    "odpo": ODPO,
    "tdpo1": TDPO1,
    "tdpo2": TDPO2,
    "mapo": MaPO,
    "sparsepo": SparsePO,
    "tis_dpo": TISDPO,
    "rpo": RPO,
    "sft": SFT,
}

__all__ = [
    "DPO",
    "DPOP",
    "IPO",
    "OBJECTIVES",
    "ODPO",
    "RPO",
    "SFT",
    "TDPO1",
    "TDPO2",
    "TISDPO",
    "CoupledBatch",
    "CoupledObjective",
    "LogisticObjective",
    "MaPO",
    "Objective",
    "PairLosses",
    "PreferenceObjective",
    "SimPO",
    "SparsePO",
]
