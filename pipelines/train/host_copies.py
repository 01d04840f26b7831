"""Copies on the host of what a device holds, in memory that is reserved once."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future

import torch
from torch import Tensor


class HostCopies:
    """Keeps the pinned memory that a GPU's tensors are copied to, for the next copy of each.

    Args:
        thread: where memory is reserved ahead.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._pinned: dict[str, Tensor] = {}
        self._ahead: Future[None] | None = None

    def reserve_ahead(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Begin to reserve what copies of these will take; those of a CPU take none."""
        wanted = {name: tensor for name, tensor in tensors if tensor.is_cuda}
        if wanted:
            self._ahead = self._thread.submit(self._reserve, wanted)

    def copied(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """They are there when this returns, and stay as they are until the next call."""
        if self._ahead is not None:
            self._ahead.result()
        found: dict[str, Tensor] = {}
        for name, tensor in tensors:
            if tensor.is_cuda:
                self._reserve({name: tensor})
                found[name] = self._pinned[name].copy_(tensor, non_blocking=True)
            else:
                found[name] = tensor.clone(memory_format=torch.contiguous_format)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return found

    def _reserve(self, wanted: Mapping[str, Tensor]) -> None:
        for name, tensor in wanted.items():
            kept = self._pinned.get(name)
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                with torch.cuda.device(tensor.device):
                    self._pinned[name] = torch.empty(
                        tensor.shape, dtype=tensor.dtype, pin_memory=True
                    )
