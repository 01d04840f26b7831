"""Which frozen models a recipe's features come from, and how they are made.

Those are the reference, the scorers of tokens and RPO's prompt embedder. Nothing is loaded.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pipelines.errors import UserError
from pipelines.models import json_list_of, json_of, resolve_model, weights_fingerprint
from pipelines.recipe import ActivationMaskConfig, Recipe, StageRecord
from pipelines.reference.discriminators import discriminator_origin, layer_origin
from pipelines.reference.facts import FrozenReference, OtherModels
from sparsepo.features import FEATURES

_Pooling = Literal["mean", "first", "last"]
_POOLING: dict[str, _Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
    "lasttoken": "last",
}


def reference_model_dir(recipe: Recipe) -> str:
    """The starting policy, its adapter included, unless another reference is named."""
    return str(resolve_model(FrozenReference.of(recipe).name))


def scorer_fingerprints(recipe: Recipe) -> str:
    """Of both scorers, whichever of them a feature is of.

    They are compared over the rows that both have, and a store with several features has one pair.
    """
    names = OtherModels.of(recipe).scorers().values()
    return "+".join(
        "reference" if name is None else weights_fingerprint(resolve_model(name)) for name in names
    )


def embedder_fingerprint(recipe: Recipe) -> str:
    if recipe.model.embedder is None:
        return "mean of the reference's last hidden states"
    directory = resolve_model(recipe.model.embedder)
    return f"{weights_fingerprint(directory)}:{pooling_of(directory)}"


def pooling_of(directory: Path) -> _Pooling:
    """How a sentence-embedding model pools, from its 1_Pooling/config.json (mean without one).

    Raises: UserError for a way of pooling, or a further module, that is not supported.
    """
    modules = directory / "modules.json"
    if modules.is_file():
        kinds = [str(m.get("type")).rsplit(".", 1)[-1] for m in json_list_of(modules)]
        # Normalize changes nothing: the similarity is a cosine.
        if unknown := [
            kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")
        ]:
            raise UserError(
                f"model.embedder = {directory}: its module {unknown[0]} is not supported, only "
                "Transformer, Pooling and Normalize"
            )
    file = directory / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    settings = json_of(file)
    mode = settings.get("pooling_mode")
    chosen = (
        [mode]
        if isinstance(mode, str)
        else [
            k.removeprefix("pooling_mode_")
            for k, on in settings.items()
            if on is True and k.startswith("pooling_mode_")
        ]
    )
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise UserError(
            f"model.embedder = {directory}: pooling {'+'.join(chosen) or 'none'} is not "
            "supported, only mean, cls or lasttoken"
        )
    return _POOLING[chosen[0]]


def feature_origins(recipe: Recipe) -> dict[str, str]:
    """What the recipe's features are made of that other weights than the reference's make.

    It is an input of training, like the reference.
    """
    made_elsewhere = frozenset(
        name
        for name in recipe.required_features()
        if FEATURES[name].origin in ("scorers", "embedder") or FEATURES[name].has_own_weights
    )
    return origins_of(recipe, made_elsewhere)


def origins_of(recipe: Recipe, features: Iterable[str]) -> dict[str, str]:
    """Feature -> how it is made, beyond what the stage's own settings and inputs say."""
    makers = {
        "activation_mask": _mask_settings,
        "scorer_log_ratios": scorer_fingerprints,
        "positive_logps": scorer_fingerprints,
        "negative_logps": scorer_fingerprints,
        "prompt_embedding": embedder_fingerprint,
        "token_states": lambda recipe: layer_origin(recipe, reference_model_dir(recipe)),
        "discriminator_values": lambda recipe: discriminator_origin(
            recipe, reference_model_dir(recipe)
        ),
        "reference_topk": lambda recipe: f"top {recipe.reference.topk}",
        "reference_layers": lambda recipe: (
            "int8" if recipe.reference.layers_dtype == "int8" else ""
        ),
    }
    return {name: makers[name](recipe) if name in makers else "" for name in sorted(features)}


def _mask_settings(recipe: Recipe) -> str:
    if not isinstance(recipe.mask, ActivationMaskConfig):
        raise UserError(
            "reference.features names activation_mask: say which with mask.kind=activation"
        )
    hooks = recipe.mask.hooks if isinstance(recipe.mask.hooks, str) else "+".join(recipe.mask.hooks)
    return f"{recipe.mask.mapping}:{hooks}"


def check_origins(
    record: StageRecord,
    known: Mapping[str, str],
    origins: Mapping[str, str],
    wanted: frozenset[str],
) -> None:
    """UserError if the store holds one of the wanted features made in another way."""
    for name in sorted(wanted):
        if known.get(name, origins[name]) != origins[name]:
            raise UserError(
                f"{record.store.root} holds {name} made with {known[name]!r}, now "
                f"{origins[name]!r} is asked for: choose another run_dir or paths.reference"
            )
