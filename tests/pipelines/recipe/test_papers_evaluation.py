"""Packaged recipes evaluate as the released code does, where its settings are known."""

import pytest

from pipelines.recipe.files import load_recipe, packaged


@pytest.mark.parametrize("name", [n for n in packaged("recipe") if n.startswith("tldr-")])
def test_summaries(name: str) -> None:
    """A hundred prompts, five samples each, nucleus 0.5, five temperatures."""
    found = load_recipe(name).evaluate
    assert "summarization" in found.benchmarks
    assert (found.num_prompts, found.samples_per_prompt) == (100, 5)
    assert found.generation.top_p == 0.5
    assert sorted(found.sampling_temperatures()) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", [n for n in packaged("recipe") if n.startswith("code-")])
def test_programs(name: str) -> None:
    """A hundred programs a task at temperature 0.6, of 512 tokens; pass@1, 10 and 100."""
    found = load_recipe(name).evaluate
    assert "code" in found.benchmarks and found.code is not None
    drawn = found.code.generation
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens) == (0.6, 1.0, 512)
    assert (found.code.num_samples, found.code.k) == (100, (1, 10, 100))
