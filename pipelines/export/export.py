"""export: a finished run as a directory that others load, and, on request, as a repository."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.export.finished import FinishedRun
from pipelines.export.place import Place
from pipelines.recipe import CARD, EXPORT, EXPORTED, MASKS, Say, library_versions
from pipelines.storage import RunStore, hashes_of_written, read_record

if TYPE_CHECKING:
    from pipelines.export.push import Hub

_DATASET = "dataset"  # the folder of the data's card


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        to: the directory; RUN/export by default. push: a repository of the Hub, or another
            directory. license: of the model. is_public: whether a new repository is.
    """

    to: str | None = None
    push: str | None = None
    license: str | None = None
    is_public: bool = False


def run_export(run_dir: str, wanted: Wanted, say: Say) -> str:
    """Write the export, check it, and send it where that is asked for; returns where it is.

    A finished export of the same training is not written again.

    Raises: UserError for what is refused before any work; StageFailed if what was written is not
        the run's policy, or the Hub does not answer.
    """
    run = FinishedRun.open(run_dir)
    place = Place.at(wanted.to or f"{run.paths.root}/{EXPORT}", run.fingerprint)
    if place.made() is not None:
        with place.store.as_local_directory("") as folder:
            target = _target(wanted, run, folder)
            say(f"export: {place.store.root} is this run's export already, not written again")
            _send(folder, target, place, say)
        return place.store.root
    target = _target(wanted, run, None)
    _make(run, place, wanted, getattr(target, "repository", None), say)
    if target is not None:
        with place.store.as_local_directory("") as folder:
            _send(folder, target, place, say)
    return place.store.root


def _target(wanted: Wanted, run: FinishedRun, folder: Path | None) -> "Place | Hub | None":
    """What the export is to be sent to; refused before any work.

    Args:
        folder: of the export, if it is made already.
    """
    push = wanted.push
    if push is None:
        return None
    if push.startswith(("/", ".", "~")) or "://" in push:
        place = Place.at(push, run.fingerprint)
        place.made()  # or what else is there is refused
        return place
    from pipelines.export.push import Hub

    return Hub.ready(push, wanted.is_public, folder)


def _send(folder: Path, target: "Place | Hub | None", place: Place, say: Say) -> None:
    if isinstance(target, Place) and target.made() is not None:
        say(f"export: {target.store.root} has all of it already")
    elif isinstance(target, Place):
        _copy(folder, target)
        say(f"export: copied to {target.store.root}")
    elif target is not None and target.has_all:
        say(f"export: {target.repository} has all of it already")
    elif target is not None:
        kept = f"{place.store.root} is kept: the same command sends it again"
        say(f"export: sent to {target.send(folder, kept, say)}")


def _copy(folder: Path, place: Place) -> None:
    record = read_record(RunStore(str(folder)), EXPORTED)
    place.check_room(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    with place.staged() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        place.publish(copy, record)


def _make(run: FinishedRun, place: Place, wanted: Wanted, repository: str | None, say: Say) -> None:
    """Write and check everything beside the place, then move it there."""
    from pipelines.models import quick_imports

    with quick_imports():
        from pipelines.export.check import check_model, vllm_line
        from pipelines.export.masks import check_masks, write_masks
        from pipelines.export.model import check_base, needed_bytes, write_model
        from pipelines.models import may_run
        from pipelines.pairs import dataset_card
        from pipelines.train import CardFacts, model_card

    prompts = run.prompts()
    with run.model() as source:
        check_base(run, source)
        place.check_room(needed_bytes(source))
        with place.staged() as folder:
            written = write_model(run, source, folder, prompts)
            stored = write_masks(run, folder / MASKS, say)
            checked = check_model(written, source, folder, prompts)
            checked += [line for line in (check_masks(run, folder / MASKS, stored),) if line]
            vllm = vllm_line(folder)
            for line in (*checked, vllm):
                say(f"export: {line}")
            facts = CardFacts(
                run.train["counts"],
                run.pairs["counts"],
                run.results,
                has_code=may_run(folder),
                masks=MASKS,
                stored=stored,
                repository=repository,
                license=wanted.license,
                checked=tuple(checked),
                versions=run.train.get("versions", library_versions()),
            )
            (folder / CARD).write_text(model_card(run.recipe, facts))
            (folder / _DATASET).mkdir()
            (folder / _DATASET / CARD).write_text(dataset_card(run.recipe, run.pairs))
            place.publish(folder, _record(run, folder, [*checked, vllm], written.is_merged))


def _record(run: FinishedRun, folder: Path, checked: list[str], is_merged: bool) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = hashes_of_written(files, is_local=True)
    names = [path.relative_to(folder).as_posix() for path in files]
    return {
        "training": run.fingerprint,
        "pairs": run.pairs["fingerprint"],
        "merged": is_merged,
        "checked": checked,
        "files": dict(zip(names, hashes, strict=True)),
        "versions": library_versions(),
    }
