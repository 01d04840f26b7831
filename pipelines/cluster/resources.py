"""What of a cluster's CPUs and GPUs a run may take: counted here and nowhere else.

Training, tuning, autoscaling and the actors of the other stages ask the same object.
"""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models import device_kind
from pipelines.recipe import RaySection, TrainSection

_ROUNDING = 1e-9  # of fractions of a GPU


@dataclass(frozen=True)
class Places:
    """`count` times what one worker takes, each on one machine."""

    bundle: Mapping[str, float]
    count: int

    def room(self, machines: Sequence[Mapping[str, float]]) -> int:
        """How many of them machines would hold, were they empty."""
        found = sum(_fitting(machine, self.bundle) for machine in machines)
        return min(found, self.count)

    def shown(self, count: int) -> str:
        return (
            f"{count} x {' and '.join(f'{value:g} {name}' for name, value in self.bundle.items())}"
        )


@dataclass(frozen=True)
class Actors:
    """`count` actors, and what each of them takes."""

    count: int
    cpus: int
    gpus: float


@dataclass(frozen=True)
class Share:
    """How many trials run at once, and what each may take of the cluster."""

    trials: int
    cpus_per_run: int | None
    gpus_per_run: float | None


@dataclass(frozen=True)
class Resources:
    """The machines of a cluster, and what a run may take of them.

    Attributes:
        machines: what each living machine has, CPU and GPU among it.
        cpus_per_run, gpus_per_run: what the run may take, where it is not alone.
    """

    machines: tuple[Mapping[str, float], ...]
    cpus_per_run: int | None = None
    gpus_per_run: float | None = None

    @classmethod
    def now(cls, config: RaySection | None = None) -> "Resources":
        """Of the running cluster; without a section for whoever takes it whole."""
        machines = tuple(node["Resources"] for node in living_nodes())
        if config is None:
            return cls(machines)
        return cls(machines, config.cpus_per_run, config.gpus_per_run)

    @classmethod
    def of_this_machine(cls, config: RaySection) -> "Resources":
        """Of the Ray that a command starts here for itself."""
        cpus = local_cpus() if config.num_cpus is None else config.num_cpus
        gpus = local_gpus() if config.num_gpus is None else config.num_gpus
        machine = {"CPU": float(cpus), "GPU": float(gpus)}
        return cls((machine,), config.cpus_per_run, config.gpus_per_run)

    def total(self, name: str) -> float:
        """What all machines have together, whoever takes it."""
        return sum(machine.get(name, 0.0) for machine in self.machines)

    def gpus(self) -> float:
        """GPUs of the run."""
        return min(self.total("GPU"), self.gpus_per_run or math.inf)

    def cpus(self) -> float:
        """CPUs of the run."""
        return self.cpus_per_run or self.total("CPU")

    def node_cpus(self) -> list[int]:
        """CPUs of every machine that has any."""
        return [cpus for machine in self.machines if (cpus := int(machine.get("CPU", 0)))]

    def uses_gpus(self, asked: bool | None) -> bool:
        """Whether work takes GPUs: as asked; by default where there are any."""
        return self.gpus() > 0 if asked is None else asked

    def actors(self, label: str, tasks: int, num_actors: int | None, gpus_per_actor: int) -> Actors:
        """The actors of a stage: one per GPU, or group of GPUs; or per machine with all its cores.

        Args:
            num_actors: if the recipe says how many. gpus_per_actor: 0 for work that needs none.
        Raises: UserError if there are not the GPUs of one actor.
        """
        gpus = self.gpus() if gpus_per_actor else 0
        if gpus_per_actor > max(1, gpus):
            raise UserError(
                f"{label}: {gpus_per_actor} GPUs for one model, but the cluster has {gpus:g} for "
                f"this run; set {label}.gpus_per_model={max(1, int(gpus))}"
            )
        nodes = self.node_cpus()
        groups = max(1, int(gpus // gpus_per_actor)) if gpus else len(nodes)
        count = min(tasks, num_actors or groups)
        cpus = 1 if gpus else even_cpus(nodes, count, self.cpus_per_run)
        return Actors(count, cpus, min(gpus_per_actor, gpus))

    def training(self, train: TrainSection) -> Places:
        """What the workers of a training take: as many as it cannot do without.

        Raises: UserError if the cluster has not got it.
        """
        fewest = fewest_workers(train)
        gpus = self.gpus()
        per_worker = min(1.0, gpus)  # a fraction is for one worker alone
        use_gpu = self.uses_gpus(train.use_gpu)
        if use_gpu and (gpus == 0 or gpus < fewest * per_worker):
            raise UserError(
                f"{_workers(train)} with a GPU each: the cluster has {gpus:g} GPUs for this run; "
                + _fewer(train, int(gpus / per_worker) if gpus else 0)
            )
        total_cpus = self.cpus() or 1
        cpus = train.cpus_per_worker or (
            1 if use_gpu else even_cpus(self.node_cpus(), train.num_workers, self.cpus_per_run)
        )
        if cpus * fewest > total_cpus:
            raise UserError(
                f"{_workers(train)} x {cpus:g} CPUs: the cluster has {total_cpus:g}; "
                + _fewer_cpus(train, int(total_cpus / cpus), int(total_cpus / fewest))
            )
        return Places({"CPU": cpus, "GPU": per_worker} if use_gpu else {"CPU": cpus}, fewest)

    def wanted(self, train: TrainSection, gpus_per_model: int) -> Places:
        """What to wait for on a cluster that grows: for training, or one copy of the reference.

        The larger of both. A cluster without any CPU does not show yet what its machines have, and
        is taken to get GPUs.
        """
        use_gpu = self.uses_gpus(train.use_gpu)
        if train.use_gpu is None and not self.total("CPU"):
            use_gpu = True
        workers = fewest_workers(train)
        return Places(
            self._least(train, use_gpu), max(workers, gpus_per_model) if use_gpu else workers
        )

    def share(self, train: TrainSection, most: int) -> Share:
        """As many trainings side by side as the cluster holds whole, up to `most`.

        One that had to wait for half of its workers would block another.

        Raises: UserError if not even one fits.
        """
        workers = fewest_workers(train)
        use_gpu = self.uses_gpus(train.use_gpu)
        bundle = self._least(train, use_gpu)
        trials = min(most, sum(_fitting(m, bundle) for m in self.machines) // workers)
        if trials == 0:
            needed = f"{workers} x {bundle['CPU']:g} CPUs" + (
                f" and {bundle['GPU']:g} GPUs" if use_gpu else ""
            )
            raise UserError(
                f"train.num_workers = {train.num_workers}: a trial takes {needed}; the cluster's "
                f"nodes have {self._shown()}; "
                + _fewer_in_trials(train, use_gpu, [_fitting(m, bundle) for m in self.machines])
            )
        if use_gpu:
            return Share(trials, None, bundle["GPU"] * workers)
        if train.cpus_per_worker:
            return Share(trials, int(train.cpus_per_worker * workers), None)
        return Share(trials, even_cpus(self.node_cpus(), trials * workers) * workers, None)

    def _least(self, train: TrainSection, use_gpu: bool) -> dict[str, float]:
        """What one worker cannot do without; on CPUs it takes more where there are more."""
        bundle = {"CPU": float(train.cpus_per_worker or 1)}
        if use_gpu:
            bundle["GPU"] = min(1.0, self.gpus_per_run or 1.0)
        return bundle

    def _shown(self) -> str:
        found = [(m.get("CPU", 0.0), m.get("GPU", 0.0)) for m in self.machines]
        return (
            "; ".join(
                f"{cpu:g} CPUs" + (f", {gpu:g} GPUs" if gpu else "")
                for cpu, gpu in found
                if cpu or gpu
            )
            or "none"
        )


def local_cpus() -> int:
    """CPUs that Ray counts here: of the machine, or what its control group may use of them."""
    cpus = os.cpu_count() or 1
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):
        return cpus
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        if (folder / "cpu/cpu.cfs_quota_us").is_file():
            quota = (folder / "cpu/cpu.cfs_quota_us").read_text()
            period = (folder / "cpu/cpu.cfs_period_us").read_text()
        else:
            quota, period = (folder / "cpu.max").read_text().split()
        found = float(quota) / float(period)  # "max" is no number
        if found >= 0:
            return int(found) or 1
    return cpus


def local_gpus() -> int:
    """GPUs that this process sees."""
    if device_kind() == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def living_nodes() -> list[dict[str, Any]]:
    """Ray's word on every machine of the cluster that is alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def free_of_machines() -> list[Mapping[str, float]]:
    """What nobody has taken of each machine now; Ray tells it with a little delay."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def fewest_workers(train: TrainSection) -> int:
    """Workers that a training cannot do without."""
    return train.min_workers or train.num_workers


def even_cpus(nodes: Sequence[int], parts: int, limit: int | None = None) -> int:
    """CPUs that each of some equal parts can take, none across nodes.

    It is the most that fit, 1 at least.

    Args:
        nodes: CPUs of every node. limit: CPUs that the parts may take together.
    """
    most = max(
        (
            cpus
            for cpus in range(1, max(nodes, default=1) + 1)
            if sum(node // cpus for node in nodes) >= parts
        ),
        default=1,
    )
    return most if limit is None else max(1, min(most, limit // parts))


def _fitting(machine: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """How often a worker's bundle fits into an empty machine."""
    return min(int(machine.get(name, 0.0) / value + _ROUNDING) for name, value in bundle.items())


def _workers(train: TrainSection) -> str:
    return f"{_key(train)} = {fewest_workers(train)}"


def _key(train: TrainSection) -> str:
    """The key that says how many workers a training cannot do without."""
    return "train.num_workers" if train.min_workers is None else "train.min_workers"


def _fewer(train: TrainSection, most: int) -> str:
    """What to set where GPUs are missing.

    Args:
        most: workers that have one each.
    """
    if most:
        return f"set {_key(train)}={most}"
    given = "leave train.use_gpu out" if train.use_gpu else "set train.use_gpu=false"
    return f"{given} to train on CPUs"


def _fewer_cpus(train: TrainSection, most: int, each: int) -> str:
    """What to set where CPUs are missing.

    Args:
        most: workers that have as many as they ask for. each: CPUs that all of them can have.
    """
    cures = [f"{_key(train)}={most}"] if most else []
    if train.cpus_per_worker and each:
        cures.append(f"train.cpus_per_worker={each}")
    return f"set {' or '.join(cures)}" if cures else "it takes a machine with more CPUs"


def _fewer_in_trials(train: TrainSection, use_gpu: bool, fitting: Sequence[int]) -> str:
    most = sum(fitting)
    if most:
        return f"set {_key(train)}={most} in overrides"
    if use_gpu:
        return f"{_fewer(train, 0)}, or use machines with GPUs"
    return (
        "set train.cpus_per_worker lower in overrides"
        if train.cpus_per_worker
        else "it takes machines with CPUs"
    )
