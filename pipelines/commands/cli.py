"""The command line.

Exit codes: 0 ok, 2 the user's input is wrong, 3 a quality gate failed, 130 interrupted (Ctrl-C),
143 terminated (SIGTERM), 1 anything else.
"""

import contextlib
import functools
import inspect
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.completion import (
    merge_names,
    override_words,
    recipe_and_sweep_names,
    recipe_names,
    sweep_names,
)
from pipelines.commands.job_commands import Address, follow_job, jobs
from pipelines.commands.usage import usage_message
from pipelines.errors import GateFailed, StageFailed, UserError
from pipelines.evaluate import EXECUTE

if TYPE_CHECKING:
    from pipelines.recipe import Action, Recipe, Stage, View

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Token-masked preference optimisation on Ray: SparsePO, MaPO, TDPO, DPO.",
)
app.add_typer(jobs, name="job")

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
_BEGAN = time.time()
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="K/N", help="Of a sweep: part K of N of its trials, in shards/K-of-N."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no summaries.")]


def _show_version(asked: bool) -> None:
    if asked:
        from pipelines.recipe import library_versions

        name, *others = sorted(library_versions().items(), key=lambda item: item[0] != "sparsepo")
        print(" ".join(name))
        print(", ".join(" ".join(other) for other in others))
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Version of this program and of its libraries.",
        ),
    ] = False,
) -> None:
    pass


@app.command()
def report(
    run_dirs: Annotated[list[str], typer.Argument(metavar="RUN|SWEEP...")],
    output: str | None = None,
) -> None:
    """Write the HTML report of one run, the comparison of several, or of a sweep's parts as one."""
    from pipelines.commands.report import run_report

    print(run_report(run_dirs, output, _say(False)))


@app.command()
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

    print(run_export(run_dir, Wanted(to, push, license, public), _say(quiet)))


@app.command()
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
    _write(weight_lines(found, _has_colours()))


@app.command()
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
    _run(flags.recipe(recipe, overrides or (), name), flags.stages(), quiet, asked)


@app.command()
def sft(recipe: RecipeArgument, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Make a starting model from the chosen responses, with the rate and epochs of section sft."""
    from pipelines.commands.sft import load_sft, run_sft

    print(f"model: {run_sft(load_sft(recipe, overrides or ()), _say(quiet), quiet)}")


@app.command()
def discriminator(
    recipe: RecipeArgument, overrides: Overrides = None, quiet: Quiet = False
) -> None:
    """Train a head on the reference's states that tells good tokens from bad ones (TLCR)."""
    from pipelines.commands.discriminator import run_discriminator
    from pipelines.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    print(f"discriminator: {run_discriminator(loaded, _say(quiet), quiet)}")


@app.command()
def tune(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="Sweep file, or the name of a packaged sweep.",
            autocompletion=sweep_names,
        ),
    ],
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
    from pipelines.sweep import load_sweep, run_tune

    print(run_tune(load_sweep(sweep, overrides or (), shard), _say(quiet), quiet, resume))


@app.command()
def merge(
    merge_file: Annotated[
        str,
        typer.Argument(
            metavar="MERGE",
            help="Merge file, or the name of a packaged merge.",
            autocompletion=merge_names,
        ),
    ],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Sample from several tuned models as one, over a sweep of their weights; draw the frontier."""
    from pipelines.merge import load_merge, run_merge

    print(run_merge(load_merge(merge_file, overrides or ()), _say(quiet), quiet))


@app.command()
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
    with LazyRay(loaded, _say(quiet)) as start:
        run = settled(loaded, start)
        check_run(run)
        scheduler = Scheduler(run, start, _say(quiet), quiet)
        signal.signal(signal.SIGTERM, lambda *_: scheduler.stop())
        outcome = scheduler.tick() if once else scheduler.run(keep_going, until_trained)
    if outcome.failures:
        raise GateFailed(
            outcome.failures[0].message
            + (f" (and {len(outcome.failures) - 1} more)" if len(outcome.failures) > 1 else "")
        )


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...", help="Any other command with its arguments, e.g. run mine.yaml"
        ),
    ],
    address: Address = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Show the job's output until it ends, and end with its exit code."
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the job; made from command and recipe by default.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="An environment variable for the job."),
    ] = None,
    public_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="One that jobs do not need as a rule; whoever uses the cluster can read it.",
        ),
    ] = None,
) -> None:
    """Run a command as a job of a Ray cluster; submitted again while it runs, it is found again."""
    from pipelines.commands.submit import submit as start

    program = _commands()
    cluster, job = start(command, program, address, name, env or (), public_env or (), _say(False))
    if follow:
        follow_job(cluster, job)
    else:
        print(cluster.command("logs", job.name, "--follow"))


@app.command()
def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SWEEP",
            help="Recipe or sweep: a file, or the name of a packaged one.",
            autocompletion=recipe_and_sweep_names,
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
    from pipelines.commands.plan import plan_sweep, planned, run_plan
    from pipelines.commands.plan_text import plan_lines, sweep_plan_lines
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
    else:
        found = run_plan(load_recipe(recipe, given), tflops, name=recipe)
        lines = plan_lines(found, planned(found))
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines))


@app.command()
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
    """What of a run or sweep is done, running or stopped, how far, and where the outputs are."""
    from pipelines.commands.status import follow, run_status, run_timeline, status_lines

    if timeline:
        print("\n".join(run_timeline(run_dir)))
    elif as_json:
        print(json.dumps(run_status(run_dir), indent=2))
    elif follows:
        with contextlib.suppress(KeyboardInterrupt):
            follow(run_dir, _redrawn())
    else:
        print("\n".join(status_lines(run_status(run_dir))))


@app.command()
def watch(
    run_dir: Annotated[
        str, typer.Argument(metavar="RUN", help="A run or sweep; it may not be there yet.")
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
        run_watch(run_dir, port, opens, _say(False))


def _redrawn() -> Callable[[list[str]], None]:
    """Prints lines; on a terminal in place of those before them."""
    height = 0

    def show(lines: list[str]) -> None:
        nonlocal height
        if sys.stdout.isatty():
            width = os.get_terminal_size().columns
            print(f"\x1b[{height}F\x1b[J" if height else "", end="")
            height = sum(1 + (max(1, len(line)) - 1) // max(1, width) for line in lines)
        print("\n".join(lines), flush=True)

    return show


@app.command()
def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[seed=N] [dir=PATH]")] = None,
    quiet: Quiet = False,
) -> None:
    """Every stage on a small world made on the spot: no network, no GPU, under three minutes."""
    from pipelines.commands.quickstart import run_quickstart

    print(f"report: {run_quickstart(overrides or [], _say(quiet), quiet)}")


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(line, flush=True))


def _run(
    loaded: "Recipe", stages: Sequence["Stage[Any]"], quiet: bool, asked: dict[str, bool]
) -> None:
    """Run stages, with those that follow them where their flag is given."""
    from pipelines.commands.run import run_stages
    from pipelines.commands.stages import on_request
    from pipelines.recipe import RunPaths

    say = _say(quiet)
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

    loaded, say = load_recipe(recipe, overrides or ()), _say(quiet)
    with LazyRay(loaded, say) as start:
        action.do(settled(loaded, start), start, say, quiet)


def _print(view: "View", recipe: str, overrides: list[str] | None, number: int) -> None:
    from pipelines.recipe import Run, load_recipe

    _write(view.lines(Run(load_recipe(recipe, overrides or ())), number, _has_colours()))


def _has_colours() -> bool:
    """Whether what is printed goes to a terminal that shows colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _write(lines: Iterable[str]) -> None:
    """Print lines, with escapes for what the terminal's encoding lacks."""
    coding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(coding, "backslashreplace").decode(coding))


def _add_command(name: str, summary: str, stages: Sequence["Stage[Any]"]) -> None:
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
        _run(load_recipe(recipe, overrides or ()), stages, quiet, wanted)
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


def _add_stage_commands() -> None:
    from pipelines.commands.stages import RUN, STAGES

    others = list(app.registered_commands)
    app.registered_commands.clear()
    way = " -> ".join(stage.name for stage in RUN)
    _add_command("run", f"{way}; finished stages are skipped.", RUN)
    own = {command.callback.__name__ for command in others if command.callback is not None}
    for stage in STAGES:
        if stage.has_command and stage.name not in own and stage.flag is None:
            _add_command(stage.name, stage.help, (stage,))
    app.registered_commands += others


_add_stage_commands()


@functools.cache
def _commands() -> Any:
    """All commands, with options and help, as click has them."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Console entry point: turns errors into one line and an exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command = _commands()
    given = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end_of_process)
    try:
        code = command(args=given, prog_name="sparsepo", standalone_mode=False)
    except Terminated:
        _fail_at_once(f"terminated{_way_on(given)}", 128 + signal.SIGTERM)
    except UserError as error:
        _fail(str(error), 2)
    except GateFailed as error:
        _fail(str(error), 3)
    except StageFailed as error:
        _fail(str(error), 1)
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("click", "typer"):
            if not hasattr(error, "format_message"):
                _fail(f"interrupted{_way_on(given)}", getattr(error, "exit_code", 2))
            shown = usage_message(error)
            _fail(shown, getattr(error, "exit_code", 2))
        raise
    if code == 130:  # what typer makes of Ctrl-C
        _fail_at_once(f"interrupted{_way_on(given)}", code)
    sys.exit(code if isinstance(code, int) else 0)


class Terminated(BaseException):
    """Somebody ends this process (SIGTERM)."""


def _end_of_process(*_: Any) -> None:
    raise Terminated


def _way_on(arguments: Sequence[str]) -> str:
    """What to type to go on with a command that was stopped; nothing for one that has no work."""
    from pipelines.commands.stages import STAGES

    name = next((part for part in arguments if not part.startswith("-")), "")
    if name not in {
        "run",
        "sft",
        "tune",
        "merge",
        "schedule",
        "quickstart",
        "export",
        *(s.name for s in STAGES),
    }:
        return ""
    resume = ["--resume"] if name == "tune" and "--resume" not in arguments else []
    return f"; go on with: {shlex.join(['sparsepo', *arguments, *resume])}"


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def _fail_at_once(message: str, code: int) -> None:
    """End without Python's own clearing up: a stage's thread may still be in Ray.

    It would run on while the interpreter is taken down, and crash. Nothing is lost: whoever holds
    files or processes has let go of them by now.
    """
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
