"""The schema of a merge: which models, with which weights, on which prompts, by which rewards."""

from typing import Literal

from pydantic import Field

from pipelines.recipe import (
    BrevityReward,
    Directory,
    GenerationSection,
    RaySection,
    RewardSection,
    RunDirectory,
    Section,
    Source,
    VaderReward,
    of_stage,
)

STAGE = "merge"
Weights = tuple[float, ...]


class MapSection(Section):
    """A softmax map of the first model's hidden state, fitted on pairs; ours.

    pairs: a run whose prepared pairs are learned from, by default the first run among models.
    num_pairs: the first training pairs; a quarter as many held-out ones judge it. steps,
    batch_pairs, learning_rate: of Adam. beta: inverse temperature of the pairwise loss. seed: of
    the order of pairs.
    """

    STAGE = STAGE
    pairs: Directory | None = of_stage(None, None)
    num_pairs: int = Field(512, ge=1)
    steps: int = Field(200, ge=1)
    batch_pairs: int = Field(16, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    beta: float = Field(0.1, gt=0)
    seed: int = 0


class Merge(Section):
    """A whole merge.

    run_dir: where samples, numbers and the figure are written. models: runs with a finished
    training, or directories of models or adapters; all with one tokenizer. forms: mixture = sum of
    weighted probabilities; product = normalised product of powers of them. weights: lists of one
    weight per model, which sum to one. steps: without weights, all combinations of multiples of
    1/steps; 0 for none. weights_column: of the prompts, with a list of weights for each. map:
    weights from the hidden state, token by token. prompts: a source of prompts, by default the
    held-out ones of the first run among models. num_prompts: the first ones. samples_per_prompt:
    drawn for each with the same weights. rewards: at least two; the figure has the first two.
    generation: how samples are drawn, after merging. seed: of samples, the same for all weights.
    batch_prompts: sampled together; other numbers draw other samples. batch_tokens: tokens per
    forward while a map is fitted.
    """

    STAGE = STAGE
    run_dir: RunDirectory
    models: tuple[Directory, ...] = of_stage(None)
    forms: tuple[Literal["mixture", "product"], ...] = of_stage(
        None, ("mixture", "product"), min_length=1
    )
    weights: tuple[Weights, ...] = of_stage(None, ())
    steps: int = of_stage(None, 4, ge=0)
    weights_column: str | None = of_stage(None, None, min_length=1)
    map: MapSection | None = None
    prompts: Source | None = None
    num_prompts: int = Field(200, ge=1)
    samples_per_prompt: int = Field(1, ge=1)
    generation: GenerationSection = GenerationSection()
    rewards: tuple[RewardSection, ...] = (VaderReward(), BrevityReward())
    seed: int = 0
    batch_prompts: int = Field(64, ge=1)
    batch_tokens: int = of_stage(None, 8192, ge=1)
    ray: RaySection = RaySection()

    def reward_names(self) -> list[str]:
        """The rewards' kinds; of several of one kind the later ones with their place."""
        kinds = [reward.kind for reward in self.rewards]
        return [
            kind if kinds.index(kind) == place else f"{kind}-{place + 1}"
            for place, kind in enumerate(kinds)
        ]
