"""What the systems beside the objectives leave: merges, discriminators, edits, controls."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from local_executor import LocalExecutor
from runs import run_here, silent
from web_server import serving

from damage.world import Stopped, Stops, World
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.discriminator import editing_recipe, run_discriminator
from pipelines.commands.stages import EDIT, EVALUATE, PREPARE, REPORT
from pipelines.merge.files import load_merge
from pipelines.merge.schema import Merge
from pipelines.merge.stage import run_merge
from pipelines.models.control import Control, ControlText
from pipelines.recipe.files import validate_recipe, write_yaml
from pipelines.recipe.schema import Recipe

_HEAD = "held_out: validation, max_steps: 4, checkpoint_every: 2, batch_pairs: 8"
_MAP = {"num_pairs": 8, "steps": 2, "batch_pairs": 4}


def add_other_systems(world: World) -> None:
    """Folders beside `run`, whose pairs and model they share.

    `merged` is a finished merge, `merging` one that was stopped in its second point; so are the
    discriminators `judged` and `judging`. `reading` reads the first, `edited` has an editor's
    edits, `controlled` was evaluated behind two controls.
    """
    _merges(world)
    pairs = f"paths.pairs={world.folder}/run/pairs"
    for name in ("judged", "judging"):
        _recipe(world, name, pairs, f"discriminator={{{_HEAD}}}")
    judge(world, "judged")
    _stop_judging(world)
    head = f"model.discriminator={world.folder}/judged/discriminator/head"
    weighs = ("objective={name: weighted}", "mask={kind: discriminator}")
    _recipe(world, "reading", pairs, head, *weighs)
    port = (world.folder / "judge_port").read_text()
    editor = f"editor: {{kind: openai, base_url: 'http://127.0.0.1:{port}/v1', model: m}}"
    edited = _recipe(world, "edited", pairs, f"discriminator={{{_HEAD}, {editor}}}")
    with editor_of(world):
        run_here(editing_recipe(edited), (PREPARE, EDIT))
    _controlled(world, pairs)


def _controlled(world: World, pairs: str) -> None:
    """An evaluation of a model that says it was tuned with a control."""
    shutil.copytree(world.folder / "model", world.folder / "obedient")
    good, bad = ControlText("a good one", (5,)), ControlText("a bad one", (6,))
    Control(good, bad, (5, 6)).write(world.folder / "obedient")
    recipe = _recipe(
        world, "controlled", pairs, f"evaluate.model={world.folder}/obedient",
        "evaluate.benchmarks=[sentiment]", "evaluate.control=[good, bad]",
    )  # fmt: skip
    run_here(recipe, (EVALUATE, REPORT))


def _recipe(world: World, name: str, *overrides: str) -> Recipe:
    """The recipe of `run` with changes, as a file of its own."""
    mapping = yaml.safe_load((world.folder / "run.yaml").read_text())
    found = validate_recipe(mapping, (f"run_dir={world.folder / name}", *overrides))
    (world.folder / f"{name}.yaml").write_text(write_yaml(found))
    return found


def judge(world: World, name: str) -> str:
    """Train the discriminator of a recipe, or go on with it."""
    with executed_by(LocalExecutor()):
        return run_discriminator(world.recipe(name), silent, quiet=True)


def _stop_judging(world: World) -> None:
    """A discriminator that was stopped after its first checkpoint: its states are there."""
    states = len(list((world.folder / "judged/discriminator/reference").glob("*/*.parquet")))
    try:
        with executed_by(Stops(states)):
            run_discriminator(world.recipe("judging"), silent, quiet=True)
    except Stopped:
        return
    raise AssertionError("the discriminator ended before it was stopped")


def merge_of(world: World, name: str) -> Merge:
    return load_merge(str(world.folder / f"{name}.yaml"))


def _merges(world: World) -> None:
    rows = [{"prompt": f"Film {i}", "lambda": [0.25, 0.75]} for i in range(2)]
    (world.folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("merged", "merging"):
        mapping: dict[str, Any] = {
            "run_dir": str(world.folder / name),
            "models": [str(world.folder / "run"), str(world.folder / "model")],
            "forms": ["mixture"],
            "weights": [[0.5, 0.5]],
            "weights_column": "lambda",
            "prompts": {"path": str(world.folder / "asked.jsonl")},
            "map": _MAP,
            "generation": {"max_new_tokens": 2},
            "batch_prompts": 1,
            "ray": {"num_cpus": 2},
        }
        (world.folder / f"{name}.yaml").write_text(yaml.safe_dump(mapping))
    with executed_by(LocalExecutor()):
        run_merge(merge_of(world, "merged"), silent, quiet=True)
    try:
        with executed_by(Stops(4)):  # the map, a point, and one of two tasks of another
            run_merge(merge_of(world, "merging"), silent, quiet=True)
    except Stopped:
        return
    raise AssertionError("the merge ended before it was stopped")


@contextmanager
def editor_of(world: World) -> Iterator[list[str]]:
    """An endpoint that edits every reply to the same words; what it heard."""
    content = {"role": "assistant", "content": "<reply>It was fine .</reply>"}
    body = json.dumps({"choices": [{"message": content}]}).encode()
    port = int((world.folder / "judge_port").read_text())
    with serving({"*": (200, {"Content-Type": "application/json"}, body)}, port=port) as server:
        yield server.heard
