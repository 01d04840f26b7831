"""Device, precision and the exchange between ranks in training: decided here and nowhere else."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Where and in which numbers one rank trains.

    Attributes:
        device: the rank's device. weights: dtype of trained parameters and optimizer state.
            compute: dtype of matrix products.
        rank, world: of the worker group. strategy: ddp = replicated, fsdp = sharded.
    """

    device: torch.device
    weights: torch.dtype
    compute: torch.dtype
    rank: int
    world: int
    strategy: Literal["ddp", "fsdp"] = "ddp"

    @classmethod
    def choose(
        cls,
        precision: str,
        device: torch.device,
        rank: int,
        world: int,
        strategy: Literal["ddp", "fsdp"] = "ddp",
    ) -> "Placement":
        """`auto` is float32 on CPU, mixed (float32 master weights, bfloat16 compute) on a GPU."""
        if precision == "auto":
            precision = "mixed" if device.type == "cuda" else "float32"
        weights = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return cls(
            device,
            weights,
            torch.float32 if precision == "float32" else torch.bfloat16,
            rank,
            world,
            strategy,
        )

    @property
    def uses_autocast(self) -> bool:
        """FSDP2 casts the gathered parameters instead."""
        return self.weights != self.compute and self.strategy == "ddp"

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.uses_autocast):
            yield

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


def as_floats(metrics: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """(sum, count) tensors as numbers, with one synchronisation for all of them."""
    if not metrics:
        return {}
    flat = torch.stack([value.double() for pair in metrics.values() for value in pair]).tolist()
    return {key: (flat[2 * i], flat[2 * i + 1]) for i, key in enumerate(metrics)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text
    )
