"""status: what of a run is done, what is under way or failed, and where the outputs are."""

from pipelines.commands.stages import STAGES
from pipelines.errors import UserError
from pipelines.recipe import CONFIG, STARTED, RunPaths
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
