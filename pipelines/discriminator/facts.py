"""What the process that trains a discriminator has to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.recipe import DiscriminatorSection


@dataclass(frozen=True)
class HeadFacts:
    """What is trained, on what, and where it goes.

    Attributes:
        store: root of the stage's own. pairs, reference: roots of what it reads.
        reference_fingerprint: that the reference stage's manifest has to name.
        fingerprint: of this stage, which its checkpoints name. failed: split -> rows without
            states. layer, hidden_size: of the states. made_of: fingerprints of the reference and
            of the tokenizer. tokenizer: its directory or name. key_words: whose tokens D is
            compared with besides, or None.
    """

    store: str
    pairs: str
    reference: str
    reference_fingerprint: str
    fingerprint: str
    failed: Mapping[str, frozenset[int]]
    section: DiscriminatorSection
    layer: int
    hidden_size: int
    made_of: Mapping[str, str]
    tokenizer: str
    key_words: frozenset[str] | None


@dataclass(frozen=True)
class TrainHead:
    """Train until a step is reached, from wherever the training is; measure at its end.

    Attributes:
        until: the step. steps: of the whole training.
    """

    until: int
    steps: int
