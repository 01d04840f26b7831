"""Device, precision and gradient reduction of training: decided here and nowhere else."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_ELEMENTS = 2**24


@dataclass(frozen=True)
class Placement:
    """Where and in which numbers one rank trains.

    Attributes:
        device: the rank's device. weights: dtype of parameters and optimizer state. autocast: compute dtype, None = weights'.
        rank, world: of the worker group.
    """

    device: torch.device
    weights: torch.dtype
    autocast: torch.dtype | None
    rank: int
    world: int

    @classmethod
    def choose(cls, precision: str, device: torch.device, rank: int, world: int) -> "Placement":
        """`auto` is float32 on CPU and mixed (float32 master weights, bfloat16 compute) on a GPU."""
        if precision == "auto":
            precision = "mixed" if device.type == "cuda" else "float32"
        weights = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return cls(device, weights, torch.bfloat16 if precision == "mixed" else None, rank, world)

    @contextlib.contextmanager
    def compute(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            yield

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over ranks, in buckets of fixed order, so that the sum has the same bits in every run.

        Every rank must call it; a parameter without gradient counts as zero.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world == 1:
            return
        for bucket in _buckets(parameters):
            flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
            dist.all_reduce(flat)
            for parameter, summed in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(summed.view_as(parameter))

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order; every rank must call it."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.numel() > _BUCKET_ELEMENTS or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def as_floats(metrics: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    return {key: (float(total), float(count)) for key, (total, count) in metrics.items()}
