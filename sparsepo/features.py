"""Every feature that an objective or mask may read, and what makes it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FeatureKind:
    """Where a feature comes from.

    Origins are the reference model, the two scorers, the embedding model, the pairs themselves, the
    policy in the step (never stored nor read), or the training loop.
    """

    origin: Literal["reference", "scorers", "embedder", "pairs", "step", "loop"]
    per: Literal["token", "pair"]

    @property
    def of_frozen_model(self) -> bool:
        """Whether a model that is not trained makes it, so that it can be stored."""
        return self.origin in ("reference", "scorers", "embedder")

    @property
    def made_by(self) -> str:
        """What gives the feature, for an error: a function of this package, or the data."""
        return _MADE_BY[self.origin]


_MADE_BY = {
    "reference": "sparsepo.ReferenceModel.features",
    "scorers": "sparsepo.scorer_log_ratios",
    "embedder": "sparsepo.pooled_states",
    "pairs": "the data",
    "step": "sparsepo.PolicyModel",
    "loop": "the training loop",
}


# The fields of records.Features, by name.
FEATURES: dict[str, FeatureKind] = {
    "reference_logps": FeatureKind("reference", "token"),
    "reference_hidden": FeatureKind("reference", "token"),
    "reference_topk": FeatureKind("reference", "token"),
    "reference_layers": FeatureKind("reference", "token"),
    "activation_mask": FeatureKind("reference", "token"),
    "scorer_log_ratios": FeatureKind("scorers", "token"),
    "external_weights": FeatureKind("pairs", "token"),
    "prompt_embedding": FeatureKind("embedder", "pair"),
    "preference_scores": FeatureKind("pairs", "pair"),
    "pair_keys": FeatureKind("pairs", "pair"),
    "policy_logps": FeatureKind("step", "token"),
    "policy_hidden": FeatureKind("step", "token"),
    "policy_square_sum": FeatureKind("step", "token"),
    "epoch": FeatureKind("loop", "pair"),
}
