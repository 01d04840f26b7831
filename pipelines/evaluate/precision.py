"""In which numbers an evaluation computes: those of training, for all models alike."""

from dataclasses import replace

import torch

from pipelines.models import Placement
from pipelines.reference import FrozenReference
from pipelines.train import TrainingFacts


def compute_dtype(training: TrainingFacts, device: torch.device) -> torch.dtype:
    """What `train.precision` means for matrix products on this device."""
    return Placement.choose(training.train.precision, device, rank=0, world=1).compute


def in_dtype(model: FrozenReference, dtype: torch.dtype) -> FrozenReference:
    """The reference, loaded in the policy's numbers.

    In others, weights that are the same would lie apart: bfloat16 beside float32 by 0.1 nats.
    """
    return replace(model, dtype=str(dtype).removeprefix("torch."))
