"""Processes that train together as Ray Train's workers do, one training after another.

A process that imports torch and the models' code takes seconds of CPU to begin; these begin once.
Each training has a process group of its own, so that one that fails leaves nothing to the next.
"""

import gc
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from pipelines.errors import Failure
from pipelines.models import quick_imports
from pipelines.recipe.run_paths import failure_files
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.records import read_record
from pipelines.storage.store import RunStore
from pipelines.train.facts import TrainingFacts
from pipelines.train.stage import training_facts

# A rank that works gets this much CPU in that time on any machine; one that waits for another rank
# gets next to none.
_LEAST_CPU_SECONDS, _IN_SECONDS = 0.5, 60.0


@dataclass(frozen=True)
class Ended:
    """How work ended on one rank: failure None if it got to its end, with its result."""

    failure: Failure | None = None
    trace: str = ""
    result: Any = None


class Ranks:
    """`world` processes on this machine, joined by gloo. They start with the first training, and
    again with the next one after a rank died or had to be killed.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._trainings = 0
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def train(self, recipe: Recipe) -> None:
        """Train on one thread per rank.

        Raises: what the stage would raise: the failure that a rank left for the driver.
        """
        ends = self.ends(recipe)
        store = Run(recipe).paths.train
        for name in failure_files(store):
            raise Failure(**read_record(store, name)).error()
        traces = [f"rank {rank}: {end.trace}" for rank, end in enumerate(ends) if end.failure]
        assert not traces, "\n".join(traces)

    def ends(self, recipe: Recipe) -> list[Ended]:
        """Train, and say of every rank how it ended.

        Raises: AssertionError if a rank died, or got no further although it had not ended; the
            processes are killed then.
        """
        facts = training_facts(Run(recipe))
        store = RunStore(facts.root)
        for name in failure_files(store):
            store.delete(name)
        return self._all(_train, facts)

    def call(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `work(rank, world, *arguments)` returns on every rank, in a process group.

        Raises: AssertionError with the traces of ranks where it raised.
        """
        ends = self._all(work, *arguments)
        traces = [f"rank {rank}: {end.trace}" for rank, end in enumerate(ends) if end.failure]
        assert not traces, "\n".join(traces)
        return [end.result for end in ends]

    def _all(self, work: Callable[..., Any], *arguments: Any) -> list[Ended]:
        if not self._processes:
            self._start()
        self._trainings += 1
        meeting = self._folder / f"{os.getpid()}-{self._trainings}"
        try:
            for connection in self._connections:
                connection.send((work, arguments, f"file://{meeting}"))
            return self._collect()
        except BaseException:
            self._kill()
            raise

    def _start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        for rank in range(self.world):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(target=_serve, args=(theirs, rank, self.world), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _collect(self) -> list[Ended]:
        ends: dict[int, Ended] = {}
        spent, since = 0.0, time.monotonic()
        while len(ends) < self.world:
            missing = [rank for rank in range(self.world) if rank not in ends]
            ready = wait([self._connections[rank] for rank in missing], timeout=1.0)
            for rank in missing:
                if self._connections[rank] in ready:
                    try:
                        ends[rank] = self._connections[rank].recv()
                    except (EOFError, ConnectionError) as error:
                        self._processes[rank].join()
                        code = self._processes[rank].exitcode
                        raise AssertionError(f"rank {rank} died ({code}); {ends}") from error
            now = sum(_cpu_seconds(process.pid) for process in self._processes)
            if ready or now > spent + _LEAST_CPU_SECONDS:
                spent, since = now, time.monotonic()
            elif time.monotonic() > since + _IN_SECONDS:
                raise AssertionError(f"ranks {missing} wait; {ends}")
        return [ends[rank] for rank in range(self.world)]

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def close(self) -> None:
        self._kill()
        shutil.rmtree(self._folder)


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:  # the connection says so next
        return 0.0
    return times.user + times.system


def _serve(connection: Connection, rank: int, world: int) -> None:
    """A rank's life: trainings until the other side closes the connection."""
    os.environ["GLOO_SOCKET_IFNAME"] = next(
        name for _, name in socket.if_nameindex() if name.startswith("lo")
    )
    while True:
        try:
            work, arguments, meeting = connection.recv()
        except EOFError:
            return
        connection.send(_joined(work, arguments, meeting, rank, world))


def _joined(work: Callable[..., Any], arguments: Any, meeting: str, rank: int, world: int) -> Ended:
    """The work in a process group of its own."""
    with quick_imports():
        import torch.distributed as dist

    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    try:
        return Ended(result=work(rank, world, *arguments))
    except Exception as error:
        return Ended(Failure.of(error), traceback.format_exc())
    finally:
        dist.destroy_process_group()
        gc.collect()  # parameters of FSDP hold each other, and the group


def _train(rank: int, world: int, facts: TrainingFacts) -> None:
    with quick_imports():
        import torch

        from pipelines.models.device import Placement
        from pipelines.train.worker import train_rank

    placement = Placement.choose(
        facts.train.precision, torch.device("cpu"), rank, world, facts.train.strategy
    )
    train_rank(facts, placement, 1, lambda metrics: None)
