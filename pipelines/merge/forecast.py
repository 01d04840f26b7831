"""What a merge will take: maps to fit, samples to draw, seconds, disk and memory."""

from collections.abc import Sequence
from typing import Any

from pipelines.merge.members import Member
from pipelines.merge.points import Point, alone_in
from pipelines.merge.stage import Job
from pipelines.models import (
    EVALUATION_START,
    RAY_START,
    SCORING_START,
    Duration,
    base_dir,
    device_kind,
    forward_seconds,
    hf_config,
    num_layers,
    sampling_seconds,
)
from pipelines.recipe import read_manifest
from pipelines.reference import count_parameters

_SAMPLE_BYTES, _PAGE_BYTES, _MAP_BYTES = 1024, 5_000_000, 4  # of a sample; the page; a number
_FLOAT_BYTES = {"cuda": 2, "cpu": 4}
_LIGHTER = "merge adapters of one base, smaller models, or fewer of them"


def forecast_merge(job: Job, rate: float) -> dict[str, Any]:
    """Parts "maps" (if there are any) and "points", each with what is left to do.

    Args:
        rate: TFLOP/s of one device.
    """
    models = [_Model(member) for member in job.members]
    found = {"maps": _maps(job, models, rate)} if job.forms_with_map() else {}
    return {**found, "points": _points(job, models, rate)}


class _Model:
    """What a forward of one model takes."""

    def __init__(self, member: Member) -> None:
        config = hf_config(str(member.directory)).get_text_config()
        self.base, self.parameters = base_dir(member.directory), count_parameters(member.directory)
        self.layers, self.width = num_layers(config), int(config.hidden_size)


def _memory_gib(models: Sequence[_Model]) -> float:
    """Of all models at once; adapters of one base have it once."""
    by_base = {model.base: model.parameters for model in models}
    return sum(by_base.values()) * _FLOAT_BYTES[device_kind()] / 2**30


def _points(job: Job, models: Sequence[_Model], rate: float) -> dict[str, Any]:
    merge, device = job.merge, device_kind()
    left = [point for point in job.points if not job.point_record(point).is_complete()]
    samples = len(job.prompts) * merge.samples_per_prompt
    work = sum(
        sampling_seconds(
            model.parameters,
            samples,
            merge.generation.max_new_tokens,
            merge.batch_prompts * merge.samples_per_prompt,
            model.layers,
            rate,
            device,
        )
        for point in left
        for model in _heard(point, models)
    )
    return {
        "points": len(job.points),
        "left": len(left),
        "names": [point.name for point in job.points],
        "prompts": len(job.prompts),
        "samples": samples,
        "done": not left,
        "memory_gib": _memory_gib(models),
        "lighter": _LIGHTER,
        "disk_bytes": samples * len(left) * _SAMPLE_BYTES + _PAGE_BYTES,
        **_duration(RAY_START + EVALUATION_START, work, bool(left)).as_keys(),
    }


def _heard(point: Point, models: Sequence[_Model]) -> Sequence[_Model]:
    """The models that run for a point: one that has all the weight runs alone."""
    alone = alone_in(point.weights)
    return models if alone is None else [models[alone]]


def _maps(job: Job, models: Sequence[_Model], rate: float) -> dict[str, Any]:
    """Every model runs over the pairs once; the steps on what is kept are next to nothing."""
    assert job.merge.map is not None and job.pairs is not None
    forms = job.forms_with_map()
    left = [form for form in forms if not job.map_record(form).is_complete()]
    counts = read_manifest(job.pairs)["counts"]
    num_pairs = min(job.merge.map.num_pairs, counts["pairs"]["train"])
    per_pair = counts["model_tokens"]["train"] / max(1, counts["pairs"]["train"])
    tokens = 1.25 * num_pairs * per_pair  # a quarter as many judge it
    batches = tokens / job.merge.batch_tokens + 1
    work = sum(
        forward_seconds(model.parameters, tokens, batches, model.layers, rate, device_kind())
        for model in models
    )
    numbers = len(models) * (models[0].width + 1)
    return {
        "forms": forms,
        "left": len(left),
        "pairs": num_pairs,
        "done": not left,
        "memory_gib": _memory_gib(models),
        "lighter": _LIGHTER,
        "disk_bytes": _MAP_BYTES * numbers * len(left),
        **_duration(SCORING_START, work, bool(left)).as_keys(),
    }


def _duration(start: float, work: float, is_left: bool) -> Duration:
    return Duration(start, work) if is_left else Duration(0.0, 0.0)
