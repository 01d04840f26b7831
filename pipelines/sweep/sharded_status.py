"""What `status` says of a directory that holds the shards of a sweep."""

from typing import Any

from pipelines.recipe import TRIAL, TRIALS, row_of
from pipelines.storage import RunStore
from pipelines.sweep.extent import Extent
from pipelines.sweep.shards import SHARDS, Shard
from pipelines.sweep.status import is_sweep_folder, sweep_status


def shards_below(store: RunStore) -> list[RunStore]:
    """The directories of a sweep's shards that have begun, in order."""
    known = {Shard.of_folder(name): store.at(SHARDS, name) for name in store.names(SHARDS)}
    begun = [shard for shard, at in known.items() if shard is not None and is_sweep_folder(at)]
    return [known[shard] for shard in sorted(begun, key=lambda shard: (shard.of, shard.number))]


def sharded_status(store: RunStore) -> list[dict[str, Any]]:
    """A row per shard, begun or not, and one of the whole sweep; nothing if no shard has begun."""
    begun = {
        extent.shard: (at, extent)
        for at in shards_below(store)
        if (extent := Extent.of(at)) is not None and extent.shard is not None
    }
    rows: list[dict[str, Any]] = []
    ended = total = 0
    for of in sorted({shard.of for shard in begun}):
        total = next(extent.trials_of_all for s, (_, extent) in begun.items() if s.of == of)
        for shard in (Shard(number, of) for number in range(1, of + 1)):
            own = sum(shard.holds(i) for i in range(total))
            if shard not in begun:
                rows.append(row_of(f"shard {shard}", "not started", f"{own} trials", store))
                continue
            at = begun[shard][0]
            done = sum(at.exists(f"{TRIALS}/{name}/{TRIAL}") for name in at.names(TRIALS))
            ended += done
            last = sweep_status(at)[-1]
            rows.append({**last, "stage": f"shard {shard}", "detail": f"{done} of {own} trials"})
    if not rows:
        return []
    left = [row["stage"] for row in rows if row["state"] != "done"]
    states = {row["state"] for row in rows}
    detail = f"{ended} of {total} trials ended"
    detail += f"; missing: {', '.join(left)}" if left else ""
    detail += f"; sparsepo report {store.root} joins them" if ended else ""
    state = (
        "done" if not left else next((s for s in ("running", "stopped") if s in states), "stopped")
    )
    at_work = next((row for row in rows if row["state"] == "running"), {})
    place = {key: at_work[key] for key in ("host", "pid", "since") if key in at_work}
    return [*rows, {**row_of("tune", state, detail, store), **place}]
