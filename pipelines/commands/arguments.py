"""Arguments and options that several commands have."""

from typing import Annotated

import typer

from pipelines.commands.completion import override_words, recipe_names

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file, or the name of a packaged recipe.",
        autocompletion=recipe_names,
    ),
]
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
