"""Readers of what the systems beside the objectives leave, as those of `readers.py`."""

import json
import shutil
from typing import Any

import torch
from local_executor import LocalExecutor

from damage.other_systems import editor_of, judge, merge_of
from damage.readers import Reader, Said, after, hashes
from damage.world import World
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands.discriminator import edited_recipe, editing_recipe, plan_discriminator
from pipelines.commands.plan import plan_merge, run_plan
from pipelines.commands.report import run_report
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EDIT, EVALUATE, PREPARE, REFERENCE
from pipelines.commands.status import run_status
from pipelines.merge.stage import run_merge
from pipelines.recipe.stage import Run
from pipelines.reference.discriminators import load_discriminator


def _status(name: str, below: str = "") -> Reader:
    def read(world: World, said: Said) -> Any:
        return run_status(f"{world.folder / name}{below}")

    read.__name__ = f"status of {name}{below}"
    return read


status_merged, status_merging = _status("merged"), _status("merging")
status_judged, status_judging = _status("judged"), _status("judging", "/discriminator")
status_edited = _status("edited", "/discriminator/editor")


def plan_merged(world: World, said: Said) -> Any:
    found = plan_merge(merge_of(world, "merged"))
    return found["points"]["names"], found["points"]["left"], found["maps"]


def _merge(name: str) -> Reader:
    def read(world: World, said: Said) -> Any:
        with executed_by(LocalExecutor()):
            run_merge(merge_of(world, name), said.append, quiet=True)
        results = json.loads((world.folder / name / "results.json").read_text())
        return results["points"], hashes(
            world.folder / name, "points/*/samples.jsonl", "maps/*/*.s*"
        )

    read.__name__ = f"merge of {name}"
    return read


merge_again, merge_on = _merge("merged"), _merge("merging")


@after(lambda world: shutil.rmtree(world.folder / "merged/points/mixture-map"))
def merge_by_map(world: World, said: Said) -> Any:
    """The map is read again, and not fitted again."""
    return merge_again(world, said)


def judge_again(world: World, said: Said) -> Any:
    """A finished discriminator's command."""
    judge(world, "judged")
    return hashes(world.folder / "judged/discriminator/head", "discriminator.*", "figures.json")


def judge_on(world: World, said: Said) -> Any:
    """Go on from the checkpoint."""
    judge(world, "judging")
    return hashes(world.folder / "judging/discriminator/head", "discriminator.*", "figures.json")


def plan_reading(world: World, said: Said) -> Any:
    return run_plan(world.recipe("reading"))["reference"]


def load_head(world: World, said: Said) -> Any:
    head = load_discriminator(f"{world.folder}/judged/discriminator/head")
    return [value.tolist() for value in head.state_dict().values()]


def reference_reading(world: World, said: Said) -> Any:
    """Values of tokens by the discriminator, and what the report will say of it."""
    torch.set_num_threads(1)
    recipe = world.recipe("reading")
    with executed_by(LocalExecutor()):
        run_stages(recipe, (REFERENCE,), said.append, quiet=True)
    manifest = Run(recipe).record(REFERENCE).manifest()
    found = hashes(world.folder / "reading/reference", "*/*.parquet")
    return found, manifest["counts"].get("discriminator")


def plan_edited(world: World, said: Said) -> Any:
    """Of the discriminator that learns from the edits."""
    return plan_discriminator(world.recipe("edited"), None, "edited")


def prepare_edited(world: World, said: Said) -> Any:
    """The command's own order: the edits, then their pairs."""
    recipe = world.recipe("edited")
    with executed_by(LocalExecutor()):
        run_stages(editing_recipe(recipe), (PREPARE, EDIT), said.append, quiet=True)
        run_stages(edited_recipe(recipe), (PREPARE,), said.append, quiet=True)
    return hashes(world.folder / "edited/discriminator/pairs", "*.parquet")


def _without_edits(world: World) -> None:
    folder = world.folder / "edited/discriminator/editor/edits"
    for name in ("manifest.json", "train.jsonl", "validation.jsonl"):
        (folder / name).unlink()


@after(_without_edits)
def edit_again(world: World, said: Said) -> Any:
    """Answers that are there are not asked for again; the others are the same."""
    with editor_of(world) as heard, executed_by(LocalExecutor()):
        run_stages(editing_recipe(world.recipe("edited")), (EDIT,), said.append, quiet=True)
    assert len(heard) < 60, "not all answers were asked for again"
    return hashes(world.folder / "edited/discriminator/editor/edits", "*.jsonl")


def report_controlled(world: World, said: Said) -> Any:
    run_report([str(world.folder / "controlled")], str(world.folder / "out"))
    folder = world.folder / "out" / "report"
    return json.loads((folder / "results.json").read_text()), (folder / "index.html").read_text()


@after(lambda world: shutil.rmtree(world.folder / "controlled/evaluation"))
def evaluate_controlled(world: World, said: Said) -> Any:
    """With what the evaluated model says of its control."""
    with executed_by(LocalExecutor()):
        run_stages(world.recipe("controlled"), (EVALUATE,), said.append, quiet=True)
    return hashes(world.folder / "controlled/evaluation", "samples/*", "sentiment.json")


def plan_controlled(world: World, said: Said) -> Any:
    return run_plan(world.recipe("controlled"), stages=(PREPARE, EVALUATE))
