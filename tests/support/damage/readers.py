"""Everything that reads a run, as functions of a world: what they find, as values to compare."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from local_executor import LocalExecutor
from runs import train_here

from damage.world import KEY, QUICK, World, cache_of, judged
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.plan import run_plan
from pipelines.commands.report import run_report
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, EXECUTE, REFERENCE, RUN, SAMPLE
from pipelines.commands.status import run_status, run_timeline
from pipelines.commands.watch import Pages
from pipelines.errors import UserError
from pipelines.evaluate.schedule import Scheduler
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.pairs.show import shown
from pipelines.recipe.files import load_recipe
from pipelines.recipe.stage import Run, Stage
from pipelines.reference.stage import check_reference
from pipelines.storage.store import RunStore
from pipelines.storage.user_key import user_key
from pipelines.sweep.stage import run_tune
from pipelines.train.compilation import Compilation

Said = list[str]
Reader = Callable[[World, Said], Any]


_GATES = "evaluation/checkpoints/step-00000002/gates.json"


def after(before: Callable[[World], object]) -> Callable[[Reader], Reader]:
    """Marks a reader of a world in which something has happened before."""

    def mark(reader: Reader) -> Reader:
        reader.before = before  # type: ignore[attr-defined]
        return reader

    return mark


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def _done(value: Any) -> Any:
    """Results without what is another each time."""
    if isinstance(value, dict):
        left_out = ("written_at", "time", "versions", "seconds", "fingerprint")
        return {k: _done(v) for k, v in value.items() if k not in left_out and "second" not in k}
    return [_done(v) for v in value] if isinstance(value, list) else value


def _stages(world: World, said: Said, name: str, *stages: Stage[Any]) -> dict[str, str]:
    with executed_by(LocalExecutor()):
        return run_stages(world.recipe(name), stages, said.append, quiet=True)


def status(world: World, said: Said) -> Any:
    return run_status(str(world.folder / "run"))


def status_half(world: World, said: Said) -> Any:
    return run_status(str(world.folder / "half"))


def timeline(world: World, said: Said) -> Any:
    return run_timeline(str(world.folder / "run"))


def report(world: World, said: Said) -> Any:
    run_report([str(world.folder / "run")], str(world.folder / "out"))
    folder = world.folder / "out" / "report"
    return json.loads((folder / "results.json").read_text()), (folder / "index.html").read_text()


def watch(world: World, said: Said) -> Any:
    """What the page shows; what is wrong with files it says in lines."""
    answer = Pages(str(world.folder / "run")).answer("data", {})
    assert answer is not None
    told = json.loads(answer.content)
    state, held_out = told["state"], told["rest"]["held_out"]
    said += [state["headline"], *state["damage"], *held_out["absent"]]
    return (
        told["curves"],
        told["rest"]["groups"],
        held_out.get("samples"),
        held_out.get("responses"),
    )


def plan(world: World, said: Said) -> Any:
    return run_plan(world.recipe())


def _new(name: str, *overrides: str) -> Reader:
    """`plan` of a run that is not there yet, of other inputs."""

    def read(world: World, said: Said) -> Any:
        given = [text.replace("WORLD", str(world.folder)) for text in overrides]
        return run_plan(load_recipe(str(world.folder / f"{name}.yaml"), given))

    read.__name__ = f"plan of {overrides[-1]}"
    return read


def of_source(file: str) -> Reader:
    return _new("run", "run_dir=WORLD/new", f"data.sources=[{{path: WORLD/{file}}}]")


of_adapter = _new("run", "run_dir=WORLD/new", "model.name_or_path=WORLD/adapter")
of_template = _new("run", "run_dir=WORLD/new", "data.chat_template=WORLD/template.jinja")
of_files = _new("run", "run_dir=WORLD/new")
of_model = _new("run", "run_dir=WORLD/new", "model.name_or_path=WORLD/model")


def load_adapter(world: World, said: Said) -> Any:
    load_causal_lm(str(world.folder / "adapter"), torch.float32)


def load_model(world: World, said: Said) -> Any:
    load_tokenizer(str(world.folder / "model"))
    load_causal_lm(str(world.folder / "model"), torch.float32)


def run(world: World, said: Said) -> Any:
    return _stages(world, said, "run", *RUN), hashes(world.folder, "run/report/results.json")


def show(world: World, said: Said) -> Any:
    return list(shown(Run(world.recipe()), 3, False))


def check(world: World, said: Said) -> Any:
    """As `reference --check`, which ends with what it found."""
    _, damage = check_reference(Run(world.recipe()), quiet=True)
    if damage:
        raise UserError(damage[0].message)


def reference(world: World, said: Said) -> Any:
    _stages(world, said, "half", REFERENCE)
    return hashes(world.folder / "half/reference", "*/*.parquet", "lm_head*")


def train(world: World, said: Said) -> Any:
    """Resume from step 4."""
    _stages(world, said, "half", REFERENCE)
    counts = train_here(world.recipe("half"))["counts"]
    said += counts["warnings"]
    return hashes(world.folder / "half/train", "model/*.safetensors", "masks/*.safetensors")


def _lend_training(world: World) -> None:
    """A finished training for the stages after it, where that of `half` is not."""
    for stage in ("reference", "train"):
        shutil.rmtree(world.folder / "half" / stage)
        shutil.copytree(world.folder / "run" / stage, world.folder / "half" / stage)


@after(_lend_training)
def evaluate(world: World, said: Said) -> Any:
    """Go on with parts that are there."""
    _stages(world, said, "half", EVALUATE)
    folder = world.folder / "half/evaluation"
    return hashes(folder, "samples/*", "*.json") | {"manifest.json": None, "started.json": None}


@after(lambda world: shutil.rmtree(world.folder / "run/evaluation"))
def evaluate_again(world: World, said: Said) -> Any:
    """An evaluation whose results are to be made anew, by the trained model."""
    _stages(world, said, "run", EVALUATE)
    folder = world.folder / "run/evaluation"
    return hashes(folder, "samples/*", "preference.json", "masks.json")


@after(lambda world: (world.folder / "run/evaluation/code/manifest.json").unlink())
def execute(world: World, said: Said) -> Any:
    _stages(world, said, "run", EXECUTE)
    return hashes(world.folder / "run/evaluation/code", "verdicts.jsonl")


def sample(world: World, said: Said) -> Any:
    _stages(world, said, "half", SAMPLE)
    return hashes(world.folder / "half/sample", "candidates.jsonl")


@after(lambda world: shutil.rmtree(world.folder / "run/evaluation/checkpoints/step-00000004"))
def schedule(world: World, said: Said) -> Any:
    """A tick that one checkpoint is left for."""
    with executed_by(LocalExecutor()):
        scheduler = Scheduler(Run(world.recipe()), lambda: None, said.append, True, QUICK)
        scheduler._first_time()
        outcome = scheduler.tick()
    return outcome.evaluated, outcome.failures


@after(lambda world: (world.folder / "run" / _GATES).unlink())
def look_at_gates(world: World, said: Said) -> Any:
    """A tick after a scheduler that was killed before it looked at the gates."""
    return schedule(world, said)


def sweep_status(world: World, said: Said) -> Any:
    return run_status(str(world.folder / "sweep"))


def tune(world: World, said: Said) -> Any:
    """Of a finished sweep: its results are written again."""
    run_tune(world.sweep(), said.append, True, False)
    return hashes(world.folder / "sweep", "best.yaml", "trials.csv", "pareto.json")


def resume(world: World, said: Said) -> Any:
    """Of an interrupted sweep: Ray Tune goes on, or begins anew."""
    run_tune(world.sweep("resumed"), said.append, True, True)
    return hashes(world.folder / "resumed", "best.yaml", "trials.csv", "pareto.json")


def compiled(world: World, said: Said) -> Any:
    """As a rank looks for what others have compiled."""
    store = RunStore(f"{world.folder}/half/compiled")
    Compilation(store, KEY, torch.device("cpu")).close()


def judge(world: World, said: Said) -> Any:
    return judged(world)


def cached(world: World, said: Said) -> Any:
    """What is known of the machine's files, and the user's key."""
    with cache_of(world):
        assert len(user_key()) == len(KEY)
        return run_plan(world.recipe())
