"""The model card that lies beside the trained weights."""

from typing import Any

from pipelines.pairs import SPLITS
from pipelines.recipe import Recipe, write_yaml

_SHOWN = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "kl/reference_policy",
    "masks/reward_mean",
    "masks/reward_zero_fraction",
    "nll_per_token",
)


def model_card(recipe: Recipe, counts: dict[str, Any], pairs: dict[str, Any]) -> str:
    """README.md of RUN/train/model: what was trained on what, how it ended, how to load it.

    Args:
        counts: of the train stage. pairs: of the prepare stage.
    """
    final = counts["final"]
    rows = "".join(f"| `{key}` | {final[key]:.4g} |\n" for key in _SHOWN if key in final)
    held_out = counts.get("validation", {})
    rows += "".join(
        f"| `{key}` | {value:.4g} |\n"
        for key, value in held_out.items()
        if key.removeprefix("validation/") in _SHOWN
    )
    sources = "".join(
        f"- `{source.path}`{f', split {source.split}' if source.split else ''}\n"
        for source in recipe.data.sources
    )
    kept = ", ".join(f"{pairs['pairs'][split]:,} {split}" for split in SPLITS)
    dropped = "; ".join(f"{reason}: {number:,}" for reason, number in pairs["rejected"].items())
    base, lora = recipe.model.name_or_path, recipe.train.lora
    library, load = "transformers", "`transformers.AutoModelForCausalLM.from_pretrained(...)`"
    front = ""
    if lora is not None and lora.save == "adapter":
        library, load = (
            "peft",
            "`peft.AutoPeftModelForCausalLM.from_pretrained(...)`, which finds the base model in "
            "adapter_config.json",
        )
        front = f"base_model: {base}\n"
    masks = ""
    if recipe.mask.kind == "learned":
        masks = '\nThe token masks load with `sparsepo.LearnedMasks.from_pretrained("../masks")`.\n'
    ended = f" ({counts['stopped_early']})" if "stopped_early" in counts else ""
    return f"""---
library_name: {library}
tags: [sparsepo, {recipe.objective.name}]
{front}---

# {recipe.objective.name} from {base}

Trained by sparsepo for {counts["steps"]} steps{ended} on {counts["pairs"]:,} pairs. \
Load with {load}.
{masks}
| metric at the last step | value |
|---|---|
{rows}
## Data

{sources}
Pairs after preparation: {kept}.{f" Rows left out: {dropped}." if dropped else ""}

## Recipe

```yaml
{write_yaml(recipe)}```
"""
