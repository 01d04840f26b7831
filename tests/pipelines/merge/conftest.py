"""Merges of two finished runs: whole weights with learned masks, and an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.merge.files import load_merge
from pipelines.merge.schema import Merge
from pipelines.recipe.schema import Recipe

MakeMerge = Callable[..., Merge]


@pytest.fixture
def make_merge(
    tmp_path: Path, learned_run: Recipe, adapter_run: Recipe, ray_cluster: None
) -> MakeMerge:
    """make_merge("steps=2", ..., prompts=...): six held-out prompts in two tasks, short samples."""

    def make(*overrides: str, **top: Any) -> Merge:
        mapping = {
            "run_dir": str(tmp_path / "merged"),
            "models": [learned_run.run_dir, adapter_run.run_dir],
            "num_prompts": 6,
            "batch_prompts": 4,
            "samples_per_prompt": 2,
            "steps": 2,
            "generation": {"max_new_tokens": 6},
            "rewards": [{"kind": "vader"}, {"kind": "brevity", "most_words": 6}],
        }
        file = tmp_path / "merge-file.yaml"
        file.write_text(yaml.safe_dump(mapping | top))
        return load_merge(str(file), overrides)

    return make
