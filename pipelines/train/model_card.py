"""The model card beside trained weights: what was trained on what, how it ended, how to load it.

Training writes one beside RUN/train/model, export another with what was measured since. Neither
says where anything lay on the machines of the run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pipelines.pairs import SPLITS
from pipelines.recipe import (
    Recipe,
    hub_name,
    library_versions,
    public_name,
    to_yaml,
    with_public_names,
)
from pipelines.train.card_texts import CONTROL, citation, masks_text, model_text

_SHOWN = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "kl/reference_policy",
    "masks/reward_mean",
    "masks/reward_zero_fraction",
    "nll_per_token",
)
# The sections of a recipe that decide what the model is; the others say where and how it was made.
_DECIDING = ("model", "data", "objective", "mask", "reference", "train")
_ELSEWHERE = {"data": {"shard_pairs", "rows_per_task"}, "train": {
    "micro_batch_tokens", "auto_microbatch", "compile", "num_workers", "min_workers", "use_gpu",
    "cpus_per_worker", "checkpoint_every", "keep_checkpoints", "max_failures", "trackers",
    "tracker_project", "tracker_group",
}}  # fmt: skip
_SHORT = ("model", "data", "reference")
UNKNOWN_LICENSE = "unknown"
_LICENSE = """The program that wrote this card does not know it. It follows from the base model's \
and the data's: set `license` in this file's head, as a name of \
https://huggingface.co/docs/hub/repositories-licenses."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a model.

    Attributes:
        counts: of the train stage. pairs: of the prepare stage. results: benchmark -> its numbers,
            of the evaluation if there was one. is_adapter: whether the weights beside the card are
            an adapter. has_code: whether the model brings code of its own.
        masks: the folder of the masks, seen from the card. stored: the features of the mask that
            lie there, pair by pair. repository: where the model will be, if that is known.
        license: of the model, if it is known. checked: lines on what was checked. versions: of the
            libraries that trained it.
    """

    counts: dict[str, Any]
    pairs: dict[str, Any]
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_adapter: bool = False
    has_code: bool = False
    masks: str = "../masks"
    stored: tuple[str, ...] = ()
    repository: str | None = None
    license: str | None = None
    checked: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=library_versions)


def model_card(recipe: Recipe, facts: CardFacts) -> str:
    """The text of a model card, its metadata in front."""
    base = public_name(recipe.model.name_or_path)
    front = metadata(recipe, facts).to_yaml()
    license_ = f"`{facts.license}`" if facts.license else _LICENSE
    loading = model_text(facts.repository, base, facts.is_adapter, facts.has_code)
    parts = [
        f"# {_title(recipe)}\n",
        _trained(recipe, facts, base),
        f"## How to load it\n\n{loading}",
        *([CONTROL] if recipe.control() is not None else ()),
        *([text] if (text := masks_text(recipe, facts.masks, facts.stored)) else ()),
        *([_results(facts.results)] if any(_measured(facts.results)) else ()),
        _training(facts),
        _data(recipe, facts.pairs),
        _recipe(recipe),
        *(["## Checked\n\n" + "".join(f"- {line}\n" for line in facts.checked)]
          if facts.checked else []),
        f"## License\n\n{license_}\n",
        f"## Citation\n\n{citation(recipe)}",
    ]  # fmt: skip
    return f"---\n{front}\n---\n\n" + "\n".join(parts)


def metadata(recipe: Recipe, facts: CardFacts) -> ModelCardData:
    """What the Hub reads of a card. Names of models and data sets are those of a hub alone."""
    base = hub_name(recipe.model.name_or_path)
    kind = recipe.mask.kind
    sources = [hub_name(source.path) for source in recipe.data.sources]
    data_sets = list(dict.fromkeys(filter(None, sources)))
    results = list(_eval_results(recipe, facts.results))
    prefers = recipe.objective.declared.uses_rejected or recipe.reads_labels()
    tags = ["sparsepo", *(["preference-optimization"] if prefers else []), recipe.objective.name]
    if recipe.train.lora is not None:
        tags.append("lora")
    return ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if facts.is_adapter else "finetune") if base else None,
        datasets=data_sets or None,
        library_name="peft" if facts.is_adapter else "transformers",
        license=facts.license or UNKNOWN_LICENSE,
        pipeline_tag="text-generation",
        tags=[*tags, *([] if kind == "none" else [f"token-mask-{kind}"])],
        model_name=(facts.repository or _title(recipe)) if results else None,
        eval_results=results or None,
    )


def _title(recipe: Recipe) -> str:
    return f"{recipe.objective.name} from {public_name(recipe.model.name_or_path)}"


def _eval_results(recipe: Recipe, results: Mapping[str, Mapping[str, Any]]) -> Iterator[EvalResult]:
    """Every number that has an interval, for the metadata's model-index."""
    source = (*recipe.data.test, *recipe.data.sources)[0].path if any(_measured(results)) else ""
    for benchmark, name, value in _measured(results):
        yield EvalResult(
            task_type="text-generation",
            task_name=benchmark,
            # A data set without a name on the Hub may be called anything of these letters.
            dataset_type=hub_name(source) or re.sub(r"[^\w.-]", "-", public_name(source)),
            dataset_name=f"{public_name(source)}, held out",
            dataset_split="test",
            metric_type=name,
            metric_name=f"{benchmark}/{name}",
            metric_value=value["mean"],
            metric_args={
                "interval": "95 %",
                "low": value["low"],
                "high": value["high"],
                "n": value["n"],
            },
        )


def _measured(
    results: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(benchmark, name, mean with interval) of every such number."""
    for benchmark, numbers in results.items():
        for name, value in numbers.items():
            if isinstance(value, dict) and {"mean", "low", "high", "n"} <= value.keys():
                yield benchmark, name, value


def _trained(recipe: Recipe, facts: CardFacts, base: str) -> str:
    ended = f" ({facts.counts['stopped_early']})" if "stopped_early" in facts.counts else ""
    lora = recipe.train.lora
    adapted = "" if lora is None else f", as adapters (LoRA) of rank {lora.rank}"
    merged = "" if lora is None or facts.is_adapter else ", which are merged into the weights here"
    local = "" if hub_name(recipe.model.name_or_path) else " (a directory that is on no hub)"
    return (
        f"Trained by sparsepo from `{base}`{local} for {facts.counts['steps']:,} steps{ended} on "
        f"{facts.counts['pairs']:,} pairs{adapted}{merged}.\n"
    )


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"| {benchmark} | `{name}` | {value['mean']:.4g} | {value['low']:.4g} to "
        f"{value['high']:.4g} | {value['n']:,} |\n"
        for benchmark, name, value in _measured(results)
    )
    return (
        "## Results\n\nOn what was held out, with 95 % intervals over prompts (n). "
        "*before* is the starting model, *after* this one, *gain* their paired difference.\n\n"
        f"| benchmark | metric | value | 95 % interval | n |\n|---|---|---|---|---|\n{rows}"
    )


def _training(facts: CardFacts) -> str:
    final, held_out = facts.counts["final"], facts.counts.get("validation", {})
    rows = "".join(f"| `{key}` | {final[key]:.4g} |\n" for key in _SHOWN if key in final)
    rows += "".join(
        f"| `{key}` | {value:.4g} |\n"
        for key, value in held_out.items()
        if key.removeprefix("validation/") in _SHOWN
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"## Training\n\n| metric at the last step | value |\n|---|---|\n{rows}\nWith {versions}.\n"
    )


def _data(recipe: Recipe, pairs: dict[str, Any]) -> str:
    sources = "".join(
        f"- `{public_name(source.path)}`{f', split {source.split}' if source.split else ''}\n"
        for source in recipe.data.sources
    )
    kept = ", ".join(f"{pairs['pairs'][split]:,} {split}" for split in SPLITS)
    dropped = "; ".join(f"{reason}: {number:,}" for reason, number in pairs["rejected"].items())
    return (
        f"## Data\n\n{sources}\nPairs after preparation: {kept}."
        f"{f' Rows left out: {dropped}.' if dropped else ''}\n"
    )


def _recipe(recipe: Recipe) -> str:
    """The sections that decide what the model is; of some only what is not as by default."""
    named = with_public_names(recipe)
    shown = {
        name: section
        for name in _DECIDING
        if (
            section := getattr(named, name).model_dump(
                mode="json",
                exclude=_ELSEWHERE.get(name, set()),
                exclude_defaults=name in _SHORT,
            )
        )
    }
    return f"## Recipe\n\n```yaml\n{to_yaml(shown)}```\n"
