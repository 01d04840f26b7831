"""Every kind of file that the program reads, damaged in every way, before every reader of it.

Right is one line that names the file and a cure, with all else as it was, or the result that there
is without the damage. The table is tests/support/damage/kinds.py.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage.commands import COMMANDS
from damage.damages import FOLDER
from damage.kind import Kind
from damage.kinds import KINDS
from damage.other_systems import add_other_systems
from damage.outcomes import Outcome, read, world_for, wrong_of
from damage.readers import Reader, resume
from damage.world import World, add_interrupted_sweep, linked, make_world


class Table:
    """Reads damaged copies of one world; what its readers find undamaged is found once."""

    def __init__(self, base: World, there: Path) -> None:
        self._base, self._there = base, there
        self._whole: dict[Reader, Outcome] = {}
        self.keep()

    def keep(self) -> None:
        """What the world is now is what it has to be in the end."""
        self._before = self._base.states(but=self._there)

    def add_interrupted_sweep(self) -> None:
        """To the world, where it was made: its files name each other."""
        self.assert_nothing_was_written()
        shutil.rmtree(self._there, ignore_errors=True)
        add_interrupted_sweep(World(self._base.folder.rename(self._there)))
        self._there.rename(self._base.folder)
        self.keep()

    def assert_nothing_was_written(self) -> None:
        now = self._base.states(but=self._there)
        changed = {name for name, _ in now.items() ^ self._before.items()}
        assert not changed, f"readers have written in their place into {sorted(changed)}"

    def wrong(self, kind: Kind, readers: tuple[Reader, ...], names: list[str]) -> list[str]:
        found = []
        for reader in readers:
            if reader not in self._whole:
                world = world_for(reader, self._base, self._there)
                self._whole[reader] = read(world, reader)
                error = self._whole[reader].error
                assert error is None, f"{reader.__name__} of what is not damaged: {error!r}"
            for name in names:
                given = (self._base, self._there, kind, name, reader, self._whole[reader])
                if wrong := wrong_of(*given):
                    found.append(f"{name}, {reader.__name__}: {wrong}")
        return found

    def read_after(
        self, reader: Reader, change: Callable[[World], object]
    ) -> tuple[object, list[str]]:
        """What a reader finds and says of a world in which something was changed."""
        world = world_for(reader, self._base, self._there)
        change(world)
        found = read(world, reader)
        assert found.error is None, found.line()
        return found.value, found.said

    def check(self, kind: Kind, readers: tuple[Reader, ...], names: list[str]) -> None:
        assert not (wrong := self.wrong(kind, readers, names)), "\n".join(wrong)


@pytest.fixture(scope="module")
def table(
    tmp_path_factory: pytest.TempPathFactory,
    model_dir: Path,
    rows: list[dict[str, str]],
    ray_cluster: None,
) -> Iterator[Table]:
    folder = tmp_path_factory.mktemp("damage")
    (folder / "world").mkdir()
    world = make_world(folder / "world", model_dir, rows)
    add_other_systems(world)
    base = World((world.folder).rename(folder / "base"))
    table = Table(base, folder / "world")
    yield table
    table.assert_nothing_was_written()


@pytest.fixture(scope="module")
def with_sweep(table: Table) -> Table:
    """The table with a sweep that Ray Tune left unfinished: two trials under Ray."""
    table.add_interrupted_sweep()
    return table


# Readers that load no model read these. The world alone takes fifteen seconds.
READ = [name for name, kind in KINDS.items() if kind.readers]


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_is_named_or_done_without(table: Table, name: str) -> None:
    kind = KINDS[name]
    names = ["truncated", "other types inside"] if kind.is_input else [*kind.damages, FOLDER]
    names = [damage for damage in names if damage == FOLDER or damage in kind.damages]
    table.check(kind, kind.readers, names)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.slow])
def test_a_flipped_bit_changes_no_result(with_sweep: Table, name: str) -> None:
    kind = KINDS[name]
    with_sweep.check(kind, kind.slow[-1:], ["a flipped bit"])


@pytest.mark.slow
def test_a_sweep_goes_on_with_what_ray_tune_keeps_or_begins_anew(with_sweep: Table) -> None:
    """It goes on; not with another point, nor where a trial that has ended lost its file. What came
    of the trials is the same.
    """

    def other_point(world: World) -> None:
        path = world.path("resumed/.ray/sweep/experiment_state-*")
        text = path.read_text()
        path.unlink()
        changed = re.sub(r"(objective.beta[^:]*: )0.2", r"\g<1>0.3", text)
        assert changed != text
        path.write_text(changed)

    whole, said = with_sweep.read_after(resume, lambda world: None)
    assert not any("begins anew" in line for line in said)
    found, said = with_sweep.read_after(resume, other_point)
    assert found == whole
    refused = "resumed/.ray is damaged: trial 1 of .*0.3.* is none of the sweep's; Ray Tune begins"
    assert any(re.search(refused, line) for line in said)

    def without_its_file(world: World) -> None:
        world.path("resumed/trials/0000-*/trial.json").unlink()

    _, said = with_sweep.read_after(resume, without_its_file)
    lost = "trial 0 has ended, and its trial.json is gone; Ray Tune begins anew"
    assert any(lost in line for line in said)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", KINDS)
def test_every_damage_before_every_reader(with_sweep: Table, name: str) -> None:
    kind = KINDS[name]
    with_sweep.check(kind, kind.readers + kind.slow, [*kind.damages, FOLDER])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", KINDS)
def test_every_damage_before_every_command(with_sweep: Table, name: str) -> None:
    kind = KINDS[name]
    commands = [COMMANDS[each] for each in kind.readers + kind.slow if each in COMMANDS]
    with_sweep.check(kind, tuple(commands), [*kind.damages, FOLDER])


@pytest.mark.slow
def test_a_command_ends_with_one_line_or_as_without_the_damage(table: Table) -> None:
    """What `make test-exhaustive` does with all kinds of files and commands."""
    for name in ("manifest of pairs", "samples", "programs"):
        kind = KINDS[name]
        commands = {COMMANDS[each] for each in kind.readers + kind.slow if each in COMMANDS}
        assert commands
        table.check(kind, tuple(commands), ["truncated"])


def test_a_copy_is_mended_whatever_became_of_it(tmp_path: Path) -> None:
    """Cases share one copy: what one of them leaves there is not what the next one reads."""
    base, there = tmp_path / "base", tmp_path / "there"
    for name in ("a/kept", "a/gone", "a/other", "a/folder now", "b/c/inside", "a/.ray/state"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    (base / "empty").mkdir()
    linked(base, there)
    assert (there / "a/kept").stat().st_ino == (base / "a/kept").stat().st_ino
    (there / "a/gone").unlink()
    (there / "a/other").unlink()
    (there / "a/other").write_text("another")
    (there / "a/folder now").unlink()
    (there / "a/folder now/deep").mkdir(parents=True)
    (there / "new/deep").mkdir(parents=True)
    (there / "new/file").write_text("new")
    (there / "a/.ray/state").write_text("written in its place")
    shutil.rmtree(there / "b")
    (there / "b").write_text("a file now")
    (there / "empty").rmdir()
    linked(base, there)
    read, whole = (
        {str(p.relative_to(root)): p.is_file() and p.read_text() for p in root.rglob("*")}
        for root in (there, base)
    )
    assert read == whole and whole["a/.ray/state"] == "a/.ray/state"
