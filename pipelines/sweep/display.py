"""What a terminal shows of a sweep while it runs: trials that ended, and how far the others are."""

import contextlib
import threading
from collections.abc import Iterator

from pipelines.cluster import Bar
from pipelines.errors import StageFailed, UserError
from pipelines.recipe import TRIAL, TRIALS
from pipelines.storage import RunStore
from pipelines.sweep.status import trial_progress

_LOOK_SECONDS, _SHOWN = 3.0, 4


@contextlib.contextmanager
def shown_trials(store: RunStore, trials: int, quiet: bool) -> Iterator[None]:
    """A bar of the trials of a sweep, fed by their files, during the block.

    Args:
        store: of the sweep. trials: of the whole sweep.
    """
    if quiet:
        yield
        return
    stop = threading.Event()

    def follow() -> None:
        with Bar(total=trials, desc="tune", unit="trial") as bar:
            is_first = True
            while True:
                is_last = stop.is_set()
                with contextlib.suppress(StageFailed, UserError, OSError):
                    ended, text = trials_under_way(store)
                    (bar.starts_at if is_first else bar.came_to)(ended)
                    bar.n, is_first = ended, False
                    bar.set_postfix_str("" if is_last else text, refresh=True)
                if is_last:
                    return
                stop.wait(_LOOK_SECONDS)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def trials_under_way(store: RunStore) -> tuple[int, str]:
    """(trials that have ended, how far some of the others are)."""
    ended, others = 0, []
    for name in store.names(TRIALS):
        place = store.at(TRIALS, name)
        if place.exists(TRIAL):
            ended += 1
        elif far := trial_progress(place).partition(";")[0]:
            others.append(f"{int(name.split('-')[0])}: {far}")
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return ended, "; ".join(others[:_SHOWN]) + more
