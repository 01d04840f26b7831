"""Every feature that an objective or mask may read, and what makes it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FeatureKind:
    """Where a feature comes from.

    Origins are the reference model, the scorers, the embedding model, the pairs themselves, the
    policy in the step (never stored nor read), or the training loop.

    Attributes:
        has_own_weights: trained weights beside the origin's make it, so that these say, too, what
            it is.
    """

    origin: Literal["reference", "scorers", "embedder", "pairs", "step", "loop"]
    per: Literal["token", "pair"]
    needs_backward: bool = False
    has_own_weights: bool = False

    @property
    def of_frozen_model(self) -> bool:
        """Whether a model that is not trained makes it, so that it can be stored."""
        return self.origin in ("reference", "scorers", "embedder")

    @property
    def comes_with_a_forward(self) -> bool:
        """Whether the reference gives it beside training; a backward is for a store."""
        return self.origin == "reference" and not self.needs_backward

    @property
    def made_by(self) -> str:
        """What gives the feature, for an error: a function of this package, or the data."""
        return _MADE_BY[self.origin]


_MADE_BY = {
    "reference": "sparsepo.ReferenceModel.features",
    "scorers": "sparsepo.scorer_log_ratios or scorer_logps",
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
    "reference_entropy": FeatureKind("reference", "token"),
    "reference_square_sum": FeatureKind("reference", "token"),
    "saliency": FeatureKind("reference", "token", needs_backward=True),
    "token_states": FeatureKind("reference", "token"),
    "discriminator_values": FeatureKind("reference", "token", has_own_weights=True),
    "scorer_log_ratios": FeatureKind("scorers", "token"),
    "positive_logps": FeatureKind("scorers", "token"),
    "negative_logps": FeatureKind("scorers", "token"),
    "external_weights": FeatureKind("pairs", "token"),
    "prompt_embedding": FeatureKind("embedder", "pair"),
    "preference_scores": FeatureKind("pairs", "pair"),
    "pair_keys": FeatureKind("pairs", "pair"),
    "desirable": FeatureKind("pairs", "pair"),
    "policy_logps": FeatureKind("step", "token"),
    "policy_hidden": FeatureKind("step", "token"),
    "policy_square_sum": FeatureKind("step", "token"),
    "epoch": FeatureKind("loop", "pair"),
}
