"""The commands on many models at once: tune, merge, and quickstart, which shows everything."""

from typing import Annotated

import typer

from pipelines.commands.arguments import MergeArgument, Overrides, Quiet, ShardOption, SweepArgument
from pipelines.commands.printing import saying


def tune(
    sweep: SweepArgument,
    overrides: Overrides = None,
    quiet: Quiet = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with an interrupted sweep, and try its failed trials again."
        ),
    ] = False,
    shard: ShardOption = None,
) -> None:
    """Search any config key with Ray Tune; the reference is scored once."""
    from pipelines.cluster import imports_ahead
    from pipelines.sweep import load_sweep

    found = load_sweep(sweep, overrides or (), shard)
    with imports_ahead(found.first_recipe().ray):
        from pipelines.sweep import run_tune

        print(run_tune(found, saying(quiet), quiet, resume))


def merge(
    merge_file: MergeArgument,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Sample from several tuned models as one, over a sweep of their weights; draw the frontier."""
    from pipelines.merge import load_merge, run_merge

    print(run_merge(load_merge(merge_file, overrides or ()), saying(quiet), quiet))


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[seed=N] [dir=PATH]")] = None,
    quiet: Quiet = False,
) -> None:
    """Every stage on a small world made on the spot: no network, no GPU, under three minutes."""
    from pipelines.cluster import imports_ahead
    from pipelines.recipe import RaySection

    with imports_ahead(RaySection(num_gpus=0)):
        from pipelines.commands.quickstart import run_quickstart

        print(f"report: {run_quickstart(overrides or [], saying(quiet), quiet)}")
