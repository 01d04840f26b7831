"""Checkpoints: what is kept, what counts, what a damaged or foreign one leads to.

Bits after a resume are in test_training.py.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import DamagedCheckpoint, Failure, UserError
from pipelines.models.device import Placement
from pipelines.recipe.run_paths import ATTEMPT
from pipelines.storage.records import read_record
from pipelines.storage.store import RunStore
from pipelines.train.checkpoint import Checkpointer, Retention
from pipelines.train.checkpoint_contents import check_files, claim, newest_intact
from pipelines.train.restore import load_checkpoint
from pipelines.train.steps import completed_steps, step_folder
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
    assert read_record(RunStore(str(tmp_path)), ATTEMPT) == {"attempt": "new"}


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def test_one_flipped_bit_in_any_file_is_found(build: Build, tmp_path: Path) -> None:
    """In the header, the weights, the last moment, the state's step and its selection value; a
    state of no checksum as well.
    """
    store = RunStore(str(tmp_path))
    model, optimizer, checkpoints = build()
    step(model, optimizer)
    checkpoints.save(1, {"selection_value": 0.25})
    assert checkpoints.failure(wait=True) is None
    check_files(store, 1, placement())
    (shard,) = (tmp_path / step_folder(1)).glob("shard-*")
    state = tmp_path / step_folder(1) / "state.json"
    size = 8 * shard.stat().st_size
    for path, bits in (
        (shard, [3, 8 * 20, size // 2, size - 9, size - 1]),
        (state, [8 * state.read_bytes().index(b"0.25") + 17, 0]),
    ):
        for bit in bits:
            flip(path, bit)
            with pytest.raises(DamagedCheckpoint, match=rf"{path.name} is damaged"):
                check_files(store, 1, placement())
            flip(path, bit)
    check_files(store, 1, placement())
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(
        DamagedCheckpoint,
        match=rf"{shard.name} is missing or damaged: it has not the {size // 8} bytes",
    ):
        check_files(store, 1, placement())
    shard.unlink()
    with pytest.raises(DamagedCheckpoint, match=rf"{shard.name} is missing or damaged"):
        check_files(store, 1, placement())
    store.write_json(f"{step_folder(1)}/state.json", {"step": 1, "files": {}})
    with pytest.raises(DamagedCheckpoint, match="state.json has no checksum"):
        load_checkpoint(store, 1, model, optimizer, Replicated(placement()))


def test_the_newest_good_checkpoint_is_taken_and_the_bad_one_said(
    build: Build, tmp_path: Path
) -> None:
    store = RunStore(str(tmp_path))
    model, optimizer, checkpoints = build(retention=Retention(3))
    for number in (2, 4, 6):
        step(model, optimizer)
        checkpoints.save(number, {})
    assert checkpoints.failure(wait=True) is None
    files = {number: next((tmp_path / step_folder(number)).glob("shard-*")) for number in (2, 4, 6)}
    flip(files[6], 8 * 200)
    (tmp_path / step_folder(4) / "state.json").write_text("{")
    taken, said = newest_intact(store, completed_steps(store), placement())
    assert taken == 2
    assert [re.sub(r".*/(step-)", r"\1", line) for line in said] == [
        f"step-00000006/{files[6].name} is damaged: its checksum does not fit; training goes on "
        "from step 2 instead of step 6",
        "step-00000004/state.json is damaged: it is not what was written; training goes on from "
        "step 2 instead of step 4",
    ]
    assert completed_steps(store) == [2], "a bad one is no checkpoint any more"
    flip(files[2], 8 * 200)
    with pytest.raises(
        DamagedCheckpoint,
        match=r"step-00000002.* is damaged.*; no checkpoint is left: remove .*/checkpoints to "
        r"start",
    ):
        newest_intact(store, completed_steps(store), placement())
    assert newest_intact(store, [], placement()) == (0, [])


def test_ranks_share_the_checking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, three files: each reads one, and all raise what one of them found."""
    store = RunStore(str(tmp_path))
    ranks = []
    for rank in range(3):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(3)])
        ranks.append(
            Checkpointer(
                store,
                "a",
                model,
                torch.optim.AdamW(model.parameters()),
                Replicated(placement(rank, 3)),
                Retention(1),
            )
        )
    assert claim(store, "a") == []
    for checkpoints in ranks:
        checkpoints.save(1, {})
    assert [checkpoints.failure(wait=True) for checkpoints in ranks] == [None] * 3
    folder = tmp_path / step_folder(1)
    assert [p.suffix for p in sorted(folder.iterdir())] == [".safetensors"] * 3 + [".json"], (
        "the notes are gone"
    )
    flip(sorted(folder.glob("shard-*"))[1], 8 * 200)
    monkeypatch.setattr(Placement, "gather", lambda self, value: [value])
    check_files(store, 1, placement(0, 3))
    check_files(store, 1, placement(2, 3))
    with pytest.raises(DamagedCheckpoint, match="00001-of-00003"):
        check_files(store, 1, placement(1, 3))


def test_what_does_not_train_is_not_stored_and_another_base_is_refused(
    build: Build, tmp_path: Path
) -> None:
    """Below causal_lm only what takes a gradient is stored; a mask's controller takes none and
    is.
    """
    store = RunStore(str(tmp_path))
    claim(store, "a")

    def policy(seed: int) -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(seed)
        model = torch.nn.Module()
        model.causal_lm = torch.nn.ModuleDict(
            {"base": torch.nn.Linear(200, 200), "lora_A": torch.nn.Linear(3, ROWS)}
        )
        model.causal_lm["base"].requires_grad_(False)
        model.masks = torch.nn.ParameterDict(
            {"shift": torch.nn.Parameter(torch.randn(1), requires_grad=False)}
        )
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

    model, optimizer = policy(0)
    checkpoints = Checkpointer(
        store, "a", model, optimizer, Replicated(placement()), Retention(1), base="abc"
    )
    checkpoints.save(1, {})
    assert checkpoints.failure(wait=True) is None
    (shard,) = (tmp_path / step_folder(1)).glob("shard-*")
    assert load_file(shard).keys() == {
        "weights/causal_lm.lora_A.weight",
        "weights/causal_lm.lora_A.bias",
        "weights/masks.shift",
    }
    other, other_optimizer = policy(1)
    load_checkpoint(store, 1, other, other_optimizer, Replicated(placement()), base="abc")
    assert torch.equal(other.masks["shift"], model.masks["shift"])
    assert torch.equal(other.causal_lm["lora_A"].weight, model.causal_lm["lora_A"].weight)
    assert not torch.equal(other.causal_lm["base"].weight, model.causal_lm["base"].weight)
    for base in ("abd", None):
        with pytest.raises(
            UserError,
            match=rf"holds adapters of a base with fingerprint abc, the base here has {base}",
        ):
            load_checkpoint(store, 1, other, other_optimizer, Replicated(placement()), base=base)


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
    assert claim(store, "a") == []
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
    assert claim(store, "b") == [1]
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("is_last", [False, True])
def test_room_made_before_the_first_step_is_filled_by_the_save(
    is_last: bool, tmp_path: Path
) -> None:
    store, model = RunStore(str(tmp_path)), torch.nn.Linear(300, 200, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    claim(store, "a")
    checkpoints = Checkpointer(store, "a", model, optimizer, Replicated(placement()), Retention(1))
    checkpoints.make_room(is_last)
    assert checkpoints._copies._ahead is not None
    checkpoints._copies._ahead.result()
    pinned = checkpoints._copies._pinned
    held = {name: tensor.data_ptr() for name, tensor in pinned.items()}
    for _ in range(2):
        model(torch.ones(1, 300, device="cuda")).sum().backward()
        optimizer.step()
    checkpoints.save(2, {}, is_last)
    assert checkpoints.failure(wait=True) is None
    (shard,) = (tmp_path / step_folder(2)).glob("shard-*")
    now = {f"weights/{name}": value.detach() for name, value in model.named_parameters()}
    if not is_last:
        for name, parameter in model.named_parameters():
            now |= {f"{kind}/{name}": each for kind, each in optimizer.state[parameter].items()}
    found = load_file(shard)
    assert found.keys() == now.keys()
    assert all(torch.equal(found[key], value.cpu()) for key, value in now.items())
    assert held == {name: tensor.data_ptr() for name, tensor in pinned.items()}
