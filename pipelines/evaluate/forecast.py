"""What an evaluation will take: pairs scored, prompts sampled, seconds."""

from pathlib import Path
from typing import Any

from pipelines.evaluate.code_tasks import read_code_tasks
from pipelines.models import (
    EVALUATION_START,
    Duration,
    device_kind,
    forward_seconds,
    hf_config,
    num_layers,
    sampling_seconds,
)
from pipelines.recipe import OpenAIJudge, Run
from pipelines.reference import count_parameters, reference_model_dir

_BATCH_TOKENS = {"cuda": 32768, "cpu": 4096}
_SCORED_BY = 3  # policy, starting model and reference
_SAMPLED_BY = 2  # policy and starting model
_SAMPLE_BYTES = 2048  # of a prompt's texts and numbers


def forecast_evaluation(run: Run, data: dict[str, Any], tflops: float) -> dict[str, Any]:
    """The benchmarks with what they look at, and their seconds.

    Judges behind an endpoint and lm-evaluation-harness take what they take: `not_counted`.

    Args:
        data: prepare's forecast.
    """
    settings, device = run.recipe.evaluate, device_kind()
    directory = reference_model_dir(run.recipe)
    parameters = count_parameters(Path(directory))
    layers = num_layers(hf_config(directory).get_text_config())
    held_out = data["pairs"][settings.split]
    scored = min(held_out, settings.max_pairs or held_out)
    work, prompts, programs = 0.0, 0, 0
    if {"preference", "masks"} & set(settings.benchmarks) and held_out:
        tokens = _SCORED_BY * data["shared_tokens"][settings.split] * scored / held_out
        batches = _SCORED_BY + tokens / _BATCH_TOKENS[device]
        work += forward_seconds(parameters, tokens, batches, layers, tflops, device)
    else:
        scored = 0
    if settings.sampled_benchmarks():
        prompts = min(held_out, settings.num_prompts)
        counts = [prompts * settings.samples_at(t) for t in settings.sampling_temperatures()]
        work += _SAMPLED_BY * sum(
            sampling_seconds(
                parameters,
                count,
                settings.generation.max_new_tokens,
                settings.sequences_per_batch,
                layers,
                tflops,
                device,
            )
            for count in counts
        )
    if "code" in settings.benchmarks and settings.code is not None:
        programs = len(read_code_tasks(settings.code)) * settings.code.num_samples
        work += _SAMPLED_BY * sampling_seconds(
            parameters,
            programs,
            settings.code.generation.max_new_tokens,
            settings.sequences_per_batch,
            layers,
            tflops,
            device,
        )
    is_asked = isinstance(settings.judge, OpenAIJudge) and "dialogue" in settings.benchmarks
    left_out = [
        *(["answers of the judge's endpoint"] if is_asked else []),
        *(["leaderboard"] if "leaderboard" in settings.benchmarks else []),
    ]
    return {
        "benchmarks": list(settings.benchmarks),
        "prompts": settings.num_prompts,
        "scored_pairs": scored,
        "sampled_prompts": prompts,
        "sampled_programs": programs,
        "disk_bytes": _SAMPLE_BYTES * (prompts * settings.samples_per_prompt + programs),
        **({"not_counted": left_out} if left_out else {}),
        **Duration(EVALUATION_START, work).as_keys(),
    }
