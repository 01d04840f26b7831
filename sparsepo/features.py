"""Every feature that an objective or mask may read, and what makes it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FeatureKind:
    """Where a feature comes from.

    Origins are the reference model, the scorers, the embedding model, or the pairs themselves.
    """

    origin: Literal["reference", "scorers", "embedder", "pairs"]
    per: Literal["token", "pair"]

    @property
    def made_by(self) -> str:
        """What gives the feature, for an error: a function of this package, or the data."""
        return _MADE_BY[self.origin]


_MADE_BY = {
    "reference": "sparsepo.ReferenceModel.features",
    "scorers": "sparsepo.scorer_logps",
    "embedder": "sparsepo.pooled_states",
    "pairs": "the data",
}


# The fields of records.Features, by name.
FEATURES: dict[str, FeatureKind] = {
    "reference_logps": FeatureKind("reference", "token"),
    "reference_hidden": FeatureKind("reference", "token"),
    "reference_topk": FeatureKind("reference", "token"),
    "reference_layers": FeatureKind("reference", "token"),
    "activation_mask": FeatureKind("reference", "token"),
    "reference_entropy": FeatureKind("reference", "token"),
    "reference_square_sum": FeatureKind("reference", "token"),
    "saliency": FeatureKind("reference", "token"),
    "scorer_log_ratios": FeatureKind("scorers", "token"),
    "positive_logps": FeatureKind("scorers", "token"),
    "negative_logps": FeatureKind("scorers", "token"),
    "external_weights": FeatureKind("pairs", "token"),
    "prompt_embedding": FeatureKind("embedder", "pair"),
    "preference_scores": FeatureKind("pairs", "pair"),
    "pair_keys": FeatureKind("pairs", "pair"),
}
