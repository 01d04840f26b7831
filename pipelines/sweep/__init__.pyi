from .files import is_sweep as is_sweep, load_sweep as load_sweep
from .joined import report_sweeps as report_sweeps, sweeps_of as sweeps_of
from .sharded_status import sharded_status as sharded_status
from .shared_stores import SharedStores as SharedStores, trial_recipe as trial_recipe
from .space import RECIPE as RECIPE, Sweep as Sweep
from .stage import (
    check_trials as check_trials,
    run_tune as run_tune,
    share_of as share_of,
)
from .status import is_sweep_folder as is_sweep_folder, sweep_status as sweep_status
from .trial_record import read_trial as read_trial
