"""What the reference stage's features are made of, how they lie on disk and what they weigh."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from pipelines.errors import UserError
from pipelines.models import hf_config
from pipelines.recipe import ActivationMaskConfig, Recipe
from pipelines.reference.model import reference_model_dir
from pipelines.reference.other_models import (
    embedder_fingerprint,
    embedding_size,
    scorer_fingerprints,
)
from sparsepo.backbone import state_size
from sparsepo.compression import state_bytes, topk_bytes
from sparsepo.features import FEATURES

# Parquet's own bytes: lengths and levels per value of a column, footer and pages per file.
_BYTES_PER_VALUE, _BYTES_PER_FILE = 5, 900


@dataclass(frozen=True)
class FeatureFormat:
    """How one feature lies on disk.

    Attributes:
        encoding: list = a list of float32 per response (or per pair), readable by anything; raw =
            the little-endian bytes of `dtype` [tokens, *shape]; int8 = states [L, d] packed to
            int8; topk = k outcomes packed (both sparsepo.compression).
        dtype: of the values, or what int8 states are expanded to. shape: of one token's (or pair's)
            values.
    """

    encoding: Literal["list", "raw", "int8", "topk"]
    dtype: str
    shape: tuple[int, ...]

    def token_bytes(self) -> int:
        """Bytes of one token (or pair)."""
        if self.encoding == "int8":
            return state_bytes(*self.shape)
        if self.encoding == "topk":
            return topk_bytes(*self.shape)
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else 4)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "FeatureFormat":
        return cls(found["encoding"], found["dtype"], tuple(found["shape"]))


def formats_of(
    recipe: Recipe, features: Iterable[str], dtype: torch.dtype
) -> dict[str, FeatureFormat]:
    """The format of every feature for a reference in this dtype."""
    directory = reference_model_dir(recipe)
    name = str(dtype).removeprefix("torch.")
    found = {}
    for feature in sorted(features):
        if feature == "reference_hidden":
            found[feature] = FeatureFormat("raw", name, (state_size(hf_config(directory)),))
        elif feature == "reference_layers":
            config = hf_config(directory).get_text_config()
            encoding: Literal["int8", "raw"] = (
                "int8" if recipe.reference.layers_dtype == "int8" else "raw"
            )
            found[feature] = FeatureFormat(
                encoding, name, (config.num_hidden_layers, config.hidden_size)
            )
        elif feature == "reference_topk":
            assert recipe.reference.topk is not None
            found[feature] = FeatureFormat("topk", "uint8", (recipe.reference.topk,))
        elif feature == "prompt_embedding":
            found[feature] = FeatureFormat("list", "float32", (embedding_size(recipe, directory),))
        else:
            found[feature] = FeatureFormat("list", "float32", ())
    return found


def stored_bytes(formats: dict[str, FeatureFormat], counts: dict[str, Any]) -> int:
    """Forecast of the store's size from the prepare stage's counts.

    The counts are pairs, scored_tokens and shards by split.
    """
    tokens, pairs = sum(counts["scored_tokens"].values()), sum(counts["pairs"].values())
    shards = sum(len(sizes) for sizes in counts["shards"].values())
    total = 0
    for name, form in formats.items():
        per_token = FEATURES[name].per == "token"
        values = pairs * (2 if per_token else 1)
        total += (
            (tokens if per_token else pairs) * form.token_bytes()
            + values * _BYTES_PER_VALUE
            + shards * _BYTES_PER_FILE
        )
    return total


def head_bytes(recipe: Recipe, features: Iterable[str], dtype: torch.dtype) -> int:
    """Size of the stored LM head, which goes with the hidden states."""
    if "reference_hidden" not in features:
        return 0
    config = hf_config(reference_model_dir(recipe))
    return int(config.get_text_config().vocab_size * state_size(config) * dtype.itemsize)


def feature_origins(recipe: Recipe) -> dict[str, str]:
    """What the recipe's scorers' and embedder's features are made of, by feature.

    It is an input of training, like the reference.
    """
    made_elsewhere = frozenset(
        name
        for name in recipe.required_features()
        if FEATURES[name].origin in ("scorers", "embedder")
    )
    return origins_of(recipe, made_elsewhere)


def stored_origins(recipe: Recipe) -> dict[str, str]:
    """What distinguishes the features this recipe stores from others of the same name.

    Recipes that agree can share a store.
    """
    return {name: how for name, how in origins_of(recipe, recipe.stored_features()).items() if how}


def origins_of(recipe: Recipe, features: Iterable[str]) -> dict[str, str]:
    """Feature -> how it is made, beyond what the stage's own settings and inputs say."""
    makers = {
        "activation_mask": _mask_settings,
        "scorer_log_ratios": scorer_fingerprints,
        "prompt_embedding": embedder_fingerprint,
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
