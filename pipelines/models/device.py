"""Device, precision and the exchange between ranks in training: decided here and nowhere else."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.utils.deterministic
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
        dist.all_gather_object(gathered, value, _host_group())
        return gathered

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


_host_groups: dict[Any, Any] = {}  # by the group of all ranks; there is one at a time


def _host_group() -> Any:
    """All ranks, joined without their devices.

    NCCL carries bytes through the device: it would wait for all work that this has been given.
    """
    everybody = dist.group.WORLD
    if dist.get_backend() != "nccl":
        return everybody
    if everybody not in _host_groups:
        _host_groups.clear()
        _host_groups[everybody] = dist.new_group(backend="gloo")
    return _host_groups[everybody]


class LateNumbers:
    """Numbers on their way from a device, which goes on with its work meanwhile.

    Args:
        values: scalar tensors, all on one device; they travel as one copy in float64.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = torch.stack([value.double() for value in values]) if values else None
        if self._host is not None and self._host.is_cuda:
            pinned = torch.empty(len(values), dtype=torch.float64, pin_memory=True)
            self._host = pinned.copy_(self._host, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """Waits for what the device was given before these numbers."""
        if self._event is not None:
            self._event.synchronize()
        return [] if self._host is None else self._host.tolist()


@contextlib.contextmanager
def sums_in_one_order(device: torch.device) -> Iterator[None]:
    """This process gets the same bits every time from a GPU, wherever torch can.

    A GPU's threads add in the order in which they come; torch has slower ways without that, and
    warns of what has none. torch's compiler takes the blocks of its reductions by rule, not by
    measuring. CPUs are left as they are. Gradients of attention: see `refuse_other_orders`.
    """
    if device.type != "cuda":
        yield
        return
    # torch asks for it; an H100 has that much anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    was_on = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # else torch writes all new memory once more
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=only_warned)
        memory.fill_uninitialized_memory = fills


def refuse_other_orders(
    device: torch.device, passes: Iterable[Callable[[], None]]
) -> Sequence[str]:
    """Within `sums_in_one_order`: gradients of scaled_dot_product_attention have one order too.

    Torch sums them so where it refuses what has no order; where it only warns of that, it takes a
    different form. So it refuses, unless a model needs such an operation.

    Args:
        passes: each takes few tokens through a model and back.
    Returns: a warning, if one does.
    """
    if device.type != "cuda":
        return ()
    torch.use_deterministic_algorithms(True)
    try:
        for there_and_back in passes:
            there_and_back()
    except RuntimeError as error:
        operation, without_order, _ = str(error).partition(" does not have a deterministic")
        if not without_order:
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        return (
            f"the model needs {operation}, for which torch has no order on GPUs: a killed run "
            "that goes on may have other last bits than one that was not killed",
        )
    return ()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text
    )
