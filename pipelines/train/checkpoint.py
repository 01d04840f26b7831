"""Training checkpoints: one safetensors file per rank and a state.json.

They are written while training goes on.

checkpoints/step-NNNNNNNN/shard-<attempt>-<rank>-of-<world>.safetensors holds rows of parameters and
of their optimizer state; its metadata says which. Any number of ranks can read what any other
number wrote. A folder counts only with its state.json, which rank 0 writes last, once every file it
names is there; a partial one is never resumed from. Ranks do not talk to each other while they
write: a rank that dies leaves nobody waiting.

The last checkpoint of a run holds no optimizer state: no step follows it.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.errors import DamagedCheckpoint, Failure, StageFailed, Superseded
from pipelines.recipe import ATTEMPT, CHECKPOINTS, STATE
from pipelines.storage import RunStore, hashes_of_written, read_record, write_record
from pipelines.train.checkpoint_contents import (
    GOES_ON,
    SEAL,
    STARTS,
    read_state,
    stored_parameters,
    write_state,
)
from pipelines.train.host_copies import HostCopies
from pipelines.train.steps import completed_steps, step_folder
from pipelines.train.strategy import Strategy

_NOTE = ".json"  # beside a rank's file: its size and checksum, until state.json has them
_NOTED = {"bytes": int, SEAL: str}
_POLL_SECONDS, _PATIENCE_SECONDS = 0.05, 3600.0


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest, and the best by a value in their state.

    A lower value is better. `newest` and `best` are how many of each.
    """

    newest: int
    best: int = 0

    def kept(self, values: dict[int, float | None]) -> set[int]:
        """Steps to keep of step -> value (None: was not validated)."""
        steps = sorted(values)
        ranked = sorted((value, step) for step, value in values.items() if value is not None)
        return set(steps[-self.newest :]) | {step for _, step in ranked[: self.best]}


class Checkpointer:
    """One rank's writer.

    `save` returns as soon as the state is copied; errors of the writing thread come with `failure`.

    Args:
        attempt: names this worker group, which has claimed the run; the same on every rank.
        base: fingerprint of the weights that do not train; None if all do.
    """

    def __init__(
        self,
        store: RunStore,
        attempt: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        strategy: Strategy,
        retention: Retention,
        base: str | None = None,
    ) -> None:
        self._store, self._attempt, self._strategy, self._retention = (
            store,
            attempt,
            strategy,
            retention,
        )
        self._optimizer, self._base = optimizer, base
        self._parameters = stored_parameters(model)
        self._owners = _owners(self._parameters, strategy)
        self._last: tuple[int, dict[str, Tensor]] = 0, {}  # step and copies of a run's last save
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copies = HostCopies(self._pool)
        self._pending: Future[None] | None = None
        self._stopping = threading.Event()

    def make_room(self, is_last: bool = False) -> None:
        """Begin to reserve the host's memory that the next save copies a GPU's tensors to.

        Pinning takes longer than copying, and holds up who gives the GPU work: so it is done while
        layers are compiled.

        Args:
            is_last: the next save is the run's last.
        """
        coming = self._tensors(is_last, is_ahead=True)
        self._copies.reserve_ahead((name, tensor) for name, tensor, _ in coming)

    def save(self, step: int, state: dict[str, Any], is_last: bool = False) -> None:
        """Start writing the state after `step` optimizer steps.

        It waits for the save before, and writes nothing if that failed.

        Args:
            is_last: no step will follow this one, so that the optimizer's state is left out.
        """
        if self.failure(wait=True):
            return
        placement = self._strategy.placement
        state = {"step": step, "world": placement.world, "base": self._base, **state}
        copied = self._copied(is_last)
        if is_last:
            self._last = step, copied[0]
        state[GOES_ON] = not is_last
        self._pending = self._pool.submit(self._write, step, copied, state)

    def copies(self, step: int) -> dict[str, Tensor]:
        """Parameters that this rank holds and wrote in whole, as the run's last save copied them.

        Nobody changes them any more. Empty if that was not of this step.
        """
        saved, copied = self._last
        return {
            name: copied[f"weights/{name}"]
            for name, parameter in self._parameters.items()
            if saved == step
            and f"weights/{name}" in copied
            and self._strategy.local_rows(parameter) is None
        }

    def failure(self, wait: bool = False) -> Failure | None:
        """Why the last save failed on this rank.

        None if it did not, or (without wait) is not finished.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return None
        error = self._pending.exception()
        return None if error is None else Failure.of(error)

    def is_current(self) -> bool:
        """False once another worker group has started on this run.

        This one's driver is gone then, or was started twice.
        """
        return bool(read_record(self._store, ATTEMPT, {"attempt": str})["attempt"] == self._attempt)

    def close(self) -> None:
        """Stop waiting for other ranks' files: the group ends."""
        self._stopping.set()

    def _tensors(self, is_last: bool, is_ahead: bool = False) -> Iterator[tuple[str, Tensor, int]]:
        """(name, rows that this rank writes, the first of them) of weights and optimizer state.

        Args:
            is_ahead: of a state that the first step will make, something of its shape and type.
        """
        rank = self._strategy.placement.rank
        for name, parameter in self._parameters.items():
            span = self._strategy.local_rows(parameter)
            if span is None and self._owners[name] != rank:
                continue
            start = 0 if span is None else span[0]
            moments = {} if is_last else self._optimizer.state.get(parameter, {})
            if is_ahead and not is_last and not moments and parameter.requires_grad:
                moments = _moments_like(parameter)
            kinds = {"weights": parameter.detach(), **moments}
            for kind, value in kinds.items():
                local: Any = torch.as_tensor(value)
                local = local.to_local() if hasattr(local, "to_local") else local
                if local.shape == () and span is not None and rank > 0:
                    continue  # a step counter is the same everywhere
                yield f"{kind}/{name}", local, start if local.ndim else 0

    def _copied(self, is_last: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Copies of what this rank writes, and a file's metadata."""
        tensors = list(self._tensors(is_last))
        copies = self._copies.copied((name, tensor) for name, tensor, _ in tensors)
        return copies, {STARTS: json.dumps({name: start for name, _, start in tensors})}

    def _write(
        self, step: int, copied: tuple[dict[str, Tensor], dict[str, str]], state: dict[str, Any]
    ) -> None:
        placement = self._strategy.placement
        folder = step_folder(step)
        tensors, metadata = copied
        own = f"{folder}/{self._file(placement.rank)}"
        staged = self._store.staging_directory()
        try:
            with self._store.told_where(own, staged):
                save_file(tensors, staged / "shard", metadata)
                (sha256,) = hashes_of_written([staged / "shard"], self._store.is_local)
            written = {"bytes": (staged / "shard").stat().st_size, SEAL: sha256}
            self._store.publish_file(staged / "shard", own)
        finally:
            for left in staged.iterdir():
                left.unlink()
            staged.rmdir()
        if placement.rank > 0:
            write_record(self._store, own + _NOTE, written)
            return
        others = [self._file(rank) for rank in range(1, placement.world)]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(self._store.exists(f"{folder}/{file}{_NOTE}") for file in others):
            if self._stopping.is_set() or time.monotonic() > deadline:
                raise StageFailed(
                    f"checkpoint of step {step}: another worker did not write its part"
                )
            time.sleep(_POLL_SECONDS)
        if not self.is_current():
            raise Superseded
        files = {
            self._file(0): written,
            **{
                file: read_record(self._store, f"{folder}/{file}{_NOTE}", _NOTED) for file in others
            },
        }
        write_state(self._store, step, {**state, "files": files})
        self._tidy(step, folder, set(files))

    def _file(self, rank: int) -> str:
        return (
            f"shard-{self._attempt}-{rank:05d}-of-{self._strategy.placement.world:05d}.safetensors"
        )

    def _tidy(self, step: int, folder: str, files: set[str]) -> None:
        """Drop what this save replaces.

        These are other attempts' files of the step, partial folders before it, and checkpoints not
        worth keeping.
        """
        for name in self._store.names(folder):
            if name not in files | {STATE}:
                self._store.delete(f"{folder}/{name}")
        values = {
            other: _selection_value(self._store, other) for other in completed_steps(self._store)
        }
        kept = self._retention.kept(values) | {step}
        for name in self._store.names(CHECKPOINTS):
            other = int(name.removeprefix("step-"))
            if other not in kept and (other in values or other < step):
                self._store.delete(f"{CHECKPOINTS}/{name}")


def _selection_value(store: RunStore, step: int) -> float | None:
    try:
        value: float | None = read_state(store, step).get("selection_value")
    except DamagedCheckpoint:
        return None
    return value


def _moments_like(parameter: Tensor) -> dict[str, Tensor]:
    """Of the shapes and types that AdamW's state of a parameter has."""
    like = parameter.detach()
    step = torch.zeros((), dtype=torch.float32, device=like.device)
    return {"step": step, "exp_avg": like, "exp_avg_sq": like}


def _owners(parameters: Mapping[str, Tensor], strategy: Strategy) -> dict[str, int]:
    """Which rank writes a parameter that all hold.

    They are dealt by size, so that files are about equally large.
    """
    loads = [0] * strategy.placement.world
    owners = {}
    for name, parameter in sorted(parameters.items(), key=lambda item: (-item[1].numel(), item[0])):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += parameter.numel()
    return owners
