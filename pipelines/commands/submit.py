"""submit: any command as a job of a Ray cluster.

The job's package holds this installation's three source packages and the checked recipe only.
Data, models and run directories stay where every machine of the cluster sees them. A job has a
name that a repeated submission finds again, so that retries do not run it twice.
"""

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pipelines.cluster import Cluster, Job
from pipelines.commands.job_environment import job_environment
from pipelines.commands.stages import stages_of
from pipelines.errors import UserError
from pipelines.merge import load_merge
from pipelines.models import check_readers, models_are_here
from pipelines.recipe import MERGE, Say, load_recipe, to_yaml, write_yaml
from pipelines.sweep import RECIPE, is_sweep, load_sweep

PACKAGES = ("sparsepo", "pipelines", "evaluation")
PACKAGE_LIMIT_BYTES = 20 * 2**20  # the code and a recipe are one; more is a mistake
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}")


def submit(
    command: Sequence[str],
    program: Any,
    address: str | None,
    name: str | None,
    forwarded: Sequence[str],
    public: Sequence[str],
    say: Say,
) -> tuple[Cluster, Job]:
    """Start a command as a job, or find the job that already runs it.

    Args:
        command: as after `sparsepo`. program: its click command, which checks the options. name: of
            the job; made from command and recipe by default. forwarded, public:
            NAME or NAME=VALUE of environment variables for the job (job_environment.py).
    Raises: UserError for a command that would fail on the cluster too, before anything is sent.
    """
    environment = job_environment(forwarded, public, say)
    with packaged_command(command, program) as (package, resolved):
        size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
        if size > PACKAGE_LIMIT_BYTES:
            raise UserError(
                f"the package has {size / 2**20:.0f} MiB: at most {PACKAGE_LIMIT_BYTES // 2**20} "
                "are sent"
            )
        digest = _digest(resolved, package)
        name = _checked_name(name) if name else f"sparsepo-{command[0]}-{digest[:10]}"
        cluster = Cluster(address, say)
        before = cluster.attempts(name)
        if before and not before[-1].ended:
            if before[-1].digest != digest:
                raise UserError(
                    f"--name {name}: {before[-1].id} runs another command or recipe (`sparsepo "
                    f"{before[-1].command}`); choose another name, or end it with "
                    f"`{cluster.command('stop', name)}`"
                )
            say(
                f"submit: {before[-1].id} runs already ({before[-1].status.lower()}); not started "
                "twice"
            )
            return cluster, before[-1]
        identity = f"{name}-{len(before) + 1}" if before else name
        job = cluster.start(
            Job(identity, name, "PENDING", shlex.join(command), digest),
            resolved,
            package,
            environment,
        )
        say(f"submit: {job.id} on {cluster.address}: {size / 2**10:.0f} KiB of code and recipe")
    return cluster, job


@contextlib.contextmanager
def packaged_command(command: Sequence[str], program: Any) -> Iterator[tuple[Path, list[str]]]:
    """(directory to send, command to run in it).

    The recipe with its overrides becomes recipe.yaml, a sweep sweep.yaml, a merge merge.yaml.
    """
    if not command or command[0] not in program.commands or command[0] in ("submit", "job"):
        allowed = ", ".join(sorted(set(program.commands) - {"submit", "job"}))
        raise UserError(
            f"submit {' '.join(command) or '(nothing)'}: the command must be one of {allowed}"
        )
    parameters = _parameters(program.commands[command[0]], command)
    with tempfile.TemporaryDirectory(prefix="sparsepo-package-") as folder:
        package = Path(folder)
        for source in PACKAGES:
            shutil.copytree(
                Path(str(resources.files(source))),
                package / source,
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"),
            )
        if parameters.get("model") is not None:
            from pipelines.commands.evaluation import Flags

            flags = Flags.of(parameters)
            recipe = flags.recipe(
                parameters["recipe"], parameters["overrides"] or (), parameters["name"]
            )
            for stage in flags.stages():
                stage.check_recipe(recipe)
            (package / "recipe.yaml").write_text(write_yaml(recipe))
            kept = ("--quiet", "-q", "--allow-code-execution")
            yield package, ["run", "recipe.yaml", *(word for word in command if word in kept)]
            return
        if (merge := parameters.get("merge_file")) is not None:
            given = parameters.get("overrides") or []
            (package / MERGE).write_text(to_yaml(load_merge(merge, given).model_dump(mode="json")))
            yield package, _replaced(command, merge, given, MERGE)
            return
        file, overrides = (
            parameters.get("sweep") or parameters.get("recipe"),
            parameters.get("overrides") or [],
        )
        if file is None:
            yield package, list(command)
        elif "sweep" in parameters or is_sweep(file):
            yield (
                package,
                _replaced(
                    command,
                    file,
                    overrides,
                    _write_sweep(file, overrides, parameters.get("shard"), package),
                ),
            )
        else:
            recipe = load_recipe(file, overrides)
            stages = stages_of(command[0])
            for stage in stages:
                stage.check_recipe(recipe)
            if stages and models_are_here(recipe):
                check_readers(recipe)
            (package / "recipe.yaml").write_text(write_yaml(recipe))
            yield package, _replaced(command, file, overrides, "recipe.yaml")


def _write_sweep(file: str, overrides: Sequence[str], shard: str | None, package: Path) -> str:
    """The sweep file with its overrides; the recipes it names go along."""
    sweep = load_sweep(file, overrides, shard)
    folder = package / "recipes"

    def carried(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: carried(item) for key, item in value.items()}
        if isinstance(value, list):
            return [carried(item) for item in value]
        if (
            not isinstance(value, str)
            or not value.endswith((".yaml", ".yml"))
            or not Path(value).is_file()
        ):
            return value
        folder.mkdir(exist_ok=True)
        target = folder / Path(value).name
        text = write_yaml(load_recipe(value))
        if target.exists() and target.read_text() != text:
            raise UserError(f"sweep: two different recipes are called {target.name}: rename one")
        target.write_text(text)
        return f"recipes/{target.name}"

    mapping = sweep.model_dump(mode="json", exclude_unset=True)
    mapping[RECIPE] = carried(mapping[RECIPE])
    mapping["space"] = carried(mapping["space"])
    (package / "sweep.yaml").write_text(to_yaml(mapping))
    return "sweep.yaml"


def _parameters(program: Any, command: Sequence[str]) -> dict[str, Any]:
    """What the command's own parser makes of its arguments; it refuses what it does not know."""
    found: dict[str, Any] = program.make_context(f"sparsepo {command[0]}", list(command[1:])).params
    return found


def _replaced(
    command: Sequence[str], file: str, overrides: Sequence[str], target: str
) -> list[str]:
    """The command with its file replaced and its overrides left out: they are in the file."""
    rest = list(command[1:])
    rest[rest.index(file)] = target
    for item in overrides:
        rest.remove(item)
    return [command[0], *rest]


def _digest(command: Sequence[str], package: Path) -> str:
    """The same for the same command and recipe: retries find their job."""
    digest = hashlib.sha256(json.dumps(list(command)).encode())
    for file in sorted([*package.glob("*.yaml"), *package.glob("recipes/*.yaml")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r}: letters, digits, '.', '_' and '-', 100 at most, the first a letter "
            "or digit"
        )
    return name
