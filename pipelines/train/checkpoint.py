"""Training checkpoints: one safetensors file per rank and a state.json.

They are written while training goes on.

checkpoints/step-NNNNNNNN/shard-<attempt>-<rank>-of-<world>.safetensors holds rows of parameters and
of their optimizer state; its metadata says which. Any number of ranks can read what any other
number wrote. A folder counts only with its state.json, which rank 0 writes last, once every file it
names is there; a partial one is never resumed from. Ranks do not talk to each other while they
write: a rank that dies leaves nobody waiting.

The last checkpoint of a run holds no optimizer state: no step follows it.

state.json holds the sha256 of every file and of itself: a flipped bit is found before anything is
read. What is not trained, the base under adapters, is not stored: state.json names its fingerprint.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.errors import (
    DamagedCheckpoint,
    DamagedFile,
    Failure,
    StageFailed,
    Superseded,
    UserError,
)
from pipelines.models import Placement
from pipelines.recipe import ATTEMPT, CHECKPOINTS, STATE
from pipelines.storage import (
    RunStore,
    digest,
    hashes_of_written,
    parse_json,
    read_record,
    read_whole,
    write_record,
)
from pipelines.train.steps import completed_steps, step_folder
from pipelines.train.strategy import Strategy

_STARTS = "starts"
_GOES_ON = "goes_on"  # whether a file holds the optimizer's state too
_SEAL = "sha256"  # of state.json's own contents, and of a file in it
_NOTE = ".json"  # beside a rank's file: its size and checksum, until state.json has them
_NOTED = {"bytes": int, _SEAL: str}
_BASE = "causal_lm."  # where parameters that do not train are not stored
_POLL_SECONDS, _PATIENCE_SECONDS = 0.05, 3600.0


def read_state(store: RunStore, step: int) -> dict[str, Any]:
    """The state of a checkpoint. Raises: DamagedCheckpoint if it is not what was written."""
    path = f"{step_folder(step)}/{STATE}"
    try:
        state: dict[str, Any] = parse_json(read_whole(store, path))
        seal = state.pop(_SEAL, None)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{store.root}/{path} is missing") from error
    except (ValueError, AttributeError, TypeError, DamagedFile) as error:
        raise DamagedCheckpoint(
            f"{store.root}/{path} is damaged: it is not what was written"
        ) from error
    if seal is None:
        raise DamagedCheckpoint(
            f"{store.root}/{path} has no checksum: it is damaged, or an older version wrote it"
        )
    if seal != digest(state):
        raise DamagedCheckpoint(f"{store.root}/{path} is damaged: its checksum does not fit")
    return state


def write_state(store: RunStore, step: int, state: dict[str, Any]) -> None:
    """Publish the state of a checkpoint, which is complete from here on."""
    state = json.loads(json.dumps(state))  # as it will be read
    store.write_json(f"{step_folder(step)}/{STATE}", {**state, _SEAL: digest(state)})


def goes_on(state: Mapping[str, Any]) -> bool:
    """Whether training can go on from a state: there is none yet, or not of a run's last save."""
    return bool(state.get(_GOES_ON, True))


def check_files(store: RunStore, step: int, placement: Placement) -> None:
    """Compare every file of a checkpoint with its checksum.

    The ranks share the files, and every rank must call it.

    Raises: DamagedCheckpoint on every rank, naming the first file that is missing or damaged.
    """
    try:
        found = _damage(store, step, placement)
        failure = Failure("checkpoint", found) if found else None
    except StageFailed as error:  # an object store that does not answer is no damage
        failure = Failure.of(error)
    for failed in placement.gather(failure):
        if failed is not None:
            raise failed.error()


def _damage(store: RunStore, step: int, placement: Placement) -> str:
    """What is wrong with this rank's share of the files, or an empty string."""
    try:
        files = read_state(store, step)["files"]
        for file in sorted(files)[placement.rank :: placement.world]:
            path, expected = f"{step_folder(step)}/{file}", files[file]
            if store.size(path) != expected["bytes"]:
                return (
                    f"{store.root}/{path} is missing or damaged: it has not the "
                    f"{expected['bytes']} bytes that were written"
                )
            if store.checksum(path) != expected[_SEAL]:
                return f"{store.root}/{path} is damaged: its checksum does not fit"
    except (UserError, OSError) as error:
        return str(error)
    return ""


def newest_intact(
    store: RunStore, steps: Sequence[int], placement: Placement
) -> tuple[int, list[str]]:
    """The last of the steps whose checkpoint is what was written, and a line for each later one.

    Step 0 means that there is none. A later one does not count as a checkpoint any more. Every rank
    must call it, with the same steps.

    Raises: DamagedCheckpoint if every checkpoint is damaged.
    """
    damage: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            check_files(store, step, placement)
        except DamagedCheckpoint as error:
            damage[step] = str(error)
            continue
        if placement.rank == 0:
            for other in damage:
                store.delete(f"{step_folder(other)}/{STATE}")
        return step, [
            f"{message}; training goes on from step {step} instead of step {other}"
            for other, message in damage.items()
        ]
    if damage:
        raise DamagedCheckpoint(
            f"{damage[max(damage)]}; no checkpoint is left: remove {store.root}/{CHECKPOINTS} to "
            "start from the beginning"
        )
    return 0, []


def claim(store: RunStore, attempt: str) -> list[int]:
    """Make a run this worker group's; returns the steps it can resume from.

    Rank 0 alone; the others are told.

    An older group that still lives commits nothing from here on, so that what all ranks resume from
    stays the newest.
    """
    write_record(store, ATTEMPT, {"attempt": attempt})
    return completed_steps(store)


def stored_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a checkpoint holds: all but the frozen base of a policy with adapters.

    A mask's controller is held although no gradient reaches it.
    """
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad or not name.startswith(_BASE)
    }


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
        self._host: dict[str, Tensor] = {}
        self._room: Future[None] | None = None
        self._last: tuple[int, dict[str, Tensor]] = 0, {}  # step and copies of a run's last save
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
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
        wanted = {name: tensor for name, tensor, _ in coming if tensor.is_cuda}
        if wanted:
            self._room = self._pool.submit(self._reserve, wanted)

    def _reserve(self, wanted: Mapping[str, Tensor]) -> None:
        for name, tensor in wanted.items():
            kept = self._host.get(name)
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                with torch.cuda.device(tensor.device):
                    self._host[name] = torch.empty(
                        tensor.shape, dtype=tensor.dtype, pin_memory=True
                    )

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
        state[_GOES_ON] = not is_last
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
        starts = {}
        found: dict[str, Tensor] = {}
        if self._room is not None:
            self._room.result()
        for name, tensor, start in self._tensors(is_last):
            if tensor.is_cuda:
                self._reserve({name: tensor})
                self._host[name].copy_(tensor, non_blocking=True)
                found[name] = self._host[name]
            else:
                found[name] = tensor.clone(memory_format=torch.contiguous_format)
            starts[name] = start
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return found, {_STARTS: json.dumps(starts)}

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
            written = {"bytes": (staged / "shard").stat().st_size, _SEAL: sha256}
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


def load_checkpoint(
    store: RunStore,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    strategy: Strategy,
    base: str | None = None,
) -> None:
    """Copy a checkpoint's weights into live objects, bit for bit.

    The optimizer state is copied too if an optimizer is given. The files are compared with their
    checksums before: by check_files, or where the step was chosen.

    Args:
        base: fingerprint of the model's weights that do not train.
    Raises: UserError if the state is damaged, or the checkpoint's adapters belong to another base.
    """
    state = read_state(store, step)
    if state["base"] != base:
        raise UserError(
            f"{store.root}/{step_folder(step)} holds adapters of a base with fingerprint "
            f"{state['base']}, the base here has {base}: restore model.name_or_path as it was, or "
            "choose another run_dir"
        )
    files = state["files"]
    for file, written in files.items():
        if store.size(f"{step_folder(step)}/{file}") != written["bytes"]:
            raise DamagedCheckpoint(
                f"{store.root}/{step_folder(step)}/{file} is missing or damaged"
            )
    with store.as_local_directory(step_folder(step)) as folder:
        opened = [safe_open(folder / file, framework="pt") for file in sorted(files)]
        pieces: dict[str, list[tuple[int, Any]]] = {}
        for source in opened:
            starts = json.loads(source.metadata()[_STARTS])
            for name in source.keys():  # noqa: SIM118 - not a dictionary
                pieces.setdefault(name, []).append((starts[name], source))
        parameters = stored_parameters(model)
        assert {name.split("/", 1)[1] for name in pieces} == parameters.keys(), (
            "another model's checkpoint: the stage record refuses it"
        )
        with torch.no_grad():
            for full, parts in sorted(pieces.items()):
                kind, name = full.split("/", 1)
                parameter: Any = parameters[name]
                if kind != "weights" and optimizer is None:
                    continue
                value = _read(full, parts, strategy.local_rows(parameter))
                if kind == "weights":
                    (parameter.to_local() if hasattr(parameter, "to_local") else parameter).copy_(
                        value
                    )
                else:
                    assert optimizer is not None
                    optimizer.state[parameter][kind] = _like(parameter, value, kind)


def _read(name: str, parts: Sequence[tuple[int, Any]], span: tuple[int, int] | None) -> Tensor:
    """The rows [start, stop) of a tensor (None: all).

    They are put together from the files that hold some of them.
    """
    first = parts[0][1].get_slice(name)
    if not first.get_shape():
        scalar: Tensor = parts[0][1].get_tensor(name)
        return scalar
    start, stop = span or (0, sys.maxsize)
    found = []
    for begin, source in sorted(parts, key=lambda part: part[0]):
        piece = source.get_slice(name)
        end = begin + piece.get_shape()[0]
        if begin < stop and end > start:
            found.append(piece[max(start, begin) - begin : min(stop, end) - begin])
    return torch.cat(found) if found else first[0:0]


def _like(parameter: Any, value: Tensor, kind: str) -> Tensor:
    """An optimizer tensor placed like its parameter.

    Step counters stay where the optimizer makes them.
    """
    if value.ndim == 0 and kind == "step":
        return value.to(parameter.device) if parameter.is_cuda else value
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import DTensor

        local = value.to(parameter.to_local().device)
        return DTensor.from_local(
            local,
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return value.to(parameter.device)


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
