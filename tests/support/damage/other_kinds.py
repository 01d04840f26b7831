"""Kinds of files of the systems beside the objectives: merges, discriminators, edits, controls."""

from damage import other_readers as by
from damage.damages import JSON, LINES, PARQUET, SAFETENSORS, YAML
from damage.kind import Kind

_POINT, _HEAD = "merged/points/mixture-0.5-0.5", "judged/discriminator/head"
_EDITS = "edited/discriminator/editor/edits"
OTHER_KINDS: dict[str, Kind] = {
    "merge file": Kind("merged.yaml", YAML, (by.plan_merged,), (by.merge_again,), is_input=True),
    "prompts of a merge": Kind(
        "asked.jsonl", LINES, (by.plan_merged,), (by.merge_again,), is_input=True
    ),
    "record of a merge": Kind("merged/merge.json", JSON, (by.status_merged,), (by.merge_again,)),
    "what a merge was asked": Kind(
        "merged/merge.yaml", YAML, (by.status_merged,), (by.merge_again,)
    ),
    "results of a merge": Kind("merged/results.json", JSON, (by.status_merged,), (by.merge_again,)),
    "manifest of a point": Kind(
        f"{_POINT}/manifest.json", JSON, (by.status_merged, by.plan_merged), (by.merge_again,)
    ),
    "start of a point": Kind(
        "merging/points/mixture-prompt/started.json", JSON, (by.status_merging,), (by.merge_on,)
    ),
    "samples of a point": Kind(f"{_POINT}/samples.jsonl", LINES, (), (by.merge_again,)),
    "parts of a point": Kind(
        "merging/points/mixture-prompt/parts/*", JSON, (by.status_merging,), (by.merge_on,)
    ),
    "manifest of a map": Kind(
        "merged/maps/mixture/manifest.json", JSON, (by.status_merged, by.plan_merged),
        (by.merge_by_map,),
    ),
    "map": Kind("merged/maps/mixture/map.safetensors", SAFETENSORS, (), (by.merge_by_map,)),
    "manifest of discriminator": Kind(
        f"{_HEAD}/manifest.json", JSON, (by.status_judged,), (by.judge_again,)
    ),
    "start of discriminator": Kind(
        "judging/discriminator/head/started.json", JSON, (by.status_judging,), (by.judge_on,)
    ),
    "configuration of a discriminator's run": Kind(
        "judged/discriminator/config.yaml", YAML, (by.status_judged,), (by.judge_again,)
    ),
    "discriminator": Kind(
        f"{_HEAD}/discriminator.safetensors", SAFETENSORS, (by.load_head,),
        (by.reference_reading,),
    ),
    "discriminator's facts": Kind(
        f"{_HEAD}/discriminator.json", JSON, (by.load_head, by.plan_reading),
        (by.reference_reading,),
    ),
    "discriminator's figures": Kind(
        f"{_HEAD}/figures.json", JSON, (by.plan_reading,), (by.reference_reading,)
    ),
    "checkpoint of a discriminator": Kind(
        "judging/discriminator/head/checkpoint-*", SAFETENSORS, (by.status_judging,), (by.judge_on,)
    ),
    "position of a discriminator": Kind(
        "judging/discriminator/head/checkpoint.json", JSON, (by.status_judging,), (by.judge_on,)
    ),
    "states that a discriminator learns from": Kind(
        "judging/discriminator/reference/token_states/train-00001.parquet", PARQUET, (),
        (by.judge_on,),
    ),
    "manifest of edits": Kind(
        f"{_EDITS}/manifest.json", JSON, (by.status_edited, by.plan_edited), (by.prepare_edited,)
    ),
    "edits": Kind(f"{_EDITS}/train.jsonl", LINES, (by.plan_edited,), (by.prepare_edited,)),
    "answers of an editor": Kind(f"{_EDITS}/answers/*", JSON, (by.edit_again,)),
    "samples behind a second control": Kind(
        "controlled/evaluation/samples/controlled.jsonl", LINES, (), (by.report_controlled,)
    ),
    "control of a model": Kind(
        "obedient/control.json", JSON, (by.plan_controlled,), (by.evaluate_controlled,),
        is_input=True,
    ),
}  # fmt: skip
