"""How many trials a sweep directory is to have, by SWEEP/sweep.json."""

from dataclasses import dataclass
from typing import Any

from pipelines.recipe import DEFINITION
from pipelines.storage import RunStore, read_record
from pipelines.sweep.shards import Shard

CURE = "remove it and run the sweep's command again, which writes it"
_FIELDS = {"sweep": dict, "settings": dict, "inputs": dict, "trials": int, "trials_of_all": int}


def definition_in(store: RunStore) -> dict[str, Any]:
    """The record. Raises: FileNotFoundError; DamagedFile if it is not what was written."""
    return read_record(store, DEFINITION, _FIELDS, CURE)


@dataclass(frozen=True)
class Extent:
    """How many trials a sweep directory is to have, and of which shard; by its definition."""

    shard: Shard | None
    trials: int
    trials_of_all: int

    @classmethod
    def of(cls, store: RunStore) -> "Extent | None":
        """None for a sweep of an earlier version, which did not say."""
        if not store.exists(DEFINITION):
            return None
        found = definition_in(store)
        text = found["sweep"].get("shard")
        return cls(
            None if text is None else Shard.parse(text), found["trials"], found["trials_of_all"]
        )
