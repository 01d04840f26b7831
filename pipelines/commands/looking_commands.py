"""The commands that only look: at what would be, at what is done, at results."""

import contextlib
import json
from typing import Annotated

import typer

from pipelines.commands.arguments import Overrides, ShardOption
from pipelines.commands.completion import planned_names
from pipelines.commands.printing import redrawn, saying
from pipelines.errors import UserError


def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SWEEP|MERGE",
            help="Recipe, sweep or merge: a file, or the name of a packaged one.",
            autocompletion=planned_names,
        ),
    ],
    overrides: Overrides = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="TFLOP/s that one device sustains; assumed from its name by default."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For machines, with every number.")
    ] = False,
    sft: Annotated[
        bool, typer.Option("--sft", help="Of what `sparsepo sft` makes with this recipe.")
    ] = False,
    discriminator: Annotated[
        bool, typer.Option("--discriminator", help="Of what `sparsepo discriminator` makes.")
    ] = False,
    shard: ShardOption = None,
) -> None:
    """What would be made, how long it takes, memory and disk, what is refused; runs nothing."""
    from pipelines.commands.plan import plan_merge, plan_sweep, planned, run_plan
    from pipelines.commands.plan_text import merge_plan_lines, plan_lines, sweep_plan_lines
    from pipelines.merge import is_merge, load_merge
    from pipelines.recipe import load_recipe
    from pipelines.sweep import is_sweep, load_sweep

    given = overrides or ()
    if shard is not None and not is_sweep(recipe):
        raise UserError(f"--shard {shard}: {recipe} is no sweep")
    if sft:
        from pipelines.commands.sft import load_sft, plan_sft, planned_sft

        found = plan_sft(load_sft(recipe, given), tflops, recipe)
        lines = plan_lines(found, planned_sft(found))
    elif discriminator:
        from pipelines.commands.discriminator import plan_discriminator

        found = plan_discriminator(load_recipe(recipe, given), tflops, recipe)
        lines = plan_lines(found, planned(found))
    elif is_sweep(recipe):
        found = plan_sweep(load_sweep(recipe, given, shard), tflops, recipe)
        lines = sweep_plan_lines(found)
    elif is_merge(recipe):
        found = plan_merge(load_merge(recipe, given), tflops, recipe)
        lines = merge_plan_lines(found)
    else:
        found = run_plan(load_recipe(recipe, given), tflops, name=recipe)
        lines = plan_lines(found, planned(found))
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def status(
    run_dir: Annotated[str, typer.Argument(metavar="RUN")],
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Where the time of a run went, in seconds, instead.")
    ] = False,
    follows: Annotated[
        bool, typer.Option("--follow", "-f", help="Show it again as it changes, until it ends.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What of a run, sweep or merge is done, running or stopped, how far, and where outputs are."""
    from pipelines.commands.status import follow, run_status, run_timeline, status_lines

    if timeline:
        print("\n".join(run_timeline(run_dir)))
    elif as_json:
        print(json.dumps(run_status(run_dir), indent=2))
    elif follows:
        with contextlib.suppress(KeyboardInterrupt):
            follow(run_dir, redrawn())
    else:
        print("\n".join(status_lines(run_status(run_dir))))


def watch(
    run_dir: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, sweep or merge; it may not be there yet.")
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="To listen at; a free one by default.")
    ] = None,
    opens: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
) -> None:
    """A page of a run or sweep while it works: curves, samples, token weights; until Ctrl-C."""
    from pipelines.commands.watch import run_watch

    with contextlib.suppress(KeyboardInterrupt):
        run_watch(run_dir, port, opens, saying(False))


def report(
    run_dirs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP...")],
    output: str | None = None,
) -> None:
    """Write the HTML report of one run, the comparison of several, or of a sweep's parts as one."""
    from pipelines.commands.report import run_report

    print(run_report(run_dirs, output, saying(False)))
