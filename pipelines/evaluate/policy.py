"""The policy that an evaluation looks at: the published model, or a checkpoint."""

import torch

from pipelines.errors import UserError
from pipelines.evaluate.facts import PolicyFacts
from pipelines.models import Placement, load_causal_lm
from pipelines.storage import RunStore
from pipelines.train import (
    build_masks,
    load_checkpoint,
    load_policy_model,
    step_folder,
    strategy_of,
)
from sparsepo import LearnedMasks, PolicyModel, ReferenceModel


def load_policy(
    facts: PolicyFacts, reference: ReferenceModel, dtype: torch.dtype, device: torch.device
) -> PolicyModel:
    """The policy with its masks, ready to be asked.

    Raises: UserError if the checkpoint cannot be read.
    """
    if facts.step is None:
        policy = _published(facts, reference, dtype, device)
    else:
        policy = _checkpoint(facts, facts.step, reference, device)
        policy.causal_lm.to(dtype)
    return policy.to(device).eval()


def _published(
    facts: PolicyFacts, reference: ReferenceModel, dtype: torch.dtype, device: torch.device
) -> PolicyModel:
    train, masks = RunStore(facts.train), build_masks(facts.recipe)
    with train.as_local_directory("model") as folder:
        causal_lm = load_causal_lm(str(folder), dtype, device)
    if isinstance(masks, LearnedMasks):
        with train.as_local_directory("masks") as folder:
            masks = LearnedMasks.from_pretrained(folder)
    return PolicyModel(causal_lm, masks, reference.head)


def _checkpoint(
    facts: PolicyFacts, step: int, reference: ReferenceModel, device: torch.device
) -> PolicyModel:
    train, recipe = RunStore(facts.train), facts.recipe
    placement = Placement.choose(recipe.train.precision, device, rank=0, world=1)
    policy = PolicyModel(
        load_policy_model(recipe, placement), build_masks(recipe), reference.head
    ).to(device)
    try:
        load_checkpoint(train, step, policy, None, strategy_of(placement), facts.base)
    except OSError as error:
        raise UserError(
            f"{train.root}/{step_folder(step)}: cannot be read: {str(error).splitlines()[0]}"
        ) from error
    if recipe.train.lora is not None:
        policy.causal_lm = policy.causal_lm.merge_and_unload()
    return policy
