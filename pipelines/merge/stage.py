"""merge: samples for every weight of a sweep, their rewards, and the frontier of these.

Each point has a folder with a record of its own: a second call draws only what is missing.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster import Pool, check_session, local_paths, ray_session, run_tasks
from pipelines.errors import UserError
from pipelines.merge.members import (
    Member,
    check_lengths,
    ends_of,
    fingerprints,
    first_run,
    open_members,
)
from pipelines.merge.points import Point, points_of
from pipelines.merge.prompts import Asked, asked_prompts, content_of
from pipelines.merge.schema import STAGE, Merge
from pipelines.models import ResponseEnds, quick_imports, tokenizer_fingerprint
from pipelines.recipe import (
    CONFIG,
    MANIFEST,
    MAP_FILE,
    MAPS,
    MERGE,
    MERGE_RECORD,
    POINT_SAMPLES,
    POINTS,
    RunPaths,
    Say,
    StageRecord,
    read_manifest,
    stage_settings,
    to_yaml,
)
from pipelines.storage import RunStore, TaskResults, digest, present, write_record


@dataclass(frozen=True)
class Job:
    """A merge that has been checked.

    Attributes:
        pairs: that maps are fitted on; None without a map.
    """

    merge: Merge
    members: list[Member]
    points: list[Point]
    prompts: list[Asked]
    ends: ResponseEnds
    inputs: dict[str, Any]
    pairs: RunStore | None

    @property
    def store(self) -> RunStore:
        return RunStore(self.merge.run_dir)

    def point_record(self, point: Point) -> StageRecord:
        store = self.store.at(POINTS, point.name)
        merge = self.merge
        settings = {
            "form": point.form,
            "weights": list(point.weights),
            "weights_from": point.origin,
            "generation": merge.generation.model_dump(mode="json"),
            "rewards": [reward.model_dump(mode="json") for reward in merge.rewards],
            "samples_per_prompt": merge.samples_per_prompt,
            "seed": merge.seed,
            "batch_prompts": merge.batch_prompts,
        }
        inputs = {**self.inputs, "prompts": content_of(self.prompts)}
        if point.origin == "prompt":
            inputs["prompt_weights"] = digest([list(prompt.weights) for prompt in self.prompts])
        if point.origin == "map":
            inputs["map"] = self.map_record(str(point.form)).fingerprint()
        return StageRecord(STAGE, store, settings, inputs)

    def map_record(self, form: str) -> StageRecord:
        assert self.merge.map is not None and self.pairs is not None
        settings = {**stage_settings(self.merge.map, STAGE), "form": form}
        inputs = {**self.inputs, "pairs": read_manifest(self.pairs)["fingerprint"]}
        return StageRecord("map", self.store.at(MAPS, form), settings, inputs)

    def starts(self) -> range:
        """The first prompt of every task of a point."""
        return range(0, len(self.prompts), self.merge.batch_prompts)

    def forms_with_map(self) -> list[str]:
        return [str(point.form) for point in self.points if point.origin == "map"]

    def records(self) -> list[StageRecord]:
        maps = [self.map_record(form) for form in self.forms_with_map()]
        return [*maps, *map(self.point_record, self.points)]


def run_merge(merge: Merge, say: Say, quiet: bool = False) -> str:
    """Sample and score every point that is not there, then write numbers, figure and page.

    Returns: the page's path.
    Raises: UserError for what is refused before any work; StageFailed.
    """
    from pipelines.merge.results import publish

    job = checked(merge, say)
    job.store.write_bytes(MERGE, to_yaml(merge.model_dump(mode="json")).encode())
    asked = {
        "points": [point.name for point in job.points],
        "maps": job.forms_with_map(),
        "tasks": len(job.starts()),
    }
    write_record(job.store, MERGE_RECORD, asked)
    missing = [record for record in job.records() if not record.is_complete()]
    if missing:
        with ray_session(merge.ray), present(job.store, stage=STAGE):
            maps = _fitted(job, say, quiet)
            _sample(job, maps, say, quiet)
    else:
        say("merge: every point is there already, none is drawn again")
    return publish(job.merge, job.members, job.points, _samples(job), say)


def checked(merge: Merge, say: Say) -> Job:
    """Everything that can be wrong, looked at before Ray starts. UserError for the first."""
    with quick_imports():
        from pipelines.evaluate import check_reward

    store = RunStore(merge.run_dir)
    if store.exists(CONFIG):
        raise UserError(f"run_dir = {store.root}: a run is there; choose another one")
    check_session(merge.ray)
    points = points_of(merge, say)
    members = open_members(merge)
    for number, reward in enumerate(merge.rewards):
        check_reward(reward, f"rewards[{number}]")
    prompts = asked_prompts(merge, members)
    check_lengths(members, max(len(p.ids) for p in prompts), merge.generation.max_new_tokens)
    ends = ends_of(members)
    inputs = {**fingerprints(members), **ends.fingerprint()}
    pairs = None if merge.map is None else _pairs_of(merge, members)
    job = Job(merge, members, points, prompts, ends, inputs, pairs)
    for record in job.records():
        record.check()
    store.check_writable()
    return job


def _pairs_of(merge: Merge, members: Sequence[Member]) -> RunStore:
    """The pairs that maps are fitted on. UserError if they are not there, or of no use."""
    with quick_imports():
        from pipelines.merge.fit import check_map
    from pipelines.pairs import read_pairs

    assert merge.map is not None
    found = first_run(members)
    if merge.map.pairs is not None:
        store = RunPaths.at(merge.map.pairs).pairs
    elif found is not None:
        store = found[1].pairs
    else:
        raise UserError("map: none of the models is a run with pairs: set map.pairs")
    if not store.exists(MANIFEST):
        raise UserError(f"map.pairs: {store.root} holds no prepared pairs")
    known = read_manifest(store)["inputs"].get("tokenizer")
    if known != tokenizer_fingerprint(members[0].directory):
        raise UserError(f"map.pairs: {store.root} was prepared with another tokenizer")
    check_map(read_pairs(store), store.root, merge.map.num_pairs)
    return store


def _fitted(job: Job, say: Say, quiet: bool) -> dict[str, dict[str, Any]]:
    """Form -> the numbers of its map; fitted where none is there."""
    with quick_imports():
        from pipelines.merge.fit import FitFacts, FitMap, MapFitter
        from pipelines.merge.map_weights import read_map, write_map

    merge, forms = job.merge, job.forms_with_map()
    todo = [form for form in forms if not job.map_record(form).is_complete()]
    if todo:
        assert merge.map is not None and job.pairs is not None
        models = tuple(member.model for member in job.members)
        facts = FitFacts(merge.map, models, job.pairs.root, merge.batch_tokens)
        tasks = [FitMap(number, form) for number, form in enumerate(todo)]  # type: ignore[arg-type]
        pool = Pool("map", merge.ray, local_paths(merge), num_actors=1)
        found_maps = run_tasks(tasks, MapFitter, facts, pool, quiet)
        for form, found in zip(todo, found_maps, strict=True):
            record = job.map_record(form)
            record.begin()
            counts = {key: found[key] for key in ("losses", "train_pairs", "held_out")}
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, MAP_FILE)
                write_map(found["numbers"], file, record.settings)
                record.store.publish_file(file, MAP_FILE)
            record.finish(counts, {MAP_FILE: record.store.checksum(MAP_FILE)})
            say(_map_line(form, counts))
    maps = {}
    for form in forms:
        record = job.map_record(form)
        hash_ = record.manifest()["outputs"].get(MAP_FILE)
        maps[form] = read_map(record.store, MAP_FILE, hash_)
    return maps


def _map_line(form: str, counts: dict[str, Any]) -> str:
    line = (
        f"merge: {form}: map fitted on {counts['train_pairs']} pairs, loss "
        f"{counts['losses'][0]:.4f} to {counts['losses'][-1]:.4f}"
    )
    if (held_out := counts["held_out"]) is None:
        return line
    loss = held_out["loss"]
    return line + (
        f"; on {held_out['pairs']} held-out pairs {loss['mean']:.4f} "
        f"[{loss['low']:.4f}, {loss['high']:.4f}] (equal weights: 0.6931)"
    )


def _sample(job: Job, maps: dict[str, dict[str, Any]], say: Say, quiet: bool) -> None:
    with quick_imports():
        from pipelines.merge.actor import MergeFacts, MergingSampler, SamplePoint

    merge = job.merge
    todo = [point for point in job.points if not job.point_record(point).is_complete()]
    batch = merge.batch_prompts
    by_point = {
        point: [
            SamplePoint(at, batch, point, tuple(job.prompts[at : at + batch]))
            for at in job.starts()
        ]
        for point in todo
    }
    for point in todo:
        job.point_record(point).begin()
    # Killed between tasks, it goes on from what their points have kept.
    parts = {point: TaskResults(job.point_record(point).store) for point in todo}
    missing = [(point, task) for point in todo for task in parts[point].missing(by_point[point])]
    facts = MergeFacts(merge, tuple(member.model for member in job.members), job.ends, maps)
    pool = Pool("merge", merge.ray, local_paths(merge), lighter="lower batch_prompts")
    results = run_tasks([task for _, task in missing], MergingSampler, facts, pool, quiet)
    left = {point: sum(own is point for own, _ in missing) for point in todo}
    shared: dict[str, None] = {}
    for (point, task), result in zip(missing, results, strict=True):
        parts[point].add([task], [result])
        left[point] -= 1
        if not left[point]:
            shared |= dict.fromkeys(_publish_point(job, point, parts[point], by_point[point]))
    for point in todo:
        if not job.point_record(point).is_complete():  # all of it was kept by a killed call
            shared |= dict.fromkeys(_publish_point(job, point, parts[point], by_point[point]))
    for line in shared:
        say(f"merge: {line}")


def _publish_point(job: Job, point: Point, parts: TaskResults, tasks: Sequence[Any]) -> list[str]:
    """Write a point's samples and its manifest; returns what the models share in memory."""
    record = job.point_record(point)
    found = list(parts.results(tasks))
    samples = [sample for part in found for sample in part["samples"]]
    folder = record.store.staging_directory()
    try:
        staged = folder / POINT_SAMPLES
        with record.store.told_where(POINT_SAMPLES, staged), staged.open("w") as lines:
            lines.writelines(json.dumps(sample) + "\n" for sample in samples)
        record.store.publish_file(staged, POINT_SAMPLES)
    finally:
        shutil.rmtree(folder)
    shared = list(dict.fromkeys(line for part in found for line in part["shared"]))
    counts = {"prompts": len(job.prompts), "samples": len(samples), "shared": shared}
    record.finish(counts, {POINT_SAMPLES: record.store.checksum(POINT_SAMPLES)})
    parts.clear()
    return shared


def _samples(job: Job) -> dict[Point, list[dict[str, Any]]]:
    """The samples of every point, as they were written."""
    from pipelines.storage import read_lines

    cure = "restore it, or remove the point's folder and give the command again"
    found = {}
    for point in job.points:
        record = job.point_record(point)
        hash_ = record.manifest()["outputs"].get(POINT_SAMPLES)
        found[point] = read_lines(record.store, POINT_SAMPLES, None, hash_, cure)
    return found
