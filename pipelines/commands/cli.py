"""The command line.

Exit codes: 0 ok, 2 the user's input is wrong, 3 a quality gate failed, 130 interrupted (Ctrl-C),
143 terminated (SIGTERM), 1 anything else.
"""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipelines.commands.ending import Terminated, end_of_process, fail, fail_at_once, way_on
from pipelines.commands.job_commands import Address, follow_job, jobs
from pipelines.commands.looking_commands import plan, report, status, watch
from pipelines.commands.model_commands import (
    discriminator,
    evaluate,
    export,
    schedule,
    sft,
    weigh,
)
from pipelines.commands.printing import saying
from pipelines.commands.stage_commands import add_stage_commands
from pipelines.commands.sweep_commands import merge, quickstart, tune
from pipelines.commands.usage import usage_message
from pipelines.errors import GateFailed, StageFailed, UserError

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    no_args_is_help=True,
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    help="Token-masked preference optimisation on Ray: SparsePO, MaPO, TDPO, DPO.",
)
app.add_typer(jobs, name="job")


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
    cluster, job = start(
        command, program, address, name, env or (), public_env or (), saying(False)
    )
    if follow:
        follow_job(cluster, job)
    else:
        print(cluster.command("logs", job.name, "--follow"))


# In the order of --help.
_BEFORE: tuple[Callable[..., None], ...] = (
    report, export, weigh, evaluate, sft, discriminator, tune, merge, schedule,
)  # fmt: skip
_BEHIND: tuple[Callable[..., None], ...] = (plan, status, watch, quickstart)
for _command in _BEFORE:
    app.command()(_command)
app.command(context_settings={"ignore_unknown_options": True})(submit)
for _command in _BEHIND:
    app.command()(_command)
add_stage_commands(app)


@functools.cache
def _commands() -> Any:
    """All commands, with options and help, as click has them."""
    program = typer.main.get_command(app)
    groups = [program]
    while groups:
        for command in getattr(groups.pop(), "commands", {}).values():
            # Each by itself: a command that is asked alone, as `submit` does, keeps its -h.
            command.context_settings = _HELP | command.context_settings
            groups.append(command)
    return program


def main(arguments: list[str] | None = None) -> None:
    """Console entry point: turns errors into one line and an exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    command = _commands()
    given = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end_of_process)
    try:
        code = command(args=given, prog_name="sparsepo", standalone_mode=False)
    except Terminated:
        fail_at_once(f"terminated{way_on(given)}", 128 + signal.SIGTERM)
    except UserError as error:
        fail(str(error), 2)
    except GateFailed as error:
        fail(str(error), 3)
    except StageFailed as error:
        fail(str(error), 1)
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("click", "typer"):
            if not hasattr(error, "format_message"):
                fail(f"interrupted{way_on(given)}", getattr(error, "exit_code", 2))
            shown = usage_message(error)
            fail(shown, getattr(error, "exit_code", 2))
        raise
    if code == 130:  # what typer makes of Ctrl-C
        fail_at_once(f"interrupted{way_on(given)}", code)
    sys.exit(code if isinstance(code, int) else 0)
