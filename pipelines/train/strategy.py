"""How a policy is spread over ranks and how their gradients are summed.

It is replicated (ddp) or sharded (fsdp). Both sum in a fixed order, so that a run has the same bits
every time with the same number of workers. Every rank calls the same methods in the same order; a
rank without a micro-batch contributes zero.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.models import Placement
from sparsepo.backbone import backbone_of, decoder_layers, transformer_of
from sparsepo.model import PolicyModel
from sparsepo.records import TokenScores

_BUCKET_ELEMENTS = 2**24
# What peft calls the parts of an adapter, and trained embeddings.
_ADAPTERS = (".lora_", ".trainable_tokens_delta.")


class Strategy(ABC):
    """One rank's part of the policy.

    Attributes:
        aligns_micro_batches: every rank must run the same number of forwards, because they exchange
            parameters.
    """

    aligns_micro_batches: bool

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    @abstractmethod
    def spread(self, policy: PolicyModel) -> None:
        """Place the policy; its parameters may be other objects afterwards.

        Call before the optimizer is built.
        """

    @abstractmethod
    def spread_frozen(self, causal_lm: Any) -> None:
        """Place a frozen model beside the policy."""

    @abstractmethod
    def expect_last_backward(self) -> None:
        """The next backward is the step's last on this rank."""

    @abstractmethod
    def finish_gradients(self) -> None:
        """Complete the sum over ranks; a parameter without gradient counts as zero."""

    @abstractmethod
    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients down to a joint norm of max_norm; returns the norm before."""

    @abstractmethod
    def reshard(self) -> None:
        """After a forward without a backward: let go of what was gathered for it."""

    @abstractmethod
    def local_rows(self, parameter: Tensor) -> tuple[int, int] | None:
        """The rows [start, stop) of a parameter that this rank holds.

        None if it holds all, as every other rank does.
        """

    @abstractmethod
    def full_tensor(self, parameter: Tensor) -> Tensor:
        """The whole parameter; every rank must call it, in the same order."""


def strategy_of(placement: Placement) -> Strategy:
    return Sharded(placement) if placement.strategy == "fsdp" else Replicated(placement)


class Replicated(Strategy):
    """Every rank holds everything.

    Gradients are summed in buckets while the last backward still runs.
    """

    aligns_micro_batches = False

    def spread(self, policy: PolicyModel) -> None:
        self._parameters = [p for p in policy.parameters() if p.requires_grad]
        self._sum = _BucketSum(self._parameters, self.placement.world)

    def spread_frozen(self, causal_lm: Any) -> None:
        pass

    def expect_last_backward(self) -> None:
        self._sum.arm()

    def finish_gradients(self) -> None:
        self._sum.finish()

    def clip(self, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self._parameters, max_norm)

    def reshard(self) -> None:
        pass

    def local_rows(self, parameter: Tensor) -> tuple[int, int] | None:
        return None

    def full_tensor(self, parameter: Tensor) -> Tensor:
        return parameter.detach()


class Sharded(Strategy):
    """FSDP2: every decoder layer is gathered when it runs.

    Masks and adapters are small and stay whole on every rank. Modules that are trained whole beside
    adapters, and biases, are sharded like the others.
    """

    aligns_micro_batches = True

    def spread(self, policy: PolicyModel) -> None:
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

        # FSDP2 finds the outputs to hook by their tensors: it has to see inside the record.
        if TokenScores not in torch.utils._pytree.SUPPORTED_NODES:
            torch.utils._pytree.register_dataclass(TokenScores)
        replicated = set(policy.masks.parameters())
        replicated |= {
            p
            for name, p in policy.causal_lm.named_parameters()
            if p.requires_grad and any(part in name for part in _ADAPTERS)
        }
        placement = self.placement
        mixed = (
            MixedPrecisionPolicy(param_dtype=placement.compute, reduce_dtype=placement.weights)
            if placement.weights != placement.compute
            else None
        )
        self._shard(
            [*decoder_layers(transformer_of(policy.causal_lm)), policy],
            mixed or MixedPrecisionPolicy(),
            replicated,
        )
        self._modules = [module for module in policy.modules() if isinstance(module, FSDPModule)]
        for module in self._modules:
            module.set_gradient_divide_factor(
                1.0
            )  # a sum: the loss is divided by the global count already
            module.set_force_sum_reduction_for_comms(True)
        self._replicated = [p for p in replicated if p.requires_grad]
        order = {id(p): i for i, p in enumerate(policy.parameters())}
        self._replicated.sort(key=lambda p: order[id(p)])
        kept = {id(p) for p in self._replicated}
        self._split = [p for p in policy.parameters() if p.requires_grad and id(p) not in kept]
        self._sum = _BucketSum(self._replicated, self.placement.world)

    def spread_frozen(self, causal_lm: Any) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        transformer = transformer_of(causal_lm)
        self._shard(
            [*decoder_layers(transformer), backbone_of(transformer)], MixedPrecisionPolicy(), set()
        )

    def _shard(
        self, modules: Sequence[nn.Module], policy: Any, replicated: set[nn.Parameter]
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.placement.device.type, (self.placement.world,))
        for module in modules:
            fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=replicated)

    def expect_last_backward(self) -> None:
        """Does nothing.

        Sums of whole gradients among FSDP2's own collectives would come in another order on every
        rank.
        """

    def finish_gradients(self) -> None:
        _fill_missing(self._split)
        self._sum.finish()

    def clip(self, max_norm: float) -> Tensor:
        squares = torch.zeros((), dtype=torch.float64, device=self.placement.device)
        for parameters in (self._split, self._replicated):
            if parameters:
                norm: Any = nn.utils.get_total_norm(
                    [p.grad for p in parameters if p.grad is not None]
                )
                squares += (
                    (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).double().square()
                )
        norm = squares.sqrt().float()
        for parameters in (self._split, self._replicated):
            if parameters:
                nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def reshard(self) -> None:
        for module in self._modules:
            module.reshard()

    def local_rows(self, parameter: Tensor) -> tuple[int, int] | None:
        if not hasattr(parameter, "full_tensor"):
            return None
        size = math.ceil(parameter.shape[0] / self.placement.world)
        start = min(self.placement.rank * size, parameter.shape[0])
        return start, min(start + size, parameter.shape[0])

    def full_tensor(self, parameter: Tensor) -> Tensor:
        found: Any = parameter.detach()
        return found.full_tensor() if hasattr(found, "full_tensor") else found


def _fill_missing(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


class _BucketSum:
    """Sums gradients over ranks bucket by bucket, in one order on every rank.

    The order is from the last parameter to the first, which is about the order in which a backward
    completes them. A bucket starts once it and all before it are complete. One rank alone has
    nothing to sum.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: int) -> None:
        self._parameters, self._is_alone = parameters, world == 1
        self._buckets = list(_buckets(list(reversed(parameters))))
        self._bucket_of = {id(p): i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._is_armed = False
        self._reset()
        for parameter in parameters if world > 1 else ():
            parameter.register_post_accumulate_grad_hook(self._completed)

    def _reset(self) -> None:
        self._missing = [len(bucket) for bucket in self._buckets]
        self._started: list[tuple[list[nn.Parameter], Tensor, Any]] = []

    def arm(self) -> None:
        self._is_armed = True

    def _completed(self, parameter: nn.Parameter) -> None:
        if not self._is_armed:
            return
        self._missing[self._bucket_of[id(parameter)]] -= 1
        while len(self._started) < len(self._buckets) and self._missing[len(self._started)] == 0:
            self._start()

    def _start(self) -> None:
        bucket = self._buckets[len(self._started)]
        _fill_missing(bucket)
        flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
        for parameter in bucket:
            parameter.grad = None  # it lives in the bucket now
        self._started.append((bucket, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Start what is left, and make the sums the gradients."""
        if self._is_alone:
            _fill_missing(self._parameters)
            return
        while len(self._started) < len(self._buckets):
            self._start()
        for bucket, flat, work in self._started:
            work.wait()
            for parameter, summed in zip(
                bucket, flat.split([p.numel() for p in bucket]), strict=True
            ):
                parameter.grad = summed.view_as(parameter)
        self._is_armed = False
        self._reset()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (
            size + parameter.numel() > _BUCKET_ELEMENTS or parameter.dtype != bucket[0].dtype
        ):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
