"""What runs may take of a cluster, against values written by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
from runs import MakeRecipe

from pipelines.cluster.machines import known_resources, tell_of_wait, wait_for_workers
from pipelines.cluster.resources import (
    Actors,
    Places,
    Resources,
    Share,
    even_cpus,
    local_cpus,
    local_gpus,
)
from pipelines.errors import UserError
from pipelines.recipe.schema import RaySection, TrainSection

Machine = Mapping[str, float]
HEAD: Machine = {"node:__internal_head__": 1.0, "memory": 1e9}


def machine(cpus: float = 0, gpus: float = 0) -> Machine:
    """As Ray tells it: what a machine has none of is left out."""
    found = {"memory": 1e9, "CPU": float(cpus), "GPU": float(gpus)}
    return {name: value for name, value in found.items() if value}


CPUS = (machine(8), machine(4))
MIXED = (machine(16, 4), machine(8), machine(16, 2))
ONE_GPU = (machine(8, 1),)
EMPTY_HEAD = (HEAD,)
GROWN = (HEAD, machine(4), machine(4))


def have(machines: tuple[Machine, ...], **limits: Any) -> Resources:
    return Resources(machines, **limits)


def train(**settings: Any) -> TrainSection:
    return TrainSection.model_validate(settings)


def test_totals_are_of_the_run_where_it_is_not_alone() -> None:
    assert (have(MIXED).cpus(), have(MIXED).gpus(), have(MIXED).node_cpus()) == (40, 6, [16, 8, 16])
    limited = have(MIXED, cpus_per_run=10, gpus_per_run=2.0)
    assert (limited.cpus(), limited.gpus(), limited.total("GPU")) == (10, 2, 6)
    assert have(ONE_GPU, gpus_per_run=0.25).gpus() == 0.25
    assert have(CPUS, gpus_per_run=2.0).gpus() == 0, "a limit adds nothing"
    assert (have(EMPTY_HEAD).cpus(), have(EMPTY_HEAD).node_cpus()) == (0, [])
    assert have(GROWN).node_cpus() == [4, 4]


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        (CPUS, None, False),
        (MIXED, None, True),
        (MIXED, False, False),
        (CPUS, True, True),
        (EMPTY_HEAD, None, False),
    ],
)
def test_work_takes_gpus_as_asked_or_where_there_are_any(
    machines: tuple[Machine, ...], asked: bool | None, expected: bool
) -> None:
    assert have(machines).uses_gpus(asked) is expected


ACTORS: dict[str, tuple[Resources, tuple[int, int | None, int], Actors]] = {
    # (tasks, num_actors, gpus_per_actor) -> count, CPUs and GPUs of each
    "per machine, with the cores that both have": (have(CPUS), (9, None, 1), Actors(2, 4, 0)),
    "one actor gets the larger machine": (have(CPUS), (9, 1, 1), Actors(1, 8, 0)),
    "as many as asked": (have(CPUS), (9, 4, 1), Actors(4, 2, 0)),
    "no more than tasks": (have(CPUS), (1, None, 1), Actors(1, 8, 0)),
    "within the run's CPUs": (have(CPUS, cpus_per_run=6), (9, None, 1), Actors(2, 3, 0)),
    "less than one CPU each": (have(CPUS, cpus_per_run=1), (9, None, 1), Actors(2, 1, 0)),
    "per GPU": (have(MIXED), (9, None, 1), Actors(6, 1, 1)),
    "per group of GPUs": (have(MIXED), (9, None, 4), Actors(1, 1, 4)),
    "per pair of GPUs": (have(MIXED), (9, None, 2), Actors(3, 1, 2)),
    "within the run's GPUs": (have(MIXED, gpus_per_run=2.0), (9, None, 1), Actors(2, 1, 1)),
    "a fraction of a GPU": (have(ONE_GPU, gpus_per_run=0.25), (9, None, 1), Actors(1, 1, 0.25)),
    "without a GPU, where there are some": (have(MIXED), (9, None, 0), Actors(3, 8, 0)),
    "machines that came": (have(GROWN), (9, None, 1), Actors(2, 4, 0)),
}


@pytest.mark.parametrize("case", ACTORS)
def test_actors(case: str) -> None:
    resources, (tasks, num_actors, gpus_per_actor), expected = ACTORS[case]
    assert resources.actors("reference", tasks, num_actors, gpus_per_actor) == expected


@pytest.mark.parametrize(
    ("resources", "gpus_per_actor", "gpus"),
    [(have(CPUS), 2, "0"), (have(MIXED), 8, "6"), (have(MIXED, gpus_per_run=2.0), 4, "2")],
)
def test_actors_need_their_gpus(resources: Resources, gpus_per_actor: int, gpus: str) -> None:
    with pytest.raises(UserError) as caught:
        resources.actors("reference", 3, None, gpus_per_actor)
    assert str(caught.value) == (
        f"reference: {gpus_per_actor} GPUs for one model, but the cluster has {gpus} for this run; "
        f"set reference.gpus_per_model={max(1, int(gpus))}"
    )


TRAININGS: dict[str, tuple[Resources, TrainSection, Places]] = {
    "all cores": (have(CPUS), train(), Places({"CPU": 8}, 1)),
    "even parts": (have(CPUS), train(num_workers=3), Places({"CPU": 4}, 3)),
    "as asked": (have(CPUS), train(num_workers=3, cpus_per_worker=1.5), Places({"CPU": 1.5}, 3)),
    "within the run": (have(CPUS, cpus_per_run=6), train(num_workers=2), Places({"CPU": 3}, 2)),
    "a GPU each": (have(MIXED), train(num_workers=4), Places({"CPU": 1, "GPU": 1}, 4)),
    "cores beside a GPU": (
        have(MIXED), train(num_workers=2, cpus_per_worker=4), Places({"CPU": 4, "GPU": 1}, 2)
    ),
    "GPUs left alone": (have(MIXED), train(use_gpu=False), Places({"CPU": 16}, 1)),
    "a fraction": (have(ONE_GPU, gpus_per_run=0.5), train(), Places({"CPU": 1, "GPU": 0.5}, 1)),
    "the fewest that it goes on with": (
        have(CPUS), train(num_workers=3, min_workers=2), Places({"CPU": 4}, 2)
    ),
    "no CPU is told of": (have((machine(0, 1),)), train(), Places({"CPU": 1, "GPU": 1}, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAININGS)
def test_training(case: str) -> None:
    resources, section, expected = TRAININGS[case]
    assert resources.training(section) == expected


@pytest.mark.parametrize(
    ("resources", "section", "message"),
    [
        (
            have(CPUS),
            train(use_gpu=True),
            "train.num_workers = 1 with a GPU each: the cluster has 0 GPUs for this run; leave "
            "train.use_gpu out to train on CPUs",
        ),
        (
            have(MIXED, gpus_per_run=2.0),
            train(num_workers=4),
            "train.num_workers = 4 with a GPU each: the cluster has 2 GPUs for this run; set "
            "train.num_workers=2",
        ),
        (
            have(MIXED),
            train(num_workers=9, min_workers=7),
            "train.min_workers = 7 with a GPU each: the cluster has 6 GPUs for this run; set "
            "train.min_workers=6",
        ),
        (
            have(CPUS),
            train(num_workers=7, cpus_per_worker=2),
            "train.num_workers = 7 x 2 CPUs: the cluster has 12; set train.num_workers=6 or "
            "train.cpus_per_worker=1",
        ),
        (
            have(CPUS, cpus_per_run=4),
            train(num_workers=9, min_workers=5),
            "train.min_workers = 5 x 1 CPUs: the cluster has 4; set train.min_workers=4",
        ),
        (
            have(EMPTY_HEAD),
            train(num_workers=2),
            "train.num_workers = 2 x 1 CPUs: the cluster has 1; set train.num_workers=1",
        ),
    ],
)
def test_training_needs_its_workers(
    resources: Resources, section: TrainSection, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        resources.training(section)
    assert str(caught.value) == message


WANTED: dict[str, tuple[Resources, TrainSection, int, Places]] = {
    "nothing is told yet: GPUs come": (
        have(EMPTY_HEAD), train(num_workers=2), 1, Places({"CPU": 1, "GPU": 1}, 2)
    ),
    "nothing is told yet, but no GPU is asked for": (
        have(EMPTY_HEAD), train(use_gpu=False), 4, Places({"CPU": 1}, 1)
    ),
    "machines without GPUs came": (have(GROWN), train(num_workers=3), 4, Places({"CPU": 1}, 3)),
    "one copy of the reference is larger": (
        have(MIXED), train(num_workers=2), 4, Places({"CPU": 1, "GPU": 1}, 4)
    ),
    "a share": (
        have(EMPTY_HEAD, gpus_per_run=0.5), train(), 1, Places({"CPU": 1, "GPU": 0.5}, 1)
    ),
    "the fewest": (
        have(GROWN), train(num_workers=8, min_workers=2, cpus_per_worker=3), 1,
        Places({"CPU": 3}, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WANTED)
def test_what_a_growing_cluster_is_asked_for(case: str) -> None:
    resources, section, gpus_per_model, expected = WANTED[case]
    assert resources.wanted(section, gpus_per_model) == expected


def test_room_is_of_whole_places_on_single_machines() -> None:
    assert Places({"CPU": 2.0}, 9).room([machine(3), machine(3)]) == 2, "six CPUs, but not together"
    assert Places({"CPU": 1.0, "GPU": 1.0}, 9).room(MIXED) == 6
    assert Places({"CPU": 8.0, "GPU": 1.0}, 9).room(MIXED) == 4
    assert Places({"CPU": 1.0, "GPU": 0.1}, 99).room([machine(64, 1)]) == 10
    assert Places({"CPU": 1.0}, 2).room(GROWN) == 2, "no more than asked"
    assert Places({"CPU": 1.0}, 2).room(EMPTY_HEAD) == 0
    assert Places({"CPU": 1.0, "GPU": 0.5}, 3).shown(2) == "2 x 1 CPU and 0.5 GPU"


SHARES: dict[str, tuple[Resources, TrainSection, int, Share]] = {
    "one each on machines with one CPU": (
        have((HEAD, machine(1), machine(1), machine(1))), train(), 9, Share(3, 1, None)
    ),
    "two workers each": (have((machine(1),) * 3), train(num_workers=2), 9, Share(1, 2, None)),
    "a worker spans no machines": (
        have((machine(3),) * 2), train(cpus_per_worker=2), 9, Share(2, 2, None)
    ),
    "no more than there are, with more cores": (have(CPUS), train(), 2, Share(2, 4, None)),
    "one per GPU": (have(MIXED), train(), 9, Share(6, None, 1)),
    "groups of GPUs": (have((machine(16, 8),)), train(num_workers=4), 9, Share(2, None, 4)),
    "quarters": (have((machine(16, 1),), gpus_per_run=0.25), train(), 9, Share(4, None, 0.25)),
    "GPUs left alone": (have((machine(4, 1),)), train(use_gpu=False), 9, Share(4, 1, None)),
    "the fewest": (have((machine(16, 8),)), train(num_workers=8, min_workers=3), 9,
                   Share(2, None, 3)),
    "whole cores of fractions": (
        have((machine(4),)), train(cpus_per_worker=1.5), 9, Share(2, 1, None)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARES)
def test_trials_side_by_side(case: str) -> None:
    resources, section, most, expected = SHARES[case]
    assert resources.share(section, most) == expected


@pytest.mark.parametrize(
    ("resources", "section", "message"),
    [
        (
            have((HEAD, machine(1))),
            train(cpus_per_worker=2),
            "train.num_workers = 1: a trial takes 1 x 2 CPUs; the cluster's nodes have 1 CPUs; "
            "set train.cpus_per_worker lower in overrides",
        ),
        (
            have((machine(8, 1), machine(4))),
            train(num_workers=2),
            "train.num_workers = 2: a trial takes 2 x 1 CPUs and 1 GPUs; the cluster's nodes have "
            "8 CPUs, 1 GPUs; 4 CPUs; set train.num_workers=1 in overrides",
        ),
        (
            have(EMPTY_HEAD),
            train(),
            "train.num_workers = 1: a trial takes 1 x 1 CPUs; the cluster's nodes have none; it "
            "takes machines with CPUs",
        ),
    ],
)
def test_a_trial_that_fits_nowhere(
    resources: Resources, section: TrainSection, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        resources.share(section, 9)
    assert str(caught.value) == message


def test_even_cpus() -> None:
    assert [even_cpus([8, 4], parts) for parts in (1, 2, 3, 4, 12, 13)] == [8, 4, 4, 2, 1, 1]
    assert [even_cpus([8, 4], 2, limit) for limit in (100, 6, 2, 1)] == [4, 3, 1, 1]
    assert even_cpus([], 2) == 1


def test_this_machine_is_counted_as_ray_counts_it() -> None:
    """Against Ray's own count; what the recipe says goes first."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
    from ray._private.utils import get_num_cpus

    assert local_cpus() == get_num_cpus(override_docker_cpu_warning=True)
    assert local_gpus() == NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    section = RaySection(num_cpus=6, num_gpus=3, cpus_per_run=4, gpus_per_run=2)
    found = Resources.of_this_machine(section)
    assert (found.total("CPU"), found.cpus(), found.total("GPU"), found.gpus()) == (6, 4, 3, 2)


def test_a_cluster_that_nobody_asked_is_unknown(make_recipe: MakeRecipe) -> None:
    """Connected or without any, what there is is known."""
    import ray

    found = known_resources(make_recipe("ray.num_cpus=7"))
    assert found is not None
    assert found.total("CPU") == (ray.cluster_resources()["CPU"] if ray.is_initialized() else 7)
    if not ray.is_initialized():
        assert known_resources(make_recipe("ray.address=10.0.0.1:6379")) is None


def test_the_running_cluster_is_counted(ray_cluster: None) -> None:
    """Against what Ray itself adds up."""
    import ray

    resources, told = Resources.now(), ray.cluster_resources()
    assert resources.total("CPU") == told["CPU"] == 2
    assert resources.total("GPU") == told.get("GPU", 0)
    assert resources.node_cpus() == [2]


@pytest.mark.slow
def test_what_others_have_is_waited_for_with_a_line(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two CPUs one is taken: work for one passes in silence, work for two says what is free."""
    import ray

    taken = ray.util.placement_group([{"CPU": 1}])
    ray.get(taken.ready())
    try:
        tell_of_wait("training", Places({"CPU": 1.0}, 1))
        assert capsys.readouterr().err == ""
        tell_of_wait("training", Places({"CPU": 1.0}, 2))
        assert capsys.readouterr().err == (
            "cluster: training waits for 2 x 1 CPU; free: 1 of 2 CPU, other work has the rest\n"
        )
    finally:
        ray.util.remove_placement_group(taken)
    tell_of_wait("training", Places({"CPU": 2.0}, 1))
    assert capsys.readouterr().err == "", "what has just been given back is free soon"


@pytest.mark.slow
def test_machines_that_do_not_come_are_named(ray_cluster: None, make_recipe: MakeRecipe) -> None:
    """Two CPUs are there, three workers are asked for: one place is missing, and asked for on
    machines of the second choice in turn.
    """
    grows = ("ray.address=auto", "ray.autoscaling=true", "ray.scale_up_timeout_s=2")
    said: list[str] = []
    wait_for_workers(make_recipe(*grows, "train.num_workers=2"), said.append)
    assert said == [], "what is there is not waited for"
    with pytest.raises(UserError, match="ray.scale_up_timeout_s = 2: 3 x 1 CPU did not come"):
        wait_for_workers(
            make_recipe(*grows, "train.num_workers=3", "ray.fallback_after_s=1"), said.append
        )
    assert said == [
        "cluster: has 2 CPU and 0 GPU; waiting for 3 x 1 CPU",
        "cluster: 1 x 1 CPU missing for 1 s; asking for machines with 'on_demand'",
    ]
