"""What a recipe asks of its models' families, before anything is computed.

A recipe that asks for nothing special imports no library; the others build modules without weights,
which takes seconds.
"""

from pathlib import Path

from pipelines.errors import UserError
from pipelines.models import STREAMS, family_of, longest_row, model_shape, resolve_model
from pipelines.recipe import ActivationMaskConfig, Recipe
from pipelines.reference.discriminators import layer_of, read_facts
from pipelines.reference.origins import reference_model_dir


def check_hooks(recipe: Recipe) -> None:
    """UserError if the recipe needs a place inside a model that the model's family does not show.

    Those are the activation mask's hook points, the list of decoder layers for the states of all
    layers, gradient checkpointing, FSDP and compiled layers, and masks that can be replaced where
    packed rows are asked for. Nothing else depends on the family.
    """
    policy = str(resolve_model(recipe.model.name_or_path))
    reference = reference_model_dir(recipe)
    if isinstance(recipe.mask, ActivationMaskConfig):
        from pipelines.models import hf_config
        from sparsepo.activations import select_hooks

        try:
            select_hooks(hf_config(reference), recipe.mask.hooks)
        except ValueError as error:
            raise UserError(f"mask.hooks: {error}") from error
    train = recipe.train
    if "reference_layers" in recipe.required_features() | recipe.stored_features():
        _check_one_state(
            reference,
            "states of all layers",
            "a mask of kind *_last reads the last layer alone",
        )
    layer = _inner_layer(recipe, reference)
    if layer is not None:
        _check_one_state(reference, f"states of tokens at layer {layer}", "the last layer has one")
    asked = {
        "train.gradient_checkpointing=true": train.gradient_checkpointing,
        "train.strategy=fsdp": train.strategy == "fsdp",
        "train.compile=true": train.compile,
    }
    for setting in (setting for setting, is_asked in asked.items() if is_asked):
        _check_layers(policy, setting)
    for setting, layout, directory in (
        ("reference", recipe.reference.layout, reference),
        ("train", train.layout, policy),
    ):
        if layout == "packed":
            from pipelines.models import without_weights
            from sparsepo.backbone import packing_obstacle

            model = without_weights(directory)
            obstacle = packing_obstacle(model, longest_row(recipe))
            if obstacle is not None:
                raise UserError(
                    f"{setting}.layout=packed: {type(model).__name__} cannot: {obstacle}; use "
                    "auto or padded"
                )


def _inner_layer(recipe: Recipe, reference: str) -> int | None:
    """The layer below the last one whose states of tokens are read, if any is."""
    wanted = recipe.required_features() | recipe.stored_features()
    if not {"token_states", "discriminator_values"} & wanted:
        return None
    layers = {model_shape(Path(reference)).num_layers}
    if "token_states" in wanted:
        layers.add(layer_of(recipe, reference))
    if "discriminator_values" in wanted and recipe.model.discriminator is not None:
        layers.add(int(read_facts(recipe.model.discriminator)["layer"]))
    return min(layers) if len(layers) > 1 else None


def _check_one_state(directory: str, purpose: str, cure: str) -> None:
    _check_layers(directory, purpose)
    if (family := family_of(Path(directory))) in STREAMS:
        raise UserError(
            f"{purpose}: {directory}: models of type {family!r} hand on several states per token; "
            f"{cure}"
        )


def _check_layers(directory: str, purpose: str) -> None:
    from pipelines.models import without_weights
    from sparsepo.backbone import decoder_layers

    try:
        decoder_layers(without_weights(directory))
    except ValueError as error:
        raise UserError(f"{purpose}: {error} in {directory}") from error
