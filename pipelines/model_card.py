"""The model card that lies beside the trained weights."""

from typing import Any

from pipelines.config import Recipe
from pipelines.recipe import write_yaml

_SHOWN = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "kl/reference_policy",
    "masks/reward_mean",
    "masks/reward_zero_fraction",
    "nll_per_token",
)


def model_card(recipe: Recipe, counts: dict[str, Any]) -> str:
    """README.md of RUN/train/model: what was trained on what, how it ended, how to load it."""
    final = counts["final"]
    rows = "".join(f"| `{key}` | {final[key]:.4g} |\n" for key in _SHOWN if key in final)
    held_out = counts.get("validation", {})
    rows += "".join(f"| `{key}` | {value:.4g} |\n" for key, value in held_out.items() if key.removeprefix("validation/") in _SHOWN)
    masks = ""
    if recipe.mask.kind == "learned":
        masks = '\nThe token masks load with `sparsepo.LearnedMasks.from_pretrained("../masks")`.\n'
    return f"""---
library_name: transformers
tags: [sparsepo, {recipe.objective.name}]
---

# {recipe.objective.name} from {recipe.model.name_or_path}

Trained by sparsepo for {counts["steps"]} steps on {counts["pairs"]} pairs. Load with
`transformers.AutoModelForCausalLM.from_pretrained(...)`.
{masks}
| metric at the last step | value |
|---|---|
{rows}
## Recipe

```yaml
{write_yaml(recipe)}```
"""
