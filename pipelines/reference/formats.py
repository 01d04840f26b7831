"""What the reference stage's features are made of, how they lie on disk and what they weigh."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.models import model_config, model_shape, padded_vocabularies, resolve_model
from pipelines.recipe import Recipe
from pipelines.reference.origins import reference_model_dir
from sparsepo.features import FEATURES
from sparsepo.packed_sizes import state_bytes, topk_bytes

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
        return math.prod(self.shape) * value_bytes(self.dtype)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "FeatureFormat":
        return cls(found["encoding"], found["dtype"], tuple(found["shape"]))


def value_bytes(dtype: str) -> int:
    return {"bfloat16": 2, "float32": 4}[dtype]


def formats_of(recipe: Recipe, features: Iterable[str], dtype: str) -> dict[str, FeatureFormat]:
    """The format of every feature for a reference in this dtype, by its name."""
    directory = Path(reference_model_dir(recipe))
    found = {}
    for feature in sorted(features):
        if feature == "reference_hidden":
            found[feature] = FeatureFormat("raw", dtype, (model_shape(directory).state_size,))
        elif feature == "token_states":
            width = token_state_size(directory, recipe.discriminator.layer)
            found[feature] = FeatureFormat("raw", dtype, (width,))
        elif feature == "reference_layers":
            shape = model_shape(directory)
            encoding: Literal["int8", "raw"] = (
                "int8" if recipe.reference.layers_dtype == "int8" else "raw"
            )
            found[feature] = FeatureFormat(encoding, dtype, (shape.num_layers, shape.hidden_size))
        elif feature == "reference_topk":
            assert recipe.reference.topk is not None
            found[feature] = FeatureFormat("topk", "uint8", (recipe.reference.topk,))
        elif feature == "prompt_embedding":
            found[feature] = FeatureFormat("list", "float32", (embedding_size(recipe, directory),))
        else:
            found[feature] = FeatureFormat("list", "float32", ())
    return found


def token_state_size(directory: Path, layer: int | None) -> int:
    """Features of a layer's states, None for the last one; the last may be of another width."""
    shape = model_shape(directory)
    return shape.state_size if layer in (None, shape.num_layers) else shape.hidden_size


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


def head_bytes(recipe: Recipe, features: Iterable[str], dtype: str) -> int:
    """Size of the stored LM head, which goes with the hidden states."""
    if "reference_hidden" not in features:
        return 0
    shape, sizes = model_shape(Path(reference_model_dir(recipe))), padded_vocabularies(recipe)
    rows = shape.vocabulary if sizes is None else sizes.common
    return rows * shape.state_size * value_bytes(dtype)


def embedding_size(recipe: Recipe, reference_dir: Path) -> int:
    """Numbers per prompt."""
    config = model_config(
        resolve_model(recipe.model.embedder) if recipe.model.embedder else reference_dir
    )
    return int(config.get("hidden_size") or config.get("n_embd") or config["d_model"])
