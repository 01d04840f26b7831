"""What came of reading a damaged file, and whether that is right."""

import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damage.damages import FOLDER, Damage
from damage.kind import Kind
from damage.readers import Reader
from damage.world import World, linked
from pipelines.errors import UserError

# What readers write again whatever they find, with the same content.
_WRITTEN_ANEW = (
    "run/config.yaml", "half/config.yaml", "attempt.json", "schedule/state.json",
    "sweep/trials.json", "sweep/trials.csv", "sweep/trials.parquet", "sweep/pareto.json",
    "sweep/sweep.json", "/merge.json", "/merge.yaml", "discriminator/config.yaml",
    "editor/config.yaml", "controlled/config.yaml", "reading/config.yaml",
)  # fmt: skip
_CURES = ("remove", "restore", "run ", "write ", "set ", "choose", "take ", "give", "add ", "name ")


@dataclass(frozen=True)
class Outcome:
    """error: what was raised, value: what was found, said: in lines."""

    error: BaseException | None
    value: Any
    said: list[str]

    def line(self) -> str:
        """In a few words, for a table."""
        if self.error is None:
            return "read"
        where = traceback.extract_tb(self.error.__traceback__)[-1]
        words = (str(self.error).splitlines() or [""])[0]
        place = f" ({Path(where.filename).name}:{where.lineno})"
        return f"{type(self.error).__name__}: {words}{place}"


def world_for(reader: Reader, base: World, there: Path) -> World:
    world = linked(base.folder, there)
    getattr(reader, "before", lambda world: None)(world)
    return world


def read(world: World, reader: Reader) -> Outcome:
    said: list[str] = []
    try:
        return Outcome(None, reader(world, said), said)
    except Exception as error:
        return Outcome(error, None, said)


def damage_file(path: Path, name: str, damages: dict[str, Damage]) -> None:
    """Another file in its place: the one of the base world stays as it is."""
    content, stat = path.read_bytes(), path.stat()
    path.unlink()
    if name == FOLDER:
        path.mkdir()
        (path / "inside").write_text("x")
    else:
        path.write_bytes(damages[name](content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def wrong_of(
    base: World, there: Path, kind: Kind, name: str, reader: Reader, whole: Outcome
) -> str:
    """What is wrong with reading a file of this kind that is damaged so; empty if nothing is."""
    world = world_for(reader, base, there)
    path = world.path(kind.path)
    damage_file(path, name, kind.damages)
    before = world.states(but=path)
    found = read(world, reader)
    if isinstance(found.error, UserError):
        text = str(found.error)
        if "\n" in text:
            return f"several lines: {text!r}"
        if path.name not in text and path.stem not in text and not kind.is_input:
            return f"the file is not named: {text}"
        if not kind.is_input and not any(word in text for word in _CURES):
            return f"no cure: {text}"
        now = world.states(but=path)
        lost = [file for file, state in before.items() if now.get(file) != state]
        lost = [file for file in lost if not file.endswith(_WRITTEN_ANEW)]
        return f"{found.line()}; other files changed: {lost}" if lost else ""
    if found.error is not None:
        return found.line()
    is_said = any(path.name in line and "damaged" in line for line in found.said)
    if whole.value != found.value and not kind.is_input and not is_said:
        return f"another result, said {found.said}"
    return ""
