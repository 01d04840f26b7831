"""What an evaluation found and where it lies: its numbers, and the history of all of a run."""

import time
from typing import Any

from pipelines.recipe import (
    EXECUTED,
    HISTORY,
    MANIFEST,
    StageRecord,
    checkpoint_folder,
    read_manifest,
)
from pipelines.storage import (
    RunStore,
    damaged,
    read_parquet,
)


def append_history(
    store: RunStore, results: dict[str, dict[str, Any]], record: StageRecord, step: int | None
) -> None:
    """Write one row with every number of the results to a Parquet file of its own.

    There is one file per checkpoint, or per evaluation of a model.
    """
    import pyarrow as pa

    values: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": record.fingerprint(),
        "step": step,
    }
    table = pa.table({key: [value] for key, value in (values | numbers_of(results)).items()})
    name = f"{record.stage}-{record.fingerprint()}" if step is None else f"step-{step:08d}"
    store.write_table(f"{HISTORY}/{name}.parquet", table)


def read_history(store: RunStore) -> list[dict[str, Any]]:
    """The rows of an evaluation's history.

    Checkpoints come first, in step order; then models as their files are named.
    """
    rows = [
        {"step": None, **row}
        for name in store.names(HISTORY)
        for row in _row(store, f"{HISTORY}/{name}")
    ]
    return sorted(rows, key=lambda row: (row["step"] is None, row["step"] or 0))


def _row(store: RunStore, path: str) -> list[dict[str, Any]]:
    """The row of a history's file; that of a checkpoint compared with its evaluation's manifest."""
    cure = "remove it: the history lacks that evaluation then"
    rows: list[dict[str, Any]] = read_parquet(store, path, cure=cure).to_pylist()
    for row in rows:
        step = row.get("step")
        if not {"time", "fingerprint"} <= row.keys() or not isinstance(step, int | None):
            raise damaged(store, path, "it is no row of a history", cure)
        known = store.at(checkpoint_folder(step)) if step is not None else None
        if known is not None and known.exists(MANIFEST):
            for name, value in numbers_of(read_results(known)).items():
                if name in row and row[name] not in (value, None) and value == value:
                    raise damaged(store, path, f"{name} is not the manifest's", cure)
    return rows


def numbers_of(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """<benchmark>/<name> -> number, with /low and /high where there is an interval.

    Tables and missing values are left out.
    """
    found: dict[str, float] = {}
    for benchmark, result in results.items():
        for key, value in result.items():
            name = f"{benchmark}/{key}"
            if isinstance(value, dict) and "mean" in value:
                found |= {
                    name: float(value["mean"]),
                    f"{name}/low": float(value["low"]),
                    f"{name}/high": float(value["high"]),
                }
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = float(value)
    return found


def read_results(evaluation: RunStore) -> dict[str, dict[str, Any]]:
    """benchmark -> numbers of a finished evaluation; empty if it is not finished.

    The numbers of executed programs are among them.
    """
    results: dict[str, dict[str, Any]] = {}
    for store in (evaluation, evaluation.at(EXECUTED)):
        if store.exists(MANIFEST):
            results |= read_manifest(store)["counts"]["results"]
    return results
