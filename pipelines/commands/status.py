"""status: what of a run is done, what is under way or failed, and where the outputs are."""

from pipelines.commands.stages import STAGES
from pipelines.commands.timeline import read_times, timeline_lines
from pipelines.errors import UserError
from pipelines.recipe import CONFIG, STARTED, TIMELINE, RunPaths
from pipelines.storage import RunStore
from pipelines.sweep import is_sweep_folder, sweep_status


def run_status(run_dir: str) -> list[dict[str, str]]:
    """One row per stage (or trial of a sweep): stage, state, detail, path.

    The state is "done", "unfinished" or "not started". Reads stage records only.

    Raises: UserError if the directory holds no run.
    """
    store = RunStore(run_dir)
    if is_sweep_folder(store):
        return sweep_status(store)
    paths = RunPaths.at(run_dir)
    if not store.exists(CONFIG) and not any(
        stage.folder(paths).exists(STARTED) for stage in STAGES
    ):
        raise UserError(f"{store.root}: no run here (no {CONFIG})")
    return [row for stage in STAGES for row in stage.status(paths)]


def run_timeline(run_dir: str) -> list[str]:
    """The table of where a run's time went.

    Raises: UserError if no command has kept that.
    """
    found = read_times(run_dir)
    if not found:
        raise UserError(f"{RunStore(run_dir).root}: no stage has worked here (no {TIMELINE})")
    return timeline_lines(found)
