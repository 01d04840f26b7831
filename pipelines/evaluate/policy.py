"""The policy that an evaluation looks at: the published model, or a checkpoint."""

from dataclasses import dataclass
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.models import Placement, load_causal_lm
from pipelines.pairs import pairs_store
from pipelines.recipe import Recipe
from pipelines.reference import ReferenceFacts
from pipelines.storage import RunStore
from pipelines.train import (
    build_masks,
    frozen_base,
    load_checkpoint,
    load_policy_model,
    step_folder,
    strategy_of,
    train_store,
)
from sparsepo import LearnedMasks, PolicyModel
from sparsepo.kernels.token_scoring import LMHead


@dataclass(frozen=True)
class TrainingFacts:
    """What a machine needs to load a run's policy, and what the policy was trained with.

    Attributes:
        root: of the train stage's store. pairs_root: of the pairs'. base: fingerprint of the
            weights that training kept; None if it changed them. recipe: for the functions of the
            train room that take one.
    """

    root: str
    pairs_root: str
    reference: ReferenceFacts
    base: str | None
    recipe: Recipe

    @property
    def model(self) -> Any:
        return self.recipe.model

    @property
    def objective(self) -> Any:
        return self.recipe.objective

    @property
    def mask(self) -> Any:
        return self.recipe.mask


def training_facts(recipe: Recipe, reference: ReferenceFacts) -> TrainingFacts:
    roots = train_store(recipe).root, pairs_store(recipe).root
    return TrainingFacts(*roots, reference, frozen_base(recipe), recipe)


def open_policy(
    facts: TrainingFacts,
    step: int | None,
    head: LMHead | None,
    dtype: torch.dtype,
    device: torch.device,
) -> PolicyModel:
    """The policy with its masks, ready to be asked.

    Args:
        step: of the checkpoint; None is the published model. head: of the reference.
    Raises: UserError if the checkpoint cannot be read.
    """
    if step is None:
        policy = _published(facts, head, dtype, device)
    else:
        policy = _checkpoint(facts, step, head, device)
        policy.causal_lm.to(dtype)
    return policy.to(device).eval()


def _published(
    facts: TrainingFacts, head: LMHead | None, dtype: torch.dtype, device: torch.device
) -> PolicyModel:
    train, masks = RunStore(facts.root), build_masks(facts.recipe)
    with train.as_local_directory("model") as folder:
        causal_lm = load_causal_lm(str(folder), dtype, device)
    if isinstance(masks, LearnedMasks):
        with train.as_local_directory("masks") as folder:
            masks = LearnedMasks.from_pretrained(folder)
    return PolicyModel(causal_lm, masks, head)


def _checkpoint(
    facts: TrainingFacts, step: int, head: LMHead | None, device: torch.device
) -> PolicyModel:
    train, recipe = RunStore(facts.root), facts.recipe
    placement = Placement.choose(recipe.train.precision, device, rank=0, world=1)
    model = load_policy_model(recipe, placement)
    policy = PolicyModel(model, build_masks(recipe), head).to(device)
    try:
        load_checkpoint(train, step, policy, None, strategy_of(placement), facts.base)
    except OSError as error:
        raise UserError(
            f"{train.root}/{step_folder(step)}: cannot be read: {str(error).splitlines()[0]}"
        ) from error
    if recipe.train.lora is not None:
        policy.causal_lm = policy.causal_lm.merge_and_unload()
    return policy
