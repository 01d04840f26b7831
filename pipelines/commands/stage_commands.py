"""The commands that run stages of a recipe, made from what the stages declare."""

import inspect
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.arguments import Overrides, Quiet, RecipeArgument
from pipelines.commands.printing import has_colours, saying, write
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.recipe import Action, Recipe, Stage, View

_BEGAN = time.time()


def run_with_flags(
    loaded: "Recipe", stages: Sequence["Stage[Any]"], quiet: bool, asked: dict[str, bool]
) -> None:
    """Run stages, with those that follow them where their flag is given."""
    from pipelines.commands.run import run_stages
    from pipelines.commands.stages import on_request
    from pipelines.recipe import RunPaths

    say = saying(quiet)
    chosen, hints = list(stages), []
    for stage in on_request(stages):
        assert stage.follows is not None
        if not asked[str(stage.flag)]:
            if stage.applies(loaded):
                hints.append(f"{stage.follows.name}: {stage.flag_hint}")
        elif stage.applies(loaded):
            chosen.insert(chosen.index(stage.follows) + 1, stage)
        else:
            raise UserError(stage.refuse_absent(loaded))
    run_stages(loaded, chosen, say, quiet, _BEGAN)
    for hint in hints:
        say(hint)
    for stage in stages:
        if len(stages) == 1 and (found := stage.result(RunPaths.of(loaded))):
            print(found)


def _act(action: "Action", recipe: str, overrides: list[str] | None, quiet: bool) -> None:
    from pipelines.commands.run import LazyRay, settled
    from pipelines.recipe import load_recipe

    loaded, say = load_recipe(recipe, overrides or ()), saying(quiet)
    with LazyRay(loaded, say) as start:
        action.do(settled(loaded, start), start, say, quiet)


def _print(view: "View", recipe: str, overrides: list[str] | None, number: int) -> None:
    from pipelines.recipe import Run, load_recipe

    write(view.lines(Run(load_recipe(recipe, overrides or ())), number, has_colours()))


def add_stage_commands(app: typer.Typer) -> None:
    from pipelines.commands.stages import RUN, STAGES

    others = list(app.registered_commands)
    app.registered_commands.clear()
    way = " -> ".join(stage.name for stage in RUN)
    _add_command(app, "run", f"{way}; finished stages are skipped.", RUN)
    own = {command.callback.__name__ for command in others if command.callback is not None}
    for stage in STAGES:
        if stage.has_command and stage.name not in own and stage.flag is None:
            _add_command(app, stage.name, stage.help, (stage,))
    app.registered_commands += others


def _add_command(app: typer.Typer, name: str, summary: str, stages: Sequence["Stage[Any]"]) -> None:
    """A command that runs these stages of a recipe: its options are what the stages declare."""
    from pipelines.commands.stages import on_request

    flags = {str(stage.flag): stage.flag_help for stage in on_request(stages)}
    alone = stages[0] if len(stages) == 1 else None
    actions = {action.flag: action for action in (alone.actions if alone else ())}
    views = {view.flag: view for view in (alone.views if alone else ())}
    options: dict[str, Any] = {
        name.replace("-", "_"): Annotated[bool, typer.Option(f"--{name}", help=text)]
        for name, text in [*flags.items(), *((a.flag, a.help) for a in actions.values())]
    }
    numbers: dict[str, Any] = {
        view.flag.replace("-", "_"): Annotated[
            int | None, typer.Option(f"--{view.flag}", metavar="N", min=1, help=view.help)
        ]
        for view in views.values()
    }

    def command(recipe: str, overrides: list[str] | None, quiet: bool, **given: Any) -> None:
        from pipelines.recipe import load_recipe

        wanted = {key.replace("_", "-"): value for key, value in given.items()}
        for flag, action in actions.items():
            if wanted[flag]:
                _act(action, recipe, overrides, quiet)
                return
        run_with_flags(load_recipe(recipe, overrides or ()), stages, quiet, wanted)
        for flag, view in views.items():
            if wanted[flag] is not None:
                _print(view, recipe, overrides, wanted[flag])

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("recipe", keyword, annotation=RecipeArgument),
        inspect.Parameter("overrides", keyword, annotation=Overrides, default=None),
        inspect.Parameter("quiet", keyword, annotation=Quiet, default=False),
        *(
            inspect.Parameter(key, keyword, annotation=option, default=default)
            for found, default in ((options, False), (numbers, None))
            for key, option in found.items()
        ),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name, help=summary)(command)
