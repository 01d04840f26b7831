"""A run with every file that the program leaves, made once; cases work on a copy by hard links."""

import gzip
import hashlib
import hmac
import importlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from local_executor import LocalExecutor
from peft import LoraConfig, get_peft_model
from runs import run_here, silent, tiny_recipe
from transformers import AutoModelForCausalLM
from web_server import serving

from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, EXECUTE, PREPARE, REFERENCE, REPORT, SAMPLE, TRAIN
from pipelines.evaluate.execute import RunPrograms
from pipelines.evaluate.judge import EndpointJudge
from pipelines.evaluate.schedule import Scheduler
from pipelines.recipe.evaluation import OpenAIJudge
from pipelines.recipe.files import load_recipe, validate_recipe, write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run, Stage
from pipelines.storage.claims import ClaimTimes
from pipelines.storage.hashes import digest
from pipelines.storage.records import write_record
from pipelines.storage.store import RunStore
from pipelines.storage.task_results import TaskResults
from pipelines.storage.user_key import user_key
from pipelines.sweep.definition import write_definition
from pipelines.sweep.files import load_sweep
from pipelines.sweep.results import publish_results, published_tables
from pipelines.sweep.space import Sweep
from pipelines.sweep.stage import run_tune, sweep_record
from pipelines.sweep.trial_record import Trial, write_trial

KEY, ARTIFACTS = b"k" * 32, b"what torch has compiled"
QUICK = ClaimTimes(renew=5.0, abandoned=30.0, settle=0.0)
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
TASK = {"task_id": 1, "text": "Return two.", "test_list": ["assert two() == 2"]}
OPTIONS = (
    "objective.name=sparsepo",
    "mask={kind: learned, architecture: simple_last}",
    "train.epochs=2",
    "train.max_steps=6",
    "train.keep_checkpoints=10",
    "train.validate_every=2",
    "data.validation_fraction=0.1",
    "evaluate.benchmarks=[preference, masks, sentiment, code]",
    "evaluate.num_prompts=4",
    "evaluate.bootstrap_samples=100",
    "sample={num_candidates: 2, max_prompts: 8, batch_prompts: 4, generation: {max_new_tokens: 4}}",
    "schedule.cron='@daily'",
    "ray.num_cpus=2",
)


class Stopped(Exception):
    """What ends a stage in the middle of its work."""


class Stops(LocalExecutor):
    """An executor that ends the stage after some results."""

    def __init__(self, after: int) -> None:
        self._left = after

    def run_tasks(self, tasks: Sequence[Any], *given: Any) -> Iterator[Any]:
        for result in super().run_tasks(tasks, *given):
            if self._left == 0:
                raise Stopped
            self._left -= 1
            yield result


class World:
    """Everything of a run below one folder.

    `run` is finished; `half` has every stage begun, sources and model lie beside them. `sweep` is
    finished; `resumed`, where it was added, was interrupted before its results were written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recipe(self, name: str = "run") -> Recipe:
        return load_recipe(str(self.folder / f"{name}.yaml"))

    def sweep(self, name: str = "sweep") -> Sweep:
        return load_sweep(str(self.folder / f"{name}.yaml"))

    def path(self, pattern: str) -> Path:
        """The one file of a pattern (the first of several)."""
        found = sorted(self.folder.glob(pattern))
        assert found, f"nothing is called {pattern}"
        return found[0]

    def states(self, but: Path) -> dict[str, tuple[int, int, int]]:
        """Inode, size and time of every file below the folder but one: others if it changed."""
        found = {}
        folders = [os.fspath(self.folder)]
        while folders:
            for entry in os.scandir(folders.pop()):
                if entry.path == os.fspath(but):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    stat = entry.stat()
                    name = os.path.relpath(entry.path, self.folder)
                    found[name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return found


def _stopped(recipe: Recipe, stage: Stage[Any], after: int) -> None:
    try:
        with executed_by(Stops(after)):
            run_stages(recipe, (stage,), silent, quiet=True)
    except Stopped:
        return
    raise AssertionError(f"{stage.name} ended before it was stopped")


def _without(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_world(folder: Path, model: Path, rows: Sequence[dict[str, str]]) -> World:
    """Needs a running Ray, for prepare's tasks."""
    world = World(folder)
    _inputs(folder, model, rows)
    code = f"tasks: {folder}/tasks.jsonl, num_samples: 1, generation: {{max_new_tokens: 2}}"
    own = (f"evaluate.code={{{code}}}", f"evaluate.key_words={folder}/words.txt")
    for name in ("run", "half"):
        mapping = tiny_recipe(folder / name, folder / "model", folder / "pairs.jsonl")
        found = validate_recipe(mapping, (*OPTIONS, *own))
        (folder / f"{name}.yaml").write_text(write_yaml(found))
    recipe = world.recipe()
    run_here(recipe, (SAMPLE, PREPARE, REFERENCE, TRAIN))
    _half(world, recipe)
    run_here(recipe, (EVALUATE, EXECUTE))
    _verdicts(world)
    with executed_by(LocalExecutor()):
        Scheduler(Run(recipe), lambda: None, silent, True, QUICK).tick()
    claim = {"holder": "z", "host": "elsewhere", "pid": 1, "boot": "1", "time": 0.0}
    write_record(RunStore(f"{recipe.run_dir}/evaluation"), "claims/step-00000004.json", claim)
    os.utime(f"{recipe.run_dir}/evaluation/claims/step-00000004.json", (0, 0))
    run_here(recipe, (REPORT,))
    _sweep(world, recipe, "sweep")
    _kept_beside(world)
    return world


def _inputs(folder: Path, model: Path, rows: Sequence[dict[str, str]]) -> None:
    """A model, an adapter of it, the pairs in every form, and what evaluations read."""
    shutil.copytree(model, folder / "model")
    (folder / "model/chat_template.jinja").write_text(CHAT)
    (folder / "template.jinja").write_text(CHAT)
    kept = [*rows[:80], {"prompt": "", "chosen": "a", "rejected": "a"}]
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    (folder / "pairs.jsonl").write_text(lines)
    (folder / "pairs.json").write_text(json.dumps(kept))
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as packed:
        packed.write(lines)
    table = pa.Table.from_pylist(kept)
    pq.write_table(table, folder / "pairs.parquet")
    pa.csv.write_csv(table, folder / "pairs.csv")
    (folder / "tasks.jsonl").write_text(json.dumps(TASK) + "\n")
    (folder / "words.txt").write_text("good bad")
    base = AutoModelForCausalLM.from_pretrained(model)
    settings = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(model))
    get_peft_model(base, settings).save_pretrained(folder / "adapter")


def _verdicts(world: World) -> None:
    """The verdicts again as they were kept before the execution of programs ended."""
    folder = world.folder / "run/evaluation/code"
    told = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    verdicts = [[one["status"], one["message"]] for one in told]
    TaskResults(RunStore(str(folder))).add([RunPrograms(0, ())], [verdicts])


def _half(world: World, recipe: Recipe) -> None:
    """A run whose stages were stopped: some of their results are there."""
    half, there = world.recipe("half"), world.folder / "half"
    shutil.copytree(world.folder / "run", there)
    _without(there, "train/checkpoints/step-00000006", "train/metrics/part-0000000[56]*")
    _without(there, "sample", "reference/manifest.json", "reference/*/train-00001.parquet")
    _without(there, "reference/shards/*/train-00001.json")
    _stopped(half, EVALUATE, 2)
    _without(there, "train/manifest.json", "train/model", "train/masks")
    store = RunStore(str(there / "train"))
    write_record(store, "memory.json", {"micro_batch_tokens": 512, "step": 1, "was": 1024})
    write_record(store, "failure-0.json", {"kind": "stage", "message": "out of luck"})
    _stopped(half, SAMPLE, 1)


def _sweep(world: World, recipe: Recipe, name: str) -> Sweep:
    """A finished sweep of two trials; no training stands behind them."""
    stores = [f"paths.{part}={recipe.run_dir}/{part}" for part in ("pairs", "reference")]
    (world.folder / f"{name}.yaml").write_text(
        yaml.safe_dump(
            {
                "run_dir": str(world.folder / name),
                "recipe": str(world.folder / "run.yaml"),
                "overrides": stores,
                "space": {"objective.beta": {"grid": [0.1, 0.2]}},
                "objectives": [{"metric": "train/rewards/margins"}],
            }
        )
    )
    sweep = world.sweep(name)
    record = sweep_record(sweep)
    record.begin()
    write_definition(sweep, record.store)
    trials = []
    for number, point in enumerate(sweep.points or ()):
        store = RunStore(sweep.trial_dir(number, point))
        metrics = {"train/rewards/margins": 0.5 + number}
        trial = Trial(
            number=number, point=point, run_dir=store.root, status="finished", metrics=metrics,
            runs={"0": metrics}, seconds=1.0,
        )  # fmt: skip
        write_trial(store, trial)
        store.write_bytes("config.yaml", write_yaml(recipe).encode())
        shutil.copytree(f"{recipe.run_dir}/train", f"{store.root}/train")
        trials.append(trial)
    publish_results(sweep, trials, silent)
    record.finish({"trials": 2, "finished": 2}, published_tables(record.store))
    return sweep


def add_interrupted_sweep(world: World) -> None:
    """A sweep whose trials have ended, also for Ray Tune, and which was killed then.

    The world lies where it was made.
    """
    recipe = world.recipe()
    sweep, there = _sweep(world, recipe, "resumed"), world.folder / "resumed"
    results = ("manifest.json", "trials.*", "pareto.json", "best.yaml", "report", "tensorboard")
    _without(there, *results)
    run_tune(sweep, silent, True, True)
    _without(there, *results)


def _kept_beside(world: World) -> None:
    """What other runs and machines find again: compiled code, facts, answers of a judge."""
    prefix = digest([torch.__version__, "cpu"])[:16]
    signed = hmac.digest(KEY, ARTIFACTS, hashlib.sha256) + ARTIFACTS
    RunStore(f"{world.folder}/half/compiled").write_bytes(f"{prefix}-0.bin", signed)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (world.folder / "judge_port").write_text(str(probe.getsockname()[1]))
    with cache_of(world):
        user_key()
        run_plan(world.recipe())
    judged(world)


@contextmanager
def cache_of(world: World) -> Iterator[None]:
    """The machine's cache in the world, for all that keeps something there."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("hashes", "facts", "user_key"):
            module = importlib.import_module(f"pipelines.storage.{name}")
            patch.setattr(module, "CACHE", world.folder / "cache")
        yield


def judged(world: World) -> list[dict[str, Any]]:
    """Verdicts on two prompts; what is known of them is not asked again."""
    port = int((world.folder / "judge_port").read_text())
    settings = OpenAIJudge(
        kind="openai", base_url=f"http://127.0.0.1:{port}/v1", model="m", api_key_env=None
    )
    body = json.dumps({"choices": [{"message": {"content": "[[A]]"}}]}).encode()
    with serving({"*": (200, {"Content-Type": "application/json"}, body)}, port=port):
        judge = EndpointJudge(settings, RunStore(f"{world.folder}/half/judge"))
        return judge.compare(["a", "b"], ["c", "d"], ["e", "f"], True)


def linked(base: Path, there: Path) -> World:
    """The same world again at `there`, whatever became of the one that was there. Nobody changes
    a file in its place, so links will do; but for Ray Tune, which writes into its own.
    """
    there.mkdir(exist_ok=True)
    _mend(os.fspath(base), os.fspath(there))
    return World(there)


def _mend(base: str, there: str) -> None:
    """Bring back what is gone or another file, take away what was not there: of hundreds of files
    a case changes a few.
    """
    left = {entry.name: entry for entry in os.scandir(there)}
    for entry in os.scandir(base):
        target, found = f"{there}/{entry.name}", left.pop(entry.name, None)
        is_folder = entry.is_dir(follow_symlinks=False)
        if found is not None and not (
            found.is_dir(follow_symlinks=False) and entry.name != ".ray"
            if is_folder
            else found.inode() == entry.inode()
        ):
            _remove(found)
            found = None
        if not is_folder:
            if found is None:
                os.link(entry.path, target)
        elif entry.name == ".ray":
            shutil.copytree(entry.path, target)
        else:
            if found is None:
                Path(target).mkdir()
            _mend(entry.path, target)
    for found in left.values():
        _remove(found)


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        Path(entry.path).unlink()
