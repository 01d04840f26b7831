"""A model that is evaluated in the trained one's place: the policy of a training of no step."""

from typing import Any

from pipelines.recipe import DPOConfig, ModelSection, NoMask, Recipe, ReferenceSection, Run
from pipelines.train import TrainingFacts, training_facts


def facts_of_policy(run: Run) -> TrainingFacts:
    """The facts of the training whose policy is evaluated.

    Raises: UserError if the reference's store is another recipe's.
    """
    named = run.recipe.evaluate.model
    return training_facts(run if named is None else Run(in_its_place(run.recipe)))


def in_its_place(recipe: Recipe) -> Recipe:
    """The recipe of a training that would start from the model which evaluate.model names.

    It needs nothing that a stage stores: the objective is DPO with the recipe's beta, without a
    mask, and the reference runs beside.
    """
    assert recipe.evaluate.model is not None
    model = recipe.model
    changed: dict[str, Any] = {
        "model": ModelSection(
            name_or_path=recipe.evaluate.model,
            reference=model.reference or model.name_or_path,
            tokenizer=model.tokenizer or model.name_or_path,
        ),
        "objective": DPOConfig(beta=beta_of(recipe)),
        "mask": NoMask(),
        "reference": ReferenceSection(mode="online", dtype=recipe.reference.dtype),
        "train": recipe.train.model_copy(update={"lora": None}),
    }
    return recipe.model_copy(update=changed)


def beta_of(recipe: Recipe) -> float:
    """The objective's beta; DPO's own where it has none."""
    found = getattr(recipe.objective, "beta", None)
    return DPOConfig().beta if found is None else float(found)
