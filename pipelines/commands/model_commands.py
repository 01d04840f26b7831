"""The commands around a model besides its stages: make one, judge one, hand one over."""

import json
import signal
from typing import Annotated, Any

import typer

from pipelines.commands.arguments import Overrides, Quiet, RecipeArgument
from pipelines.commands.completion import recipe_names
from pipelines.commands.printing import has_colours, saying, write
from pipelines.commands.stage_commands import run_with_flags
from pipelines.errors import GateFailed
from pipelines.evaluate import EXECUTE


def sft(recipe: RecipeArgument, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Make a starting model from the chosen responses, with the rate and epochs of section sft."""
    from pipelines.commands.sft import load_sft, run_sft

    print(f"model: {run_sft(load_sft(recipe, overrides or ()), saying(quiet), quiet)}")


def discriminator(
    recipe: RecipeArgument, overrides: Overrides = None, quiet: Quiet = False
) -> None:
    """Train a head on the reference's states that tells good tokens from bad ones (TLCR)."""
    from pipelines.commands.discriminator import run_discriminator
    from pipelines.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    print(f"discriminator: {run_discriminator(loaded, saying(quiet), quiet)}")


def evaluate(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Recipe file, or the name of a packaged recipe; none with --model.",
            autocompletion=recipe_names,
        ),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A model that was not trained here, without a recipe."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="DIR", help="What --model is compared with.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Held-out preference pairs for --model.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the evaluation of --model goes.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Keep it under this name, beside the run's others.")
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help=EXECUTE.flag_help)
    ] = False,
) -> None:
    """The recipe's benchmarks of the trained model, or of any model with --model."""
    from pipelines.commands.evaluation import Flags

    flags = Flags(model, reference, pairs, output)
    asked = {str(EXECUTE.flag): allow_code_execution}
    run_with_flags(flags.recipe(recipe, overrides or (), name), flags.stages(), quiet, asked)


def weigh(
    recipe: RecipeArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    response: Annotated[str, typer.Argument(metavar="RESPONSE")],
    other: Annotated[
        str | None, typer.Option(help="The pair's other response, for masks that read both.")
    ] = None,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="Weigh it as a rejected response, not a chosen one.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(help="A checkpoint; the published model by default.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="PROMPT is a turn of the user for the chat template.")
    ] = False,
) -> None:
    """Show the tokens of a response with the weights that a run's mask gives them."""
    from pipelines.evaluate import response_weights, weight_lines
    from pipelines.recipe import Run, load_recipe

    run = Run(load_recipe(recipe))
    side: Any = "rejected" if rejected else "chosen"
    found = response_weights(run, prompt, response, other, side, step, chat)
    write(weight_lines(found, has_colours()))


def schedule(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    quiet: Quiet = False,
    cron: Annotated[
        str | None,
        typer.Option(help="Times as in crontab, e.g. '0 */2 * * *'; schedule.cron by default."),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            help="Time zone of the times, e.g. Europe/Berlin; schedule.timezone by default."
        ),
    ] = None,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Evaluate what is new now, then end: for crontab and Kubernetes."
        ),
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Go on after a failed gate; the exit code is 3 all the same."
        ),
    ] = False,
    until_trained: Annotated[
        bool,
        typer.Option(
            "--until-trained", help="End when training has and all checkpoints are evaluated."
        ),
    ] = False,
) -> None:
    """Evaluate every new checkpoint of a run at certain times; exit code 3 if a gate fails."""
    from pipelines.commands.run import LazyRay, settled
    from pipelines.evaluate import Scheduler, check_run
    from pipelines.recipe import load_recipe

    given = [
        *(overrides or ()),
        *(
            f"schedule.{key}={json.dumps(value)}"
            for key, value in (("cron", cron), ("timezone", timezone))
            if value
        ),
    ]
    loaded = load_recipe(recipe, given)
    with LazyRay(loaded, saying(quiet)) as start:
        run = settled(loaded, start)
        check_run(run)
        scheduler = Scheduler(run, start, saying(quiet), quiet)
        signal.signal(signal.SIGTERM, lambda *_: scheduler.stop())
        outcome = scheduler.tick() if once else scheduler.run(keep_going, until_trained)
    if outcome.failures:
        raise GateFailed(
            outcome.failures[0].message
            + (f" (and {len(outcome.failures) - 1} more)" if len(outcome.failures) > 1 else "")
        )


def export(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A run whose training is done.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where it goes, empty or not there; RUN/export by default."
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO_OR_DIR",
            help="Send it, too: to a repository of the Hub (OWNER/NAME; the token is HF_TOKEN's), "
            "or to another directory (./DIR, /DIR, s3://...).",
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the model, as the Hub calls it; unknown otherwise."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is public; private otherwise.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """A finished run for others: model (adapters merged), tokenizer, masks and cards, checked."""
    from pipelines.export import Wanted, run_export

    print(run_export(run_dir, Wanted(to, push, license, public), saying(quiet)))
