"""The model that training starts from. Nothing is loaded."""

from pathlib import Path

from pipelines.models import base_dir, refuse_other_tokenizer, resolve_model, tokenizer_home
from pipelines.recipe import Recipe


def starting_model(recipe: Recipe) -> Path:
    """The directory of the model that is trained.

    UserError if what is trained from it could not be published.
    """
    directory = resolve_model(recipe.model.name_or_path)
    tokenizer = (
        resolve_model(recipe.model.tokenizer, tokenizer_only=True)
        if recipe.model.tokenizer
        else directory
    )
    refuse_other_tokenizer(base_dir(directory), tokenizer_home(tokenizer))
    return directory
