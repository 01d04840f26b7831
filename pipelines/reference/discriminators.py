"""The discriminator that a recipe names: what it is, whether it fits, and its weights."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.models import (
    model_shape,
    resolve_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from pipelines.recipe import FIGURES, HEAD_FACTS, HEAD_WEIGHTS, Recipe
from pipelines.storage import RunStore, nearest_path, read_record, read_whole

if TYPE_CHECKING:
    from sparsepo import TokenDiscriminator

_FACTS = {"layer": int, "hidden_size": int, "reference": str, "tokenizer": str, "sha256": str}
_MEASURED = {"accuracy": dict, "auc": dict, "ece": dict, "num_tokens": int}
_CURE = "run `sparsepo discriminator` again"


def read_facts(location: str) -> dict[str, Any]:
    """What a discriminator's directory says of it.

    Raises: UserError if it is none, or damaged.
    """
    store = RunStore(location)
    if not store.exists(HEAD_FACTS):
        near = nearest_path(location) if store.is_local else ""
        raise UserError(
            f"model.discriminator = {location}: no finished discriminator is there (no "
            f"{HEAD_FACTS}){near}; `sparsepo discriminator RECIPE` makes one"
        )
    return read_record(store, HEAD_FACTS, _FACTS, _CURE)


def read_figures(location: str) -> dict[str, Any]:
    """What was measured of a discriminator; empty for one that nobody measured."""
    store = RunStore(location)
    return read_record(store, FIGURES, _MEASURED, _CURE) if store.exists(FIGURES) else {}


def load_discriminator(location: str) -> "TokenDiscriminator":
    """The discriminator in a directory, on the CPU. UserError if its weights are damaged."""
    from safetensors.torch import load

    from sparsepo import TokenDiscriminator

    facts, store = read_facts(location), RunStore(location)
    content = read_whole(store, HEAD_WEIGHTS, _CURE) if store.exists(HEAD_WEIGHTS) else b""
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise UserError(
            f"model.discriminator = {location}: {HEAD_WEIGHTS} is missing or damaged; {_CURE}"
        )
    found = TokenDiscriminator(facts["layer"], facts["hidden_size"])
    found.load_state_dict(load(content))
    return found.eval().requires_grad_(False)


def tokenizer_of(recipe: Recipe) -> str:
    """Fingerprint of what makes the recipe's token ids."""
    name = recipe.model.tokenizer or recipe.model.name_or_path
    return tokenizer_fingerprint(resolve_model(name, tokenizer_only=True))


def layer_of(recipe: Recipe, reference: str) -> int:
    """The layer that discriminator.layer means. UserError if the reference has none such."""
    last, layer = model_shape(Path(reference)).num_layers, recipe.discriminator.layer
    if layer is not None and layer > last:
        raise UserError(f"discriminator.layer = {layer}: {reference} has layers 1 to {last}")
    return layer or last


def layer_origin(recipe: Recipe, reference: str) -> str:
    """How states of tokens are made, for the record of a store."""
    return f"layer {layer_of(recipe, reference)}"


def discriminator_origin(recipe: Recipe, reference: str) -> str:
    """What names the values of the recipe's discriminator, for the record of a store.

    Args:
        reference: directory of the reference model.
    Raises: UserError if it was trained on another reference's states, on other token ids or on
        another layer than the recipe names, or is not there.
    """
    location = recipe.model.discriminator
    assert location is not None, "the recipe's validation requires one"
    facts = read_facts(location)
    layer = layer_of(recipe, reference)
    if recipe.discriminator.layer is not None and layer != facts["layer"]:
        raise _other(location, f"layer {facts['layer']}", f"discriminator.layer = {layer}")
    for what, ours, named in (
        ("reference", weights_fingerprint(Path(reference)), reference),
        ("tokenizer", tokenizer_of(recipe), recipe.model.tokenizer or recipe.model.name_or_path),
    ):
        if facts[what] != ours:
            raise _other(location, f"{what} {facts[what][:12]}", f"{named}, which is {ours[:12]}")
    return f"{facts['sha256'][:32]}:layer {facts['layer']}"


def _other(location: str, theirs: str, ours: str) -> UserError:
    return UserError(
        f"model.discriminator = {location}: it was trained on {theirs}, this recipe has {ours}; "
        "train one with `sparsepo discriminator` and this recipe's model"
    )
