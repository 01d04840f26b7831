"""The models of a merge: where they lie, what they are called, and whether they go together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.export import trained_run
from pipelines.merge.schema import Merge
from pipelines.models import (
    ADAPTER_CONFIG,
    ChatSettings,
    ResponseEnds,
    check_family,
    check_positions,
    embedding_rows,
    resolve_model,
    response_ends,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from pipelines.recipe import CONFIG, DataSection, Recipe, RunPaths, public_name
from pipelines.storage import RunStore


@dataclass(frozen=True)
class Member:
    """One of the models.

    Attributes:
        place: as it was named. label: what figures call it. model: what actors load, on every
            machine. directory: of it on this one. run: the recipe and folders of the run that
            trained it; None for a directory of a model.
    """

    place: str
    label: str
    model: str
    directory: Path
    run: tuple[Recipe, RunPaths] | None = None


def open_members(merge: Merge) -> list[Member]:
    """The models of a merge, which have one tokenizer and equal vocabularies.

    Raises: UserError naming the first that is no trained model, or goes not with the first one.
    """
    labels = _labels(merge.models)
    found = [_opened(place, label) for place, label in zip(merge.models, labels, strict=True)]
    first, *others = found
    for number, member in enumerate(found):
        check_family(f"models[{number}]", member.directory)
    tokenizer, rows = tokenizer_fingerprint(first.directory), embedding_rows(first.directory)
    for member in others:
        if tokenizer_fingerprint(member.directory) != tokenizer:
            raise UserError(
                f"models: {member.place} has another tokenizer than {first.place}: merged token by "
                "token, all need one vocabulary"
            )
        if (own := embedding_rows(member.directory)) != rows:
            raise UserError(
                f"models: {member.place} has {own} tokens, {first.place} has {rows}: merged token "
                "by token, all need one vocabulary"
            )
    return found


def first_run(members: Sequence[Member]) -> tuple[Recipe, RunPaths] | None:
    return next((member.run for member in members if member.run is not None), None)


def data_of(members: Sequence[Member]) -> DataSection:
    """How prompts are read: as by the first run; by a recipe's defaults without one."""
    found = first_run(members)
    return DataSection(sources=()) if found is None else found[0].data


def ends_of(members: Sequence[Member]) -> ResponseEnds:
    """Where samples of all of them end: by the first model."""
    return response_ends(members[0].model, None, ChatSettings.of(data_of(members)))


def fingerprints(members: Sequence[Member]) -> dict[str, str]:
    """Name -> fingerprint of the models and of their tokenizer."""
    found = {
        f"models[{number}]": weights_fingerprint(member.directory)
        for number, member in enumerate(members)
    }
    return {**found, "tokenizer": tokenizer_fingerprint(members[0].directory)}


def check_lengths(members: Sequence[Member], longest: int, new_tokens: int) -> None:
    """UserError if a model cannot read the longest prompt with so many new tokens."""
    what = (
        f"a prompt of {longest} tokens and generation.max_new_tokens = {new_tokens} are {{tokens}} "
        "tokens"
    )
    for number, member in enumerate(members):
        check_positions(f"models[{number}]", member.directory, longest + new_tokens, what)


def _opened(place: str, label: str) -> Member:
    store = RunStore(place)
    if not store.exists(CONFIG) and (store.exists("config.json") or store.exists(ADAPTER_CONFIG)):
        return Member(store.root, label, store.root, resolve_model(store.root))
    folder, _, name = store.root.rpartition("/")
    if name == CONFIG:
        raise UserError(f"models: {store.root}: the run itself is meant: {folder}")
    recipe, paths, _ = trained_run(place, "merge")
    return Member(store.root, label, paths.model, resolve_model(paths.model), (recipe, paths))


def _labels(places: Sequence[str]) -> list[str]:
    """Names of the directories, with as many of their parents as tell them apart."""
    names = [public_name(place) for place in places]
    for depth in range(2, max(place.count("/") for place in places) + 2):
        if len(set(names)) == len(names):
            break
        names = ["/".join(place.rstrip("/").split("/")[-depth:]) for place in places]
    return names
