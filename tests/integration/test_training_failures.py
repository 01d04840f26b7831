"""Training under kill -9 and without memory: real processes, a real local cluster of several
nodes.
"""

import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from checkout import ROOT
from processes import ended
from ranks import Ranks
from ray_tables import living_actors
from runs import MakeRecipe, run_here, trainer_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.commands.status import run_status
from pipelines.pairs.table import open_pairs
from pipelines.recipe.files import load_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.fit import finish_training
from pipelines.train.metrics import read_metrics
from pipelines.train.worker import note_memory

sys.path.append(str(ROOT / "benchmarks"))

import kill_trials

pytestmark = pytest.mark.slow
STEPS = 4


def test_killed_workers_change_no_bit(tmp_path: Path, ranks: Ranks) -> None:
    """A fixed seed of benchmarks/kill_trials.py, and a node that never comes back: one worker goes
    on, to rounding. What they are compared with was trained without Ray.

    Hosts that die are in test_many_hosts.py, drivers in test_kill.py.
    """
    kill_trials.write_world(tmp_path)
    whole = load_recipe(str(kill_trials.write_recipe(tmp_path, "whole-2-ddp", 2, "ddp", 30)))
    run_here(whole, (PREPARE, REFERENCE))
    run = Run(whole)
    run.record(TRAIN).begin()
    ranks.train(whole)
    finish_training(run, run.record(TRAIN), open_pairs(run).num_rows("train"))
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("RAY_ADDRESS", "RAY_API_SERVER"))
    } | {"PYTHONPATH": str(ROOT)}
    done = ended(
        [sys.executable, "benchmarks/kill_trials.py", "--seeds", "0,3",
         "--targets", "worker,shrink", "--work", str(tmp_path)],
        environment, ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    trials = {t["target"]: t for t in json.loads(done.stdout.splitlines()[-1])["trials"]}
    assert trials["worker"]["identical"] and trials["worker"]["difference"] == 0, trials["worker"]
    assert trials["shrink"]["difference"] < 1e-4 and not trials["shrink"]["identical"], trials[
        "shrink"
    ]
    assert all(t["log_is_whole"] and 0 < t["killed_after_step"] < 30 for t in trials.values())


@pytest.fixture(scope="module")
def wide(
    recipe_in: MakeRecipe,
    model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> MakeRecipe:
    """A model whose vocabulary of 50,000 makes the size of a micro-batch felt: 0.2 MB of logits
    per token, several times. All runs have the same pairs and reference.
    """
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = AutoConfig.for_model(
        "llama", vocab_size=50000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "wide")
    tokenizer.save_pretrained(folder / "wide")

    def make(name: str, *overrides: str) -> Recipe:
        options = (
            f"train.max_steps={STEPS}",
            "train.epochs=9",
            "train.global_batch_size=64",
            "train.micro_batch_tokens=2048",
            "data.test_fraction=0",
        )
        paths = {"pairs": str(folder / "pairs"), "reference": str(folder / "reference")}
        recipe = recipe_in(
            folder / name, f"model.name_or_path={folder / 'wide'}", *options,
            "train.cpus_per_worker=1", "train.checkpoint_every=1", *overrides,
            paths=paths,
        )  # fmt: skip
        run_here(recipe, (PREPARE, REFERENCE))
        return recipe

    return make


def train_without_memory(recipe: Recipe) -> None:
    """Train with two workers, and take the memory of one of them away once the first checkpoint
    is there.
    """
    outcome: list[BaseException | None] = []

    def body() -> None:
        try:
            TRAIN.run(Run(recipe), print, True)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    train = Path(recipe.run_dir) / "train"
    process, lowest = None, sys.maxsize
    for _ in while_it_goes_on(thread, train):
        if process is None:
            process = youngest_worker()
            time.sleep(0.5)  # the dashboard works for every answer
        elif list(train.glob("checkpoints/step-*/state.json")) and not has_noted(train):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                # Room for everything but a chunk of logits: beside what it takes between two.
                lowest = min(lowest, process.memory_info().vms)
                room = (lowest + 60 * 2**20, resource.RLIM_INFINITY)
                resource.prlimit(process.pid, resource.RLIMIT_AS, room)
    if outcome[0] is not None:
        raise outcome[0]


def has_noted(train: Path) -> bool:
    """Whether a worker has found its memory gone."""
    return (train / "memory.json").exists()


def while_it_goes_on(thread: threading.Thread, train: Path) -> Iterator[None]:
    """Often, until the thread ends; fails if training publishes nothing new for long."""
    seen, limit, next_look = -1, 0.0, 0.0
    while thread.is_alive():
        if time.monotonic() >= next_look:
            # os.walk passes over folders that go while it looks.
            published = sum(len(names) for _, _, names in os.walk(train))
            next_look = time.monotonic() + 1
            if published != seen:
                seen, limit = published, time.monotonic() + 180
        assert time.monotonic() < limit, "training hangs"
        yield
        time.sleep(0.02)


def youngest_worker() -> psutil.Process | None:
    """Of two training workers, once both are there."""
    pids = [a.pid for a in living_actors() if "RayTrainWorker" in a.class_name and a.is_running]
    return psutil.Process(max(pids)) if len(pids) == 2 else None


def test_memory_that_ends_on_one_rank_halves_the_micro_batches(wide: MakeRecipe) -> None:
    """The other rank does not wait for ever; status says what happened; the losses are those of
    a run that had the memory.
    """
    recipe = wide("halved", "train.num_workers=2", "train.auto_microbatch=true")
    train_without_memory(recipe)
    store = RunStore(f"{recipe.run_dir}/train")
    noted = store.read_json("memory.json")
    assert (noted["was"], noted["micro_batch_tokens"]) == (2048, 1024)
    store.delete("manifest.json")
    (row,) = [row for row in run_status(recipe.run_dir) if row["stage"] == "train"]
    assert (
        f"out of memory at step {noted['step']}: micro-batches of 1024 tokens since, 2048 before"
        in row["detail"]
    )
    whole = wide("whole")
    trainer_of(whole).run(lambda metrics: None)
    losses = [
        torch.tensor(
            [r["loss"] for r in read_metrics(RunStore(f"{run.run_dir}/train")) if "kind" not in r]
        )
        for run in (recipe, whole)
    ]
    assert len(losses[0]) == STEPS
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


def test_memory_that_ends_names_the_setting(wide: MakeRecipe) -> None:
    """What a worker leaves for the driver, in front of its first step; that an error ends the
    run is in test_training_refusals.py.
    """
    trainer = trainer_of(wide("named"))
    line = str(note_memory(trainer))
    trainer.close()
    assert line.startswith(
        "out of memory at step 1 with micro-batches of 2048 tokens: set "
        "train.micro_batch_tokens=1024 "
    )
    assert not trainer.store.exists("memory.json")
