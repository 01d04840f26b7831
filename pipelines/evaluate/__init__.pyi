from .execute import execute_record as execute_record, run_execute as run_execute
from .held_out import check_held_out as check_held_out, check_kept as check_kept
from .history import (
    SAMPLES as SAMPLES,
    TOKENS as TOKENS,
    checkpoint_folder as checkpoint_folder,
    numbers_of as numbers_of,
    read_history as read_history,
    read_results as read_results,
)
from .sample import (
    CANDIDATES as CANDIDATES,
    run_sample as run_sample,
    sample_record as sample_record,
)
from .sandbox import require_isolation as require_isolation
from .schedule import Scheduler as Scheduler, check_run as check_run
from .stage import (
    check_evaluation as check_evaluation,
    evaluate_record as evaluate_record,
    run_evaluate as run_evaluate,
)
