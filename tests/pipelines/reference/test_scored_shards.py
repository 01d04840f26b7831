"""Which shards of a reference store need no scoring any more."""

from pathlib import Path

from pair_stores import write_pairs

from pipelines.reference.actor import marker_path
from pipelines.reference.scoring import scored_shards
from pipelines.reference.store import feature_path
from pipelines.storage.store import RunStore
from sparsepo import TokenizedPair

LOGPS = "reference_logps"


def test_a_shard_counts_with_the_file_that_its_marker_saw(tmp_path: Path) -> None:
    """One of five is whole; of the others the file is another or gone, or there is no marker. A
    sixth is of no pairs.
    """
    ids = [TokenizedPair([1], [2], [3])] * 9
    pairs = write_pairs(RunStore(str(tmp_path / "pairs")), ids, shard_pairs=2)
    store = RunStore(str(tmp_path / "reference"))
    markers = {("train", number): {"bytes": 5, "tokens": number} for number in range(6)}
    for (split, number), marker in markers.items():
        store.write_bytes(feature_path(LOGPS, split, number), b"12345")
        store.write_json(marker_path(LOGPS, split, number), marker)
    assert list(scored_shards(store, LOGPS, pairs).items()) == list(markers.items())[:5]
    store.write_bytes(feature_path(LOGPS, "train", 1), b"1234")
    store.write_bytes(feature_path(LOGPS, "train", 2), b"123456")
    store.delete(feature_path(LOGPS, "train", 3))
    store.delete(marker_path(LOGPS, "train", 4))
    assert scored_shards(store, LOGPS, pairs) == {("train", 0): markers["train", 0]}
    assert scored_shards(store, "reference_hidden", pairs) == {}
