"""Preference objectives: a flat token record in, one loss per pair out."""

from sparsepo.objectives.base import Objective
from sparsepo.objectives.dpo import DPO
from sparsepo.objectives.mapo import MaPO
from sparsepo.objectives.sft import SFT
from sparsepo.objectives.sparsepo import SparsePO
from sparsepo.objectives.tdpo1 import TDPO1

OBJECTIVES: dict[str, type[Objective]] = {"dpo": DPO, "tdpo1": TDPO1, "mapo": MaPO, "sparsepo": SparsePO, "sft": SFT}

__all__ = ["DPO", "OBJECTIVES", "SFT", "TDPO1", "MaPO", "Objective", "SparsePO"]
