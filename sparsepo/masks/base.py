"""The interface of every token mask."""

from torch import Tensor, nn

from sparsepo.records import ReferenceFeatures


class TokenMasks(nn.Module):
    """Maps reference features to the two token masks.

    Attributes:
        requires: names of the reference features the mask reads.
        l1_shares: factors of the (reward, kl) masks' L1 norms, see TokenScores.
    """

    requires: frozenset[str] = frozenset()
    l1_shares: tuple[float, float] = (1.0, 1.0)

    def forward(self, features: ReferenceFeatures, like: Tensor) -> tuple[Tensor, Tensor]:
        """(reward_mask [S], kl_mask [S]), float32, >= 0; `like` is the policy's per_token_logps [S].

        Raises: ValueError naming the reference feature that is missing.
        """
        raise NotImplementedError


def require_feature(features: ReferenceFeatures, name: str) -> Tensor:
    value: Tensor | None = getattr(features, name)
    if value is None:
        raise ValueError(f"the mask needs the feature {name!r} of the reference stage, which is not in this batch")
    return value
