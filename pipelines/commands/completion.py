"""What a shell completes: packaged recipes and sweeps, YAML files, keys of a recipe, their values.

`sparsepo --install-completion` puts it into the shell's own configuration. Where nothing of this
fits, the shell completes files.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer


def recipe_names(incomplete: str) -> list[str]:
    from pipelines.recipe import packaged

    return _names(packaged("recipe"), incomplete)


def sweep_names(incomplete: str) -> list[str]:
    from pipelines.recipe import packaged

    return _names(packaged("sweep"), incomplete)


def merge_names(incomplete: str) -> list[str]:
    from pipelines.recipe import packaged

    return _names(packaged("merge"), incomplete)


def planned_names(incomplete: str) -> list[str]:
    """What `plan` takes."""
    from pipelines.recipe import packaged

    kinds = (packaged("recipe"), packaged("sweep"), packaged("merge"))
    return _names([name for kind in kinds for name in kind], incomplete)


def override_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of a recipe (of a sweep or merge for their commands), and the values of one that stands
    before "=".

    Bash takes "=" for a word of its own, other shells for a part of the word.
    """
    from pipelines.recipe import Recipe, plain_keys, values_of

    models: list[Any] = [Recipe]
    if ctx.info_name == "tune":
        from pipelines.sweep import Sweep

        models.append(Sweep)
    elif ctx.info_name == "merge":
        from pipelines.merge import Merge

        models = [Merge]
    given = list(ctx.params.get("overrides") or ())
    known = [key for model in models for key in plain_keys(model)]
    before, sign, begun = incomplete.partition("=")
    if sign and before:  # zsh, fish
        key, head = before, f"{before}="
    elif given[-1:] == ["="] and given[-2:-1]:  # bash, in the word behind it
        key, head, begun = given[-2], "", incomplete
    elif given and given[-1] in known and incomplete in ("", "="):  # bash, right behind it
        key, head, begun = given[-1], "", ""
    else:
        return [key for key in known if key.startswith(incomplete)]
    values = [value for model in models for value in values_of(model, key)]
    return [f"{head}{value}" for value in values if value.startswith(begun)]


def _names(packaged: Iterable[str], incomplete: str) -> list[str]:
    """Packaged names, and YAML files of this folder, that begin so."""
    here = sorted(path.name for path in Path().glob("*.y*ml") if path.is_file())
    return [name for name in (*packaged, *here) if name.startswith(incomplete)]
