"""Arguments and options that several commands have."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipelines.commands.completion import (
    merge_names,
    override_words,
    recipe_names,
    sweep_names,
)


def _packaged(kind: str, names: Callable[[str], list[str]]) -> Any:
    """The argument of a command on one kind of file. Args: names: that complete a begun one."""
    return typer.Argument(
        metavar=kind.upper(),
        help=f"{kind.capitalize()} file, or the name of a packaged {kind}.",
        autocompletion=names,
    )


RecipeArgument = Annotated[str, _packaged("recipe", recipe_names)]
SweepArgument = Annotated[str, _packaged("sweep", sweep_names)]
MergeArgument = Annotated[str, _packaged("merge", merge_names)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides, e.g. train.learning_rate=1e-5",
        autocompletion=override_words,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="K/N", help="Of a sweep: part K of N of its trials, in shards/K-of-N."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no summaries.")]
