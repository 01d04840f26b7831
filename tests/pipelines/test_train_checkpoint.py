"""Checkpoints: what is kept, what counts, what a damaged or foreign one leads to.

Bits after a resume are in test_training.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import Failure, UserError
from pipelines.models.device import Placement
from pipelines.storage.store import RunStore
from pipelines.train.checkpoint import (
    ATTEMPT,
    Checkpointer,
    Retention,
    claim,
    completed_steps,
    load_checkpoint,
    step_folder,
)
from pipelines.train.strategy import Replicated

Build = Callable[..., tuple[torch.nn.Module, torch.optim.AdamW, Checkpointer]]


class Rows(Replicated):
    """Ranks of a world that share the rows of every matrix, each holding its part: what FSDP2
    does, without its processes.
    """

    def local_rows(self, parameter: torch.Tensor) -> tuple[int, int] | None:
        if parameter.ndim < 2:
            return None
        size = -(-ROWS // self.placement.world)
        start = min(self.placement.rank * size, ROWS)
        return start, min(start + size, ROWS)


ROWS = 5


def placement(rank: int = 0, world: int = 1) -> Placement:
    return Placement(torch.device("cpu"), torch.float32, torch.float32, rank, world)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def made(
        attempt: str = "a", retention: Retention | None = None, seed: int = 0
    ) -> tuple[torch.nn.Module, torch.optim.AdamW, Checkpointer]:
        torch.manual_seed(seed)
        claim(RunStore(str(tmp_path)), attempt)
        model = torch.nn.Linear(3, ROWS)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return (
            model,
            optimizer,
            Checkpointer(
                RunStore(str(tmp_path)),
                attempt,
                model,
                optimizer,
                Replicated(placement()),
                retention or Retention(2),
            ),
        )

    return made


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


def test_newest_and_best_are_kept_and_partial_ones_do_not_count(
    build: Build, tmp_path: Path
) -> None:
    store = RunStore(str(tmp_path))
    model, optimizer, checkpoints = build(retention=Retention(newest=2, best=1))
    for number, value in enumerate((0.9, 0.2, None, 0.4, None, 0.8), start=1):
        step(model, optimizer)
        checkpoints.save(number, {"selection_value": value})
    assert checkpoints.failure(wait=True) is None
    assert completed_steps(store) == [2, 5, 6]
    (tmp_path / step_folder(9)).mkdir()
    (tmp_path / step_folder(9) / "shard-x-00000-of-00001.safetensors").write_bytes(b"half")
    assert completed_steps(store) == [2, 5, 6], (
        "a folder without its state file is not a checkpoint"
    )
    other, other_optimizer, _ = build(seed=1)
    load_checkpoint(store, 6, other, other_optimizer, Replicated(placement()))
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)


def test_a_save_replaces_what_a_dead_attempt_left_of_its_step(build: Build, tmp_path: Path) -> None:
    left = tmp_path / step_folder(3)
    left.mkdir(parents=True)
    save_file({"weights/weight": torch.zeros(1)}, left / "shard-dead-00000-of-00002.safetensors")
    (tmp_path / step_folder(1)).mkdir()
    _, _, checkpoints = build()
    checkpoints.save(3, {})
    assert checkpoints.failure(wait=True) is None
    assert sorted(p.name for p in left.iterdir()) == [
        "shard-a-00000-of-00001.safetensors",
        "state.json",
    ]
    assert not (tmp_path / step_folder(1)).exists()


def test_a_group_that_was_replaced_commits_nothing(build: Build, tmp_path: Path) -> None:
    _, _, old = build("old")
    _, _, new = build("new")
    assert new.is_current() and not old.is_current()
    old.save(4, {})
    assert old.failure(wait=True) == Failure(
        "superseded", "another command has taken over this run"
    )
    assert completed_steps(RunStore(str(tmp_path))) == []
    assert RunStore(str(tmp_path)).read_json(ATTEMPT) == {"attempt": "new"}


def test_damaged_and_missing_files_are_named(build: Build, tmp_path: Path) -> None:
    model, optimizer, checkpoints = build()
    step(model, optimizer)
    checkpoints.save(1, {})
    assert checkpoints.failure(wait=True) is None
    (file,) = (tmp_path / step_folder(1)).glob("shard-*")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(
        UserError,
        match=rf"{file.name} is missing or damaged: remove .*step-00000001 to resume before it",
    ):
        load_checkpoint(RunStore(str(tmp_path)), 1, model, optimizer, Replicated(placement()))


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 3, 7])
def test_any_number_of_ranks_reads_what_any_number_wrote(
    writers: int, readers: int, tmp_path: Path
) -> None:
    """Rows of a 5-row matrix and its moments, dealt out and put together again; more readers
    than rows leaves some with none.
    """
    store = RunStore(str(tmp_path))

    def part(value: torch.Tensor, span: tuple[int, int] | None) -> torch.Tensor:
        return value.clone() if span is None else value[span[0] : span[1]].clone()

    torch.manual_seed(0)
    whole = {"weight": torch.randn(ROWS, 3), "bias": torch.randn(ROWS)}
    ranks = []
    assert claim(store, "a") == 0
    for rank in range(writers):
        strategy = Rows(placement(rank, writers))
        model = torch.nn.Linear(3, ROWS)
        for name in whole:
            setattr(
                model, name, torch.nn.Parameter(part(whole[name], strategy.local_rows(whole[name])))
            )
        optimizer = torch.optim.AdamW(model.parameters())
        for parameter in model.parameters():
            optimizer.state[parameter] = {
                "step": torch.tensor(7.0),
                "exp_avg": parameter.detach() * 2,
            }
        ranks.append(Checkpointer(store, "a", model, optimizer, strategy, Retention(1)))
    for checkpoints in reversed(ranks):
        checkpoints.save(1, {})
    assert [checkpoints.failure(wait=True) for checkpoints in ranks] == [None] * writers
    assert claim(store, "b") == 1
    for rank in range(readers):
        strategy = Rows(placement(rank, readers))
        model = torch.nn.Linear(3, ROWS)
        for name in whole:
            setattr(
                model,
                name,
                torch.nn.Parameter(
                    torch.zeros_like(part(whole[name], strategy.local_rows(whole[name])))
                ),
            )
        optimizer = torch.optim.AdamW(model.parameters())
        load_checkpoint(store, 1, model, optimizer, strategy)
        for name, parameter in model.named_parameters():
            expected = part(whole[name], strategy.local_rows(whole[name]))
            assert torch.equal(parameter, expected)
            assert torch.equal(optimizer.state[parameter]["exp_avg"], expected * 2)
            assert float(optimizer.state[parameter]["step"]) == 7


def test_a_rank_that_never_writes_ends_in_one_line(tmp_path: Path) -> None:
    """Rank 0 of two waits for the other's file until its group ends."""
    model = torch.nn.Linear(3, ROWS)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpointer(
        RunStore(str(tmp_path)), "a", model, optimizer, Replicated(placement(0, 2)), Retention(1)
    )
    checkpoints.save(1, {})
    assert checkpoints.failure() is None, "still waiting"
    checkpoints.close()
    assert checkpoints.failure(wait=True) == Failure(
        "stage", "checkpoint of step 1: another worker did not write its part"
    )
    assert completed_steps(RunStore(str(tmp_path))) == []
